"""Check and time the package on one GPU, without network, in less than eight minutes; write one JSON file.

    bash benchmarks/gpu.sh gpu.json
    bash benchmarks/gpu.sh toy.json --device cpu --toy

Each section runs in a process of its own, with a share of the time. What fails, in a section or in one of its
rows, is written down with its error, the other sections run, and the status at the end is 1. What the time
does not suffice for is listed as left out, which is no failure: `--minutes` gives more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from references import randomise
from timing import Cell, Worker, make_step, peak_mib, ratio, time_in_turn, time_steps
from torch import Tensor, nn

from tests.tolerances import BF16_MODEL, relative_error
from vit_pytorch import MAE, Dino, create_model, list_models
from vit_pytorch.layers.packing import HAS_VARLEN, PackedAttention, takes_varlen
from vit_pytorch.na_vit import NaViT
from vit_pytorch.pretrained import load_pretrained
from vit_pytorch.registry import find_entry
from vit_pytorch.registry.entry import ModelEntry

HERE = Path(__file__).parent
ROOT = HERE.parent
Row = dict[str, Any]

# relative errors against the processor's fp32, of logits and of gradients; sums are in another order
LOGITS, GRADIENTS = 1e-4, 1e-3
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# images of a forward pass; a training step has half as many
BATCHES = {
    "vit_base_patch16_224": 128,
    "vit_small_patch16_224": 256,
    "naflexvit_base_patch16_parfac_gap": 64,
    "maxvit_tiny_tf_224": 128,
    "levit_256": 256,
    "cait_xxs24_224": 128,
    "vit_large_patch16_224": 64,
}
PARITY = ("vit_small_patch16_224", "cait_xxs24_224", "levit_128s", "maxvit_tiny_tf_224")
SIDES = (16, 32, 64, 96)
TINY_VIT = {"image_size": 32, "patch_size": 8, "dim": 64, "depth": 2, "heads": 2, "mlp_dim": 128}


@dataclass(frozen=True)
class Setting:
    """Where and how large a section runs.

    Args:
        device: of the models.
        toy: whether everything is as small as it can be.
        deadline: when the section must end, on the clock of `time.monotonic`.
    """

    device: str
    toy: bool
    deadline: float

    @property
    def seconds_left(self) -> float:
        """Time until the deadline."""
        return self.deadline - time.monotonic()


Case = tuple[str, Callable[[], Row]]


def environment(setting: Setting) -> Iterator[Case]:
    """Where this runs: the device, and versions."""

    def describe() -> Row:
        found: Row = {"python": platform.python_version(), "processor": platform.processor()}
        for name in ("torch", "triton", "torchvision", "lightning", "timm"):
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = None
        if setting.device.startswith("cuda"):
            properties = torch.cuda.get_device_properties(setting.device)
            found |= {
                "device": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "gib": properties.total_memory / 2**30,
                "cuda": torch.version.cuda,
            }
        return found

    yield "environment", describe


def contracts(setting: Setting) -> Iterator[Case]:
    """Every architecture at tiny size against the same model on the processor in fp32."""
    entries = {find_entry(name).architecture: find_entry(name) for name in reversed(list_models())}
    chosen = list(entries.values())
    for entry in chosen[:: 12 if setting.toy else 1]:
        yield entry.name, partial(contract, entry, setting.device)


def contract(entry: ModelEntry, device: str) -> Row:
    """Compare one model's logits in three precisions and under autocast, and its gradients."""
    torch.manual_seed(0)
    model: Any = randomise(entry.build(**entry.tiny))
    images = torch.randn(3, model.channels, *model.image_size)
    want, wanted = model(images), gradients(model, images)
    model, images = model.to(device), images.to(device)
    logits = model(images)
    found = {
        "fp32": relative_error(logits.cpu(), want),
        "repeated": relative_error(model(images), logits),
        "alone": relative_error(model(images[:1]), logits[:1]),
        "gradients": relative_error(gradients(model, images).cpu(), wanted),
    }
    with torch.autocast(device.partition(":")[0], torch.bfloat16):
        found["autocast"] = relative_error(model(images).cpu(), want)
    for name, dtype in HALVES.items():
        logits = deepcopy(model).to(dtype)(images.to(dtype))
        if logits.dtype != dtype:
            raise ValueError(f"logits must be {dtype}, as the model, got {logits.dtype}")
        found[name] = relative_error(logits.cpu(), want)
    bounds = {"fp32": LOGITS, "repeated": LOGITS, "alone": LOGITS, "gradients": GRADIENTS}
    bounds |= {"autocast": BF16_MODEL, **dict.fromkeys(HALVES, BF16_MODEL)}
    return within(found, bounds)


