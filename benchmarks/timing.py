"""What times models here, and in `vit bench`: `vit_pytorch/export/timing.py`, loaded by its file.

In some processes of the benchmarks another package is called vit_pytorch.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_pytorch.export.timing import (
        Cell,
        Step,
        Worker,
        make_step,
        peak_mib,
        ratio,
        serve,
        time_in_turn,
        time_steps,
    )
else:
    spec = spec_from_file_location(
        "shared_timing", Path(__file__).parents[1] / "vit_pytorch" / "export" / "timing.py"
    )
    shared = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(shared)
    Cell, Step, Worker, make_step = shared.Cell, shared.Step, shared.Worker, shared.make_step
    peak_mib, ratio, serve = shared.peak_mib, shared.ratio, shared.serve
    time_in_turn, time_steps = shared.time_in_turn, shared.time_steps

__all__ = ["Cell", "Step", "Worker", "make_step", "peak_mib", "ratio", "serve", "time_in_turn", "time_steps"]
