"""What is timed: named models, each beside the same model in other libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import nn

Builder = Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A named model of ours and the same architecture, at the same size, in other libraries.

    A library is imported when its model is built, since one of them lives under this package's own
    import name and each runs in a process of its own.

    Args:
        timm: timm's name of the model, where timm has it.
        public: where the public vit-pytorch has it, its module, its class and the arguments.
        others: builders of further libraries' models, by library.
        image_size: (channels, height, width) of the input.
    """

    timm: str | None = None
    public: tuple[str, str, Mapping[str, Any]] | None = None
    others: Mapping[str, Builder] = field(default_factory=dict)
    image_size: tuple[int, ...] = (3, 224, 224)

    @property
    def libraries(self) -> list[str]:
        """Names of the libraries that have the model, ours first."""
        timm = ["timm"] if self.timm else []
        public = ["public vit-pytorch"] if self.public else []
        return ["ours", *timm, *self.others, *public]

    def build(self, name: str, library: str) -> nn.Module:
        """Build the model of this name as a library does."""
        if library == "ours":
            return import_module("vit_pytorch").create_model(name)
        if library == "timm":
            return import_module("timm").create_model(self.timm)
        if library == "public vit-pytorch":
            assert self.public is not None
            module, architecture, arguments = self.public
            return getattr(import_module(f"vit_pytorch.{module}"), architecture)(**arguments)
        return self.others[library]()


def _torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536
    )


IMAGENET = {"image_size": 224, "num_classes": 1000}
SMALL = {"dim": 384, "depth": 12, "heads": 6, "dim_head": 64, "mlp_dim": 1536}

CASES = {
    "vit_small_patch16_224": Case(
        timm="vit_small_patch16_224",
        others={"torchvision": _torchvision_vit},
        public=("vit", "ViT", {**IMAGENET, **SMALL, "patch_size": 16}),
    ),
    # On images of mixed sizes, its reason to be, NaViT has a benchmark of its own: navit.py.
    "naflexvit_base_patch16_parfac_gap": Case(
        timm="naflexvit_base_patch16_parfac_gap", image_size=(3, 256, 256)
    ),
}