def gradients(model: nn.Module, images: Tensor) -> Tensor:
    """Compute the gradients of a loss in which every logit has its own weight, as one vector."""
    model.zero_grad()
    logits = model(images)
    (logits * torch.linspace(-1, 1, logits.numel(), device=logits.device).view_as(logits)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def within(found: dict[str, float], bounds: dict[str, float]) -> Row:
    """Return the errors, if all are within their bounds.

    Raises:
        ValueError: naming those that are not.
    """
    # not `>`, which is false for a value that is not a number
    worse = [
        f"{name} {value:.2g} (bound {bounds[name]:g})"
        for name, value in found.items()
        if not value <= bounds[name]
    ]
    if worse:
        raise ValueError(f"relative errors are too large: {', '.join(worse)}; all: {json.dumps(found)}")
    return dict(found)


def parity(setting: Setting) -> Iterator[Case]:
    """Named models on timm's random weights, against timm's models, both on the device."""
    for name in PARITY[:1] if setting.toy else PARITY:
        yield name, partial(compare_with_timm, name, setting.device)


def compare_with_timm(name: str, device: str) -> Row:
    """Compare logits and gradients of the images with timm's."""
    import timm

    torch.manual_seed(0)
    theirs = randomise(timm.create_model(name))
    ours = create_model(name).eval()
    load_pretrained(ours, theirs.state_dict())
    images = torch.randn(2, 3, 224, 224, device=device)
    found: dict[str, float] = {}
    results = []
    for model in (theirs.to(device), ours.to(device)):
        given = images.clone().requires_grad_()
        logits = model(given)
        logits.square().sum().backward()
        assert given.grad is not None
        results.append((logits, given.grad))
    (want, wanted), (logits, gradient) = results
    found |= {"fp32": relative_error(logits, want), "gradients": relative_error(gradient, wanted)}
    for half, dtype in HALVES.items():
        with torch.inference_mode():
            found[half] = relative_error(deepcopy(ours).to(dtype)(images.to(dtype)), want)
    return within(found, {"fp32": LOGITS, "gradients": GRADIENTS, **dict.fromkeys(HALVES, BF16_MODEL)})


def packing(setting: Setting) -> Iterator[Case]:
    """NaViT on images of different sizes: packed in one sequence against each image alone."""
    for name, dtype in {"fp32": torch.float32, **HALVES}.items():
        yield name, partial(compare_packed, dtype, setting.device)


def compare_packed(dtype: torch.dtype, device: str) -> Row:
    """Compare packed logits and gradients in a precision with those of single images in fp32."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"image_size": 64, "patch_size": 8, "dim": 128, "depth": 3, "heads": 2}
    model = randomise(NaViT(**shape, num_classes=20, mlp_dim=256)).to(device)
    sizes = [(64, 64), (8, 24), (40, 16), (8, 8), (64, 24), (40, 16)]
    images = [torch.randn(3, *size, device=device) for size in sizes]
    want = torch.cat([model(image[None]) for image in images])
    want.square().sum().backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    model.to(dtype)
    query = torch.empty(4, 2, 64, device=device, dtype=dtype)
    attention: Any = next(module for module in model.modules() if isinstance(module, PackedAttention))
    varlen = takes_varlen(query, attention.kernel)
    if device.startswith("cuda") and dtype != torch.float32 and not varlen:
        raise ValueError(
            f"torch {torch.__version__} on this GPU must have attention for variable lengths "
            f"(torch.nn.attention.varlen: {HAS_VARLEN}), and NaViT must take it"
        )
    logits = model([image.to(dtype) for image in images])
    logits.float().square().sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    found = {"logits": relative_error(logits, want), "gradients": relative_error(gradient, wanted)}
    exact = dtype == torch.float32
    bounds = {"logits": LOGITS if exact else BF16_MODEL, "gradients": GRADIENTS if exact else 2 * BF16_MODEL}
    return {**within(found, bounds), "varlen": varlen}


class MixedSizes(nn.Module):
    """A NaViT whose batch of equal images becomes a list of images of different sizes.

    Args:
        model: the NaViT.
        sizes: height and width of each image.
    """

    def __init__(self, model: nn.Module, sizes: list[list[int]]) -> None:
        super().__init__()
        self.model, self.sizes = model, sizes

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of the corners of the images."""
        corners = [image[:, :h, :w] for image, (h, w) in zip(images, self.sizes, strict=False)]
        return self.model(corners)


def navit(setting: Setting) -> Iterator[Case]:
    """Microseconds for a token: NaViT on images of mixed sizes, beside the plain ViT of its width."""
    count, rounds = (2, 1) if setting.toy else (128, 5)
    shape: dict[str, Any] = {"image_size": 256, "patch_size": 16, "num_classes": 1000, "dim": 384, "heads": 6}
    shape |= {"depth": 1 if setting.toy else 12, "mlp_dim": 1536}
    drawn = torch.Generator().manual_seed(0)
    sizes = torch.randint(4, 17, (count, 2), generator=drawn).mul(16).tolist()
    tokens = {"plain": count * 256, "mixed": sum(h * w // 256 for h, w in sizes)}

    def measure(mode: str) -> Row:
        from vit_pytorch import ViT

        models = {"plain": ViT(**shape, pool="mean"), "mixed": MixedSizes(NaViT(**shape), sizes)}
        cell = Cell(mode, "bfloat16", count)
        steps = {
            name: make_step(model, cell, (3, 256, 256), device=setting.device)
            for name, model in models.items()
        }
        return {name: 1000 * milliseconds(step, rounds) / tokens[name] for name, step in steps.items()}

    for mode in ("forward", "train"):
        yield mode, partial(measure, mode)


def milliseconds(step: Callable[[], object], rounds: int) -> float:
    """Return the median of a step's times in this process, after as many steps that are not timed."""
    time_steps(step, rounds)
    return 1000 * median(time_steps(step, rounds))


def memory(setting: Setting) -> Iterator[Case]:
    """Peak memory of a training step: with gradient checkpointing, and against the number of tokens."""

    def measure(batch: int, checkpointing: bool = False, **shape: Any) -> Row:
        model = create_model("vit_small_patch16_224", **shape)
        model.set_grad_checkpointing(checkpointing)
        if setting.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        cell = Cell("train", "bfloat16", batch)
        size = shape.get("image_size", 224)
        make_step(model, cell, (3, size, size), device=setting.device)()
        return {"batch": batch, **shape, "peak_mib": peak_mib(setting.device)}

    batch = 1 if setting.toy else 64
    toy: dict[str, Any] = {"depth": 1} if setting.toy else {}
    yield "kept activations", partial(measure, batch, **toy)
    yield "gradient checkpointing", partial(measure, batch, True, **toy)
    for side in SIDES[:1] if setting.toy else SIDES:
        yield f"{side**2} tokens", partial(measure, 1, image_size=16 * side, depth=2)


def training(setting: Setting) -> Iterator[Case]:
    """Short runs of `vit train` on scikit-learn's digits, with AMP, and with torch.compile."""
    runs = {"bf16-mixed, compiled": ("bf16-mixed", True), "16-mixed": ("16-mixed", False)}
    if setting.toy:
        # a processor has no 16-mixed, and compiling for it takes half a minute
        runs = {"bf16-mixed": ("bf16-mixed", False)}
    for name, (precision, compiled) in runs.items():
        yield name, partial(train, setting, precision, compiled)


def train(setting: Setting, precision: str, compiled: bool) -> Row:
    """Run the command and return what its summary says.

    Raises:
        ValueError: where it fails, or learns nothing.
    """
    epochs = 1 if setting.toy else 15
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "output": f"{folder}/run",
            "epochs": epochs,
            "precision": precision,
            "compile": str(compiled).lower(),
            "accelerator": "cpu" if setting.device == "cpu" else "gpu",
            "logger": "none",
        }
        if setting.toy:
            options |= {"model.depth": 1, "model.dim": 16, "model.mlp_dim": 16}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        start = time.perf_counter()
        ran = subprocess.run(
            [sys.executable, "-m", "vit_pytorch.cli", "train", *arguments], capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
        if ran.returncode:
            raise ValueError(f"vit train left with status {ran.returncode}: {ran.stderr.strip()[-500:]}")
        summary = json.loads(Path(folder, "run", "summary.json").read_text(encoding="utf-8"))
    accuracy = summary["test"]["accuracy"]
    # ten classes
    if not setting.toy and accuracy < 0.5:
        raise ValueError(
            f"test accuracy on the digits must be above 0.5 after {epochs} epochs, got {accuracy}"
        )
    return {
        "seconds": seconds,
        "training_seconds": summary["training_seconds"],
        "epochs": epochs,
        "test_accuracy": accuracy,
        "notices": ran.stderr.strip(),
    }


def pretraining(setting: Setting) -> Iterator[Case]:
    """Steps of MAE and of DINO (two global crops, eight local ones) around ViT-S/16."""
    shape: dict[str, Any] = dict(TINY_VIT) if setting.toy else {}
    batch, rounds, locals_ = (2, 1, 1) if setting.toy else (64, 5, 8)
    classes = 64 if setting.toy else 65536
    side = shape.get("image_size", 224)
    small = 16 if setting.toy else 96
    cell = Cell("train", "bfloat16", batch)

    def mae() -> Row:
        learner = MAE(encoder=create_model("vit_small_patch16_224", num_classes=0, **shape))
        step = make_step(
            learner, cell, (3, side, side), device=setting.device, loss=lambda model, images: model(images)
        )
        return {"batch": batch, "ms": milliseconds(step, rounds), "peak_mib": peak_mib(setting.device)}

    def dino() -> Row:
        encoder = create_model("vit_small_patch16_224", num_classes=0, **shape)
        learner = Dino(
            encoder, image_size=side, num_classes_K=classes, num_local_crops=locals_, local_image_size=small
        )
        crops = torch.randn(locals_, batch, 3, small, small, device=setting.device, dtype=torch.bfloat16)

        def loss(model: nn.Module, images: Tensor) -> Tensor:
            return model([images, images.flip(3), *crops])

        step = make_step(
            learner,
            cell,
            (3, side, side),
            device=setting.device,
            loss=loss,
            after=learner.update_moving_average,
        )
        return {"batch": batch, "ms": milliseconds(step, rounds), "peak_mib": peak_mib(setting.device)}

    yield "MAE", mae
    yield "DINO", dino


def speed(setting: Setting) -> Iterator[Case]:
    """Named models beside timm's, eager and compiled, forward and training, in bf16."""
    models = {"levit_256": 4} if setting.toy else BATCHES
    # on a processor the backend that compiles nothing shows that all can be traced
    backend = "eager" if setting.toy else "inductor"
    for compiled in (None, backend):
        for name, batch in models.items():
            cells = [Cell("forward", "bfloat16", batch), Cell("train", "bfloat16", max(1, batch // 2))]
            for cell in cells[:1] if setting.toy and compiled else cells:
                what = f"{name} {cell.mode} {'compiled' if compiled else 'eager'}"
                yield what, partial(beside_timm, setting, name, cell, compiled)


def beside_timm(setting: Setting, name: str, cell: Cell, backend: str | None) -> Row:
    """Time one cell of a model and of timm's, each in a process of its own, in turn."""
    libraries = ["ours"] if find_spec("timm") is None else ["ours", "timm"]
    options = ["--device", setting.device, *([] if backend is None else ["--backend", backend])]
    workers = {
        library: Worker(
            str(HERE / "worker.py"), name, library, str(torch.get_num_threads()), *options, path=ROOT
        )
        for library in libraries
    }
    try:
        times, answers = time_in_turn(workers, cell, 1 if setting.toy else 7)
    finally:
        for worker in workers.values():
            worker.close()
    row: Row = {**asdict(cell), "parameters": answers["ours"]["parameters"]}
    row["ms"] = {library: 1000 * median(seconds) for library, seconds in times.items()}
    row["images_per_second"] = cell.batch / median(times["ours"])
    row["peak_mib"] = {library: answer["peak_mib"] for library, answer in answers.items()}
    if "timm" in times:
        row["ratio"] = asdict(ratio(times["timm"], times["ours"]))
    else:
        row["timm"] = "not installed"
    return row


# sections in order, with the most seconds that each may take
SECTIONS: dict[str, tuple[Callable[[Setting], Iterator[Case]], float]] = {
    "environment": (environment, 30),
    "contracts": (contracts, 80),
    "packing": (packing, 30),
    "parity": (parity, 40),
    "pretraining": (pretraining, 40),
    "navit": (navit, 30),
    "memory": (memory, 40),
    "training": (training, 120),
    "speed": (speed, 480),
}


def work(section: str, setting: Setting, output: Path) -> None:
    """Run one section in this process; write a line of JSON for each of its rows as soon as it is there."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    cases, _ = SECTIONS[section]
    longest = 0.0
    with output.open("a", encoding="utf-8") as file:
        for name, case in cases(setting):
            start = time.monotonic()
            row: Row = {"section": section, "name": name}
            if setting.seconds_left < longest:
                row["left_out"] = "the time does not suffice"
            else:
                try:
                    row |= case()
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {error}"
            longest = max(longest, time.monotonic() - start)
            print(json.dumps(row), file=file, flush=True)


def run_section(section: str, args: argparse.Namespace, seconds: float, rows: Path) -> tuple[Row | None, str]:
    """Run one section in a process of its own, with the processes that it starts.

    Returns:
        The row that says how it ended before its end, None where it did not; and the end of what it and its
        processes wrote to standard error.
    """
    options = ["--device", args.device, "--section", section, "--seconds", str(seconds)]
    command = [sys.executable, __file__, *options, "--output", str(rows), *(["--toy"] if args.toy else [])]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stderr=errors, start_new_session=True)
        reason = None
        try:
            # the section ends by itself; more than that is something that hangs
            if process.wait(timeout=seconds + 20) != 0:
                reason = f"its process left with status {process.returncode}"
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            reason = f"it hung, and was ended after {seconds + 20:.0f} seconds"
        errors.seek(0)
        said = errors.read().strip()[-4000:]
    return None if reason is None else {"section": section, "name": section, "error": reason}, said


def main() -> int:
    """Run the sections and write their rows; return the status to leave with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="the JSON file to write")
    parser.add_argument("--device", default="cuda", help="where models run; default cuda")
    parser.add_argument("--toy", action="store_true", help="everything at toy size, to try the script itself")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--minutes", type=float, default=7.5, help="time for all sections; default 7.5")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.section:
        setting = Setting(args.device, args.toy, time.monotonic() + args.seconds)
        work(args.section, setting, args.output)
        return 0
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use; --device cpu --toy tries the script without one")
    end = time.monotonic() + 60 * args.minutes
    rows: list[Row] = []
    # of sections in which something failed
    stderr: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for section in args.sections:
            left = min(SECTIONS[section][1], end - time.monotonic() - 20)
            if left <= 0:
                rows.append({"section": section, "name": section, "left_out": "the time does not suffice"})
                continue
            file = Path(folder, section)
            ended, said = run_section(section, args, left, file)
            lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
            found = [*map(json.loads, lines), *([] if ended is None else [ended])]
            for row in found:
                print(json.dumps(row))
            if any("error" in row for row in found):
                stderr[section] = said
            rows += found
    failed = [f"{row['section']}: {row['name']}: {row['error']}" for row in rows if "error" in row]
    left_out = [f"{row['section']}: {row['name']}" for row in rows if "left_out" in row]
    result = {"device": args.device, "toy": args.toy, "rows": rows}
    result |= {"failed": failed, "left_out": left_out, "stderr": stderr}
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} rows in {args.output}; {len(failed)} failed, {len(left_out)} left out")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
