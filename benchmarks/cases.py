"""What is timed: for each case, the same model as each library builds it.

A builder imports its library inside, since one of them lives under this package's own import name
and each runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

Builder = Callable[[], nn.Module]


@dataclass(frozen=True)
class Case:
    """A model in several libraries.

    Args:
        builders: by library; `ours` is among them.
        image_size: (channels, height, width) of the input.
    """

    builders: dict[str, Builder]
    image_size: tuple[int, ...] = field(default=(3, 224, 224))


def _ours() -> nn.Module:
    from vit_pytorch import create_model

    return create_model("vit_small_patch16_224")


def _timm() -> nn.Module:
    import timm

    return timm.create_model("vit_small_patch16_224")


def _torchvision() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536
    )


def _public() -> nn.Module:
    from vit_pytorch import ViT

    return ViT(
        image_size=224, patch_size=16, num_classes=1000, dim=384, depth=12, heads=6, mlp_dim=1536, dim_head=64
    )


CASES = {
    "vit_small_patch16_224": Case(
        {"ours": _ours, "timm": _timm, "torchvision": _torchvision, "public vit-pytorch": _public}
    ),
}
