"""Compute what large trainings need: operations, memory, network, loading, checkpoints; write one JSON file.

    python benchmarks/scale.py docs/measured/scale.json --folder FOLDER

Operations are counted by torch on models without weights; kept activations are what autograd saves for one
image in bf16. Assumed, not measured, and named in the file: the accelerator's rate and how much of it is
used, the network's rate. Measured here: how fast the training's own functions write a checkpoint into FOLDER
and read it from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vit_pytorch import create_model
from vit_pytorch.dino import Dino
from vit_pytorch.training.checkpoints import read_checkpoint, verify_checkpoint, write_checkpoint

# the dense bf16 rate that the vendor states for an H100 SXM, and the share of it that is assumed to be used
PEAK, UTILISATION = 989e12, 0.4
# bytes a second and process: a network of 400 Gbit/s
NETWORK = 50e9
IMAGENET_22K, BILLION = 14_197_122, 1_000_000_000
GLOBALS, LOCALS, LOCAL_SIZE, LOGITS = 2, 8, 96, 65536


def build(name: str, **overrides: Any) -> Any:
    """Build a model without weights."""
    with torch.device("meta"):
        return create_model(name, **overrides).to(torch.bfloat16)


def operations(run: Callable[[], Any]) -> int:
    """Count the floating-point operations of a function: two for a multiplication with its addition."""
    # fused attention on a processor is not in the counter's table
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def images(size: int) -> Tensor:
    """Return one image without values."""
    return torch.empty(1, 3, size, size, device="meta", dtype=torch.bfloat16)


def counts(model: nn.Module, size: int) -> dict[str, int]:
    """Count the operations of one image, forward alone and with backward."""
    model.train()

    def forward() -> None:
        with torch.no_grad():
            model(images(size))

    return {
        "forward": operations(forward),
        "training": operations(lambda: model(images(size)).sum().backward()),
    }


class FusedAttention(torch.autograd.Function):
    """Stands for a GPU's fused attention, which keeps its inputs and its output, and no weights."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, output)
        return output


