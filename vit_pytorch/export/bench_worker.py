"""The process of one model that `vit bench` times: `python -m vit_pytorch.export.bench_worker SUBJECT`.

SUBJECT is JSON, see `Subject`. Only what a model needs is imported, since its peak memory is measured.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TextIO

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vit_pytorch.export.timing import Cell, Step, make_step, serve

EAGER, COMPILE = "eager", "compile"
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int8": "int8"}
# batches of noise that static int8 is calibrated on, which times ask for no more
CALIBRATION = 4


@dataclass(frozen=True)
class Subject:
    """What is timed.

    Args:
        model: the name of a model, the folder of a run or of a model, or a file that `vit export` wrote.
        form: "eager", "compile", or a format of exported files.
        library: whose model of that name it is.
        threads: number of threads.
        merge_tokens: number of patches by which each block of a plain ViT has fewer.
    """

    model: str
    form: str = EAGER
    library: Literal["ours", "timm"] = "ours"
    threads: int = 1
    merge_tokens: int = 0


def build(subject: Subject) -> nn.Module:
    """Build a model with random weights, or read one that was saved."""
    torch.manual_seed(0)
    if subject.library == "timm":
        import timm

        return timm.create_model(subject.model)
    from vit_pytorch.create import create_model
    from vit_pytorch.tome import merging

    return merging(create_model(subject.model), subject.merge_tokens)


def count_flops(model: nn.Module, size: tuple[int, ...]) -> int:
    """Count the floating-point operations of one image: two for a multiplication with its addition."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # fused attention on a processor is not in the counter's table
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        # the counter hooks the gradients of inputs, which views of parameters do not have here
        model.requires_grad_(False)
        try:
            model(torch.zeros(1, *size))
        finally:
            for parameter in learned:
                parameter.requires_grad_(True)
    return int(counter.get_total_flops())


def exported_step(subject: Subject, model: Any, cell: Cell, folder: Path) -> Step:
    """Make the step of a model in a format, which is written for that, not verified."""
    from vit_pytorch.export.formats import find_format
    from vit_pytorch.export.job import DTYPES, ExportGraph, ExportJob, Precision

    precision: Precision = PRECISIONS[cell.dtype]  # type: ignore[assignment]
    kind = find_format(subject.form)
    kind.check(subject.form, precision)
    size = model.default_cfg["input_size"]
    graph = ExportGraph(model.to(DTYPES[precision]), "logits").eval()
    file = folder / f"{precision}{kind.suffix}"
    int8: dict[str, Any] = {}
    if precision == "int8":
        kind.check_quantization(subject.form, "static")
        classifier = model.get_classifier()
        int8["calibration"] = [torch.randn(8, *size) for _ in range(CALIBRATION)]
        # which NNCF leaves in floating point in some models; it takes no time that shows
        int8["keep"] = tuple(
            name
            for name, module in model.named_modules()
            if module is classifier and any(True for _ in module.parameters())
        )
    kind.write(ExportJob(graph, torch.randn(2, *size), precision, {}, **int8), file)
    run, images = kind.load(file, precision), torch.randn(cell.batch, *size)

    def step() -> Tensor:
        with torch.inference_mode():
            return run(images)

    return step


def file_step(file: str, cell: Cell) -> Step:
    """Make the step of a file that `vit export` wrote, at the precision that it has."""
    from vit_pytorch.export.deploy import load_exported

    report = json.loads(Path(f"{file}.json").read_text(encoding="utf-8"))
    run, given = load_exported(file), report["input"]["images"]
    # sizes that are open have names
    own = report["preprocessing"]["image_size"]
    shape = cell.batch, given["shape"][1], *(own if "height" in given["shape"] else given["shape"][2:])
    images = torch.randint(256, shape, dtype=torch.uint8) if given["dtype"] == "uint8" else torch.randn(shape)

    def step() -> Tensor:
        with torch.inference_mode():
            return run(images)

    return step


def main() -> None:
    """Answer requests on standard input until it closes; an error is the last answer."""
    # whatever libraries print is no answer
    answers, sys.stdout = sys.stdout, sys.stderr
    try:
        answer_requests(Subject(**json.loads(sys.argv[1])), answers)
    except Exception as error:
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        print(json.dumps({"error": f"{kind}{error}", "trace": traceback.format_exc()}), file=answers)
        raise SystemExit(1) from error


def answer_requests(subject: Subject, answers: TextIO) -> None:
    """Time a subject as standard input asks."""
    torch.set_num_threads(subject.threads)
    if Path(subject.model).is_file():
        from vit_pytorch.export.deploy import read_report

        report = read_report(subject.model)
        facts = {"parameters": report["parameters"], "precision": report["precision"], "flops": None}
        serve(lambda cell: file_step(subject.model, cell), answers, **facts)
        return
    model: Any = build(subject).eval()
    size = tuple(model.default_cfg["input_size"])
    facts = {"parameters": sum(p.numel() for p in model.parameters()), "flops": count_flops(model, size)}
    with TemporaryDirectory() as folder:

        def prepare(cell: Cell) -> Step:
            if subject.form not in (EAGER, COMPILE):
                return exported_step(subject, model, cell, Path(folder))
            timed: Any = torch.compile(model) if subject.form == COMPILE else model
            return make_step(timed, cell, size)

        serve(prepare, answers, **facts)


if __name__ == "__main__":
    main()
