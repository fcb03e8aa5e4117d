"""Time NaViT on images of mixed sizes: a token beside one of the plain ViT, and beside the public package's.

    python benchmarks/navit.py --public FOLDER

FOLDER holds the public vit-pytorch package (`pip install --no-deps --target FOLDER vit-pytorch`). The plain
ViT of the same width and depth takes a full batch of equal images. Against the public package's two NaViTs
ours has their form and their weights, and logits are compared first. All take turns in one run, each in a
process of its own. Above 1, ours is faster.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timing import Worker
from torch import Tensor, nn

HERE = Path(__file__).parent
COUNT = 24
SIZES = {"image_size": 256, "patch_size": 16, "num_classes": 1000}
SHAPE = {"dim": 384, "depth": 6, "heads": 6, "mlp_dim": 1536}
PUBLIC_FORM = {
    "qkv_bias": False,
    "out_bias": False,
    "head_bias": False,
    "patch_norm": True,
    "pool": "query",
    "norm_eps": 1e-5,
}
# module, class, arguments; ours in the public package's form load its weights
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain": ("vit", "ViT", {"pool": "mean"}),
    "navit": ("na_vit", "NaViT", {}),
    "nested": ("na_vit_nested_tensor", "NaViT", {}),
    "public navit": ("na_vit", "NaViT", {}),
    "public nested": ("na_vit_nested_tensor", "NaViT", {"token_dropout_prob": 0.0}),
    "as public navit": ("na_vit", "NaViT", PUBLIC_FORM),
    "as public nested": (
        "na_vit_nested_tensor",
        "NaViT",
        {**PUBLIC_FORM, "qk_norm": "layer", "pool": {"kind": "query", "residual": False}},
    ),
}


def make_images() -> list[Tensor]:
    """Draw images of 64 to 256 pixels a side."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.randint(4, 17, (COUNT, 2), generator=generator).mul(16).tolist()
    return [torch.randn(3, height, width, generator=generator) for height, width in sides]


def count_tokens(name: str) -> int:
    """Count the tokens that a model takes in one step."""
    if name == "plain":
        return COUNT * 16 * 16
    return sum(image[0].numel() // 256 for image in make_images())


def build(name: str, weights: Path) -> nn.Module:
    """Build a model; the public package's leave their weights for ours."""
    module, architecture, arguments = MODELS[name]
    torch.manual_seed(0)
    model: nn.Module = getattr(import_module(f"vit_pytorch.{module}"), architecture)(
        **SIZES, **SHAPE, **arguments
    )
    if name.startswith("public"):
        torch.save(model.state_dict(), weights / f"{name}.pt")
    elif name.startswith("as public"):
        state = torch.load(weights / f"{name.removeprefix('as ')}.pt")
        import_module("vit_pytorch").load_pretrained(model, state)
    return model


def make_steps(name: str, model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Make the functions that are timed; each gives the logits."""
    images = torch.randn(COUNT, 3, 256, 256) if name == "plain" else make_images()
    labels = torch.arange(COUNT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def forward() -> Tensor:
        model.eval()
        with torch.inference_mode():
            return model(images)

    def train() -> Tensor:
        model.train()
        optimizer.zero_grad()
        logits: Tensor = model(images)
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        return logits

    return {"forward": forward, "train": train}


def work(name: str, weights: Path, threads: int) -> None:
    """Answer requests on standard input until it closes."""
    torch.set_num_threads(threads)
    steps = make_steps(name, build(name, weights))
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        logits = steps[request["mode"]]()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "logits": logits[:, :4].tolist()}), flush=True)


def compare(workers: dict[str, Worker]) -> None:
    """Hold that ours computes what the public package's model does."""
    for name in ("navit", "nested"):
        if f"public {name}" in workers:
            theirs, ours = (
                torch.tensor(workers[who].ask(mode="forward")["logits"])
                for who in (f"public {name}", f"as public {name}")
            )
            print(f"{name}: logits on the public weights differ by {(theirs - ours).abs().max():.1e}")
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def main() -> None:
    """Run the comparison and print a row a mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--public", type=Path, help="folder with the public vit-pytorch package")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default one a core")
    parser.add_argument("--modes", nargs="+", default=["forward", "train"])
    parser.add_argument("--one", nargs=2, metavar=("NAME", "WEIGHTS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        work(args.one[0], Path(args.one[1]), args.threads)
        return
    # not at the top: a process of the public package has another vit_pytorch
    from vit_pytorch.data.loader import usable_cores

    threads = args.threads or usable_cores()
    names = [name for name in MODELS if args.public or "public" not in name]
    pairs = {"navit": "plain", "nested": "plain"}
    pairs |= {name: name.removeprefix("as ") for name in names if name.startswith("as public")}
    with tempfile.TemporaryDirectory() as weights:
        workers: dict[str, Worker] = {}
        for name in names:
            path = args.public if name.startswith("public") else HERE.parent
            options = ("--threads", str(threads), "--one", name, weights)
            workers[name] = Worker(__file__, *options, path=path)
            # the first answer says that the weights are there
            workers[name].ask(mode="forward")
        compare(workers)
        print("| | us a token: " + ", ".join(names) + " | " + " | ".join(pairs) + " |")
        print("|---|---|" + "---|" * len(pairs))
        for mode in args.modes:
            times = measure(workers, mode, args.rounds)
            ratios = [
                median(theirs / ours for theirs, ours in zip(times[pairs[name]], times[name], strict=True))
                for name in pairs
            ]
            costs = ", ".join(f"{1e6 * median(times[name]):.0f}" for name in names)
            print(
                f"| {mode} | {costs} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |", flush=True
            )
        for worker in workers.values():
            worker.close()


def measure(workers: dict[str, Worker], mode: str, rounds: int) -> dict[str, list[float]]:
    """Give each model's seconds a token in every round; neighbours in time are compared."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(-1, rounds):
        order = list(workers) if turn % 2 else list(workers)[::-1]
        for name in order:
            seconds = workers[name].ask(mode=mode)["seconds"] / count_tokens(name)
            if turn >= 0:
                times[name].append(seconds)
    return times


if __name__ == "__main__":
    main()