def fused(q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Tensor:
    """Return a tensor of the shape that attention has."""
    return FusedAttention.apply(q, k, v)


def kept(model: Any, size: int, *, checkpointing: bool) -> int:
    """Return the bytes that autograd keeps of one image, weights left out."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            found[storage._cdata] = tensor
        return tensor

    model.train().set_grad_checkpointing(checkpointing)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, patch.object(F, "scaled_dot_product_attention", fused):
        model(images(size))
    model.set_grad_checkpointing(False)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def memory(parameters: int, *, average: bool, processes: int, largest: int) -> dict[str, float]:
    """Return the GiB of weights, gradients, AdamW's moments and the average that a process holds.

    Args:
        parameters: of the model.
        average: whether an average of the weights is kept.
        processes: among which FSDP2 shards all of it.
        largest: parameters of the block that FSDP2 has whole at a time; the next one is fetched meanwhile.
    """
    single = 4 * parameters * (5 if average else 4)
    return {
        "one process, or ddp": (single + (0 if processes == 1 else 4 * parameters)) / 2**30,
        "fsdp": (single / processes + 2 * 4 * largest) / 2**30,
    }


def network(parameters: int, processes: int) -> dict[str, dict[str, float]]:
    """Return the bytes that a process sends in a step, and the seconds that takes, by strategy; fp32."""
    share = 4 * parameters * (processes - 1) / processes
    # a sum over all is a reduction to parts and their collection; FSDP2 collects weights twice, too
    sent = {"ddp": 2 * share, "fsdp": 3 * share}
    return {name: {"gb": bytes_ / 1e9, "seconds": bytes_ / NETWORK} for name, bytes_ in sent.items()}


def largest_block(model: nn.Module) -> int:
    """Return the parameters of the largest entry of the module lists."""
    entries = [entry for module in model.modules() if isinstance(module, nn.ModuleList) for entry in module]
    return max(sum(p.numel() for p in entry.parameters()) for entry in entries)


def plan(operations_an_image: float, epoch: int, epochs: int, batch: int, processes: int) -> dict[str, float]:
    """Return steps and times of a training at the assumed rate."""
    rate = PEAK * UTILISATION / operations_an_image
    return {
        "images_per_second_a_device": rate,
        "images_per_second": rate * processes,
        "steps": epoch * epochs // batch,
        "seconds_a_step": batch / processes / rate,
        "days": epoch * epochs / (rate * processes) / 86400,
        "device_hours": epoch * epochs / rate / 3600,
        "exaflops": operations_an_image * epoch * epochs / 1e18,
    }


def supervised() -> dict[str, Any]:
    """ViT-B/16 on ImageNet-22k: 90 epochs, batches of 4096, on 8 and on 32 devices."""
    model = build("vit_base_patch16_224", num_classes=21841)
    parameters = sum(p.numel() for p in model.parameters())
    counted = counts(model, 224)
    found: dict[str, Any] = {"parameters": parameters, "operations_an_image": counted}
    found["kept_mib_an_image"] = {
        "all": kept(model, 224, checkpointing=False) / 2**20,
        "checkpointing": kept(model, 224, checkpointing=True) / 2**20,
    }
    for processes in (8, 32):
        found[f"{processes} devices"] = {
            **plan(counted["training"], IMAGENET_22K, 90, 4096, processes),
            "memory_gib": memory(parameters, average=True, processes=processes, largest=largest_block(model)),
            "network": network(parameters, processes),
        }
    found["checkpoint_gb"] = checkpoint_bytes(parameters, parameters, average=True) / 1e9
    return found


def dino() -> dict[str, Any]:
    """DINO of ViT-L/16 on a billion images, each seen once: batches of 4096, on 64 and on 256 devices."""
    model = build("vit_large_patch16_224", num_classes=0)
    with torch.device("meta"):
        head = Dino(
            create_model("vit_large_patch16_224", num_classes=0),
            image_size=224,
            num_classes_K=LOGITS,
            num_local_crops=LOCALS,
            local_image_size=LOCAL_SIZE,
        )
    learning = sum(p.numel() for p in head.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in head.parameters())
    heads = learning - sum(p.numel() for p in model.parameters())
    large, small = counts(model, 224), counts(model, LOCAL_SIZE)
    # a head is linear layers on one vector of each crop: two operations a weight forward, six in training
    on_heads = 2 * heads * GLOBALS + 6 * heads * (GLOBALS + LOCALS)
    each = {
        "teacher": GLOBALS * large["forward"],
        "student, global crops": GLOBALS * large["training"],
        "student, local crops": LOCALS * small["training"],
        "heads": on_heads,
    }
    total = sum(each.values())
    kept_mib = {
        name: (
            GLOBALS * kept(model, 224, checkpointing=checkpointing)
            + LOCALS * kept(model, LOCAL_SIZE, checkpointing=checkpointing)
        )
        / 2**20
        for name, checkpointing in (("all", False), ("checkpointing", True))
    }
    found: dict[str, Any] = {
        "parameters": learning,
        "with_the_teacher": whole,
        "operations_an_image": {**each, "training": total},
        "kept_mib_an_image": kept_mib,
    }
    for processes in (64, 256):
        found[f"{processes} devices"] = {
            **plan(total, BILLION, 1, 4096, processes),
            "memory_gib": memory(learning, average=True, processes=processes, largest=largest_block(model)),
            "network": network(learning, processes),
        }
    found["checkpoint_gb"] = checkpoint_bytes(whole, learning, average=False) / 1e9
    return found


def checkpoint_bytes(weights: int, learning: int, *, average: bool) -> int:
    """Return the bytes of a checkpoint: weights, AdamW's two moments, the average; all in fp32."""
    return 4 * (weights + 2 * learning + (weights if average else 0))


def checkpoint(folder: Path, megabytes: int = 400) -> dict[str, float]:
    """Measure how fast the training's functions write and verify a checkpoint of random weights."""
    weights = {f"model.{i}": torch.randn(2**20) for i in range(megabytes * 10**6 // (3 * 2**22))}
    moments = {
        i: {"exp_avg": torch.randn(2**20), "exp_avg_sq": torch.rand(2**20)} for i in range(len(weights))
    }
    place = folder / "epoch-0001"
    start = time.perf_counter()
    write_checkpoint({"state_dict": weights, "optimizer_states": [{"state": moments}]}, place)
    written = time.perf_counter()
    read_checkpoint(verify_checkpoint(place))
    read = time.perf_counter()
    size = sum(file.stat().st_size for file in place.iterdir())
    shutil.rmtree(place)
    return {
        "mb": size / 1e6,
        "write_mb_per_second": size / 1e6 / (written - start),
        "verify_and_read_mb_per_second": size / 1e6 / (read - written),
    }


def main() -> None:
    """Compute, measure, and write everything down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path, help="the JSON file to write")
    parser.add_argument("--folder", type=Path, help="where a checkpoint is written; not measured if left out")
    args = parser.parse_args()
    assumed = {"peak_flops": PEAK, "utilisation": UTILISATION, "network_bytes_per_second": NETWORK}
    found: dict[str, Any] = {"assumed": assumed, "vit_b_imagenet_22k": supervised(), "vit_l_dino": dino()}
    if args.folder is not None:
        found["checkpoint_measured"] = checkpoint(args.folder)
    args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
