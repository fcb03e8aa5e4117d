"""Checkpoints of the ViT with Keel's norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vit_pytorch.pretrained.rules import NumberedFormat, Rule
from vit_pytorch.pretrained.tables.blocks import UNBIASED
from vit_pytorch.pretrained.tables.vit import BLOCK, OURS, PUBLIC_VIT

# Their names in the rules of the norms of a block.
NORMS = {
    "norm1": "transformer.layers.{i}.0.norm",
    "norm2": "transformer.layers.{i}.1.net.0",
    "post_norm1": "transformer.layers.{i}.2",
    "post_norm2": "transformer.layers.{i}.3",
}


@dataclass(frozen=True, kw_only=True)
class Layers(NumberedFormat):
    """A layout in which attention, feed-forward and norms are lists of their own."""

    def places(self, model: Any) -> dict[str, str]:
        """Number attention and feed-forward of a block; the first layer has no norm behind it."""
        found: dict[str, str] = {}
        for block in range(len(model.blocks)):
            ours = f"transformer.layers.{block}"
            for part in (0, 1):
                layer = 2 * block + part
                found[f"transformer.layers.{layer}."] = f"{ours}.{part}."
                found[f"transformer.post_norms.{layer - 1}."] = f"{ours}.{part + 2}."
        return found


PUBLIC = Layers(
    name="vit-pytorch ViT with Keel",
    marks=("transformer.layers.0.to_out.0.weight",),
    rules=(
        *(
            Rule((f"{BLOCK}.{ours}.weight", f"{BLOCK}.{ours}.bias"), f"{theirs}.weight", UNBIASED)
            for ours, theirs in NORMS.items()
        ),
        *PUBLIC_VIT.rules,
    ),
)

FORMATS = (OURS, PUBLIC)
