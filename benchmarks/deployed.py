"""How fast a model is in each form that it is deployed in, beside timm's eager one in single precision.

    python benchmarks/deployed.py docs/measured/deployed.json
    python benchmarks/deployed.py docs/measured/deployed.json --models levit_128s --forms openvino/int8

Forms are timed by the processes of `vit bench`, a few at once, timm's eager model among each few: a step of
each in turn. Weights are random and int8 is calibrated on noise, so that figures are of time alone; what int8
costs in accuracy is verified by `vit export`. `+13` behind a form merges thirteen patches in each block
(`merging.py`). A share of the peak is of the rate of a large matrix product in the row's precision, measured
beside. The file keeps the rows of other models.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from provenance import provenance
from timing import Cell, Worker, ratio, time_in_turn, time_steps

from vit_pytorch.data.loader import usable_cores
from vit_pytorch.export.bench_worker import PRECISIONS, Subject

ROOT = Path(__file__).parents[1]
DTYPES = {precision: dtype for dtype, precision in PRECISIONS.items()}
PEER = "timm/eager/fp32"
FORMS = (
    *("eager/fp32", "eager/bf16", "compile/fp32", "compile/bf16", "aoti/fp32", "aoti/bf16"),
    *("onnx/fp32", "onnx/int8", "openvino/fp32", "openvino/bf16", "openvino/int8"),
    *("executorch/fp32", "executorch/int8", "timm/compile/bf16", "timm/onnx/fp32", "timm/openvino/bf16"),
    *("eager/fp32+13", "onnx/fp32+13", "openvino/fp32+13", "onnx/int8+13", "openvino/int8+13"),
    *("openvino/int8+8", "openvino/int8+16"),
)
AT_ONCE = 4


def peaks(threads: int) -> dict[str, float]:
    """Return the operations per second of a large matrix product by precision."""
    torch.set_num_threads(threads)
    found = {}
    for precision in ("fp32", "bf16"):
        matrix = torch.randn(2048, 2048, dtype=getattr(torch, DTYPES[precision]))
        time_steps(lambda a=matrix: a @ a, 2)  # type: ignore[misc]
        found[precision] = 2 * 2048**3 / min(time_steps(lambda a=matrix: a @ a, 8))  # type: ignore[misc]
    return found


def measure(model: str, forms: Sequence[str], batch: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Time some forms of a model beside timm's eager one; what cannot be made is a row with its reason."""
    workers: dict[str, Worker] = {}
    cells: dict[str, Cell] = {}
    refused = []
    for name in dict.fromkeys([PEER, *forms]):
        built, _, merged = name.partition("+")
        *library, form, precision = built.split("/")
        subject = Subject(model, form, "timm" if library else "ours", threads, int(merged or 0))
        worker = Worker("-m", "vit_pytorch.export.bench_worker", json.dumps(asdict(subject)), path=ROOT)
        cell = Cell("forward", DTYPES[precision], batch)
        try:
            worker.ask(**{**cell.request, "steps": 1})
        except RuntimeError as error:
            worker.close()
            refused.append(row(model, name, batch, threads, error=str(error).splitlines()[0]))
            continue
        workers[name], cells[name] = worker, cell
    times, answers = time_in_turn(workers, cells, rounds)
    for worker in workers.values():
        worker.close()
    best = peaks(threads)
    rows = []
    for name in workers:
        compared, seconds = ratio(times[PEER], times[name]), median(times[name])
        figures: dict[str, Any] = {
            "ms": 1000 * seconds,
            "ratio": compared.value,
            "spread": compared.spread,
            "peak_mib": answers[name]["peak_mib"],
        }
        precision = name.partition("+")[0].rpartition("/")[2]
        if precision in best:
            figures["of_peak"] = answers[name]["flops"] * batch / seconds / best[precision]
        rows.append(row(model, name, batch, threads, **figures))
    return [found for found in rows if found["form"] in forms] + refused


def row(model: str, form: str, batch: int, threads: int, **figures: Any) -> dict[str, Any]:
    """Return a row of the file."""
    return {
        "model": model,
        "form": form,
        "batch": batch,
        "threads": threads,
        **figures,
        **provenance(),
    }


def main() -> None:
    """Measure, and write the file after each few."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--models", nargs="+", default=["vit_small_patch16_224"])
    parser.add_argument(
        "--forms", nargs="+", default=FORMS, metavar="FORM", help=f"any of {', '.join(FORMS)}"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    known = json.loads(options.file.read_text()) if options.file.is_file() else []
    found = {(one["model"], one["form"], one["batch"]): one for one in known}
    for model in options.models:
        for batch in options.batches:
            for start in range(0, len(options.forms), AT_ONCE):
                few = options.forms[start : start + AT_ONCE]
                for one in measure(model, few, batch, options.threads, options.rounds):
                    found[one["model"], one["form"], one["batch"]] = one
                    shown = {
                        key: one[key]
                        for key in ("model", "form", "batch", "ms", "ratio", "error")
                        if key in one
                    }
                    print(json.dumps(shown), flush=True)
                options.file.write_text(json.dumps(list(found.values()), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
