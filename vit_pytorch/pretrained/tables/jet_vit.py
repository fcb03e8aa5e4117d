"""Checkpoints of the ViT with a choice of attentions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.vit import BLOCK, CONTRACT, HIDDEN, PATCHES, ROWS

_OPTIONS = "transformer.layers.{i}.0.options"


@dataclass(frozen=True, kw_only=True)
class Options(Format):
    """A layout with weights of all kinds of attention in each layer, of which a model has some."""

    def read(self, state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
        """Translate a state dict to our names; weights of kinds that the model has not play no role."""
        kinds = [set(block.attention) for block in model.blocks]  # type: ignore[union-attr]
        found = {name: re.match(r"transformer\.layers\.(\d+)\.0\.options\.(\w+)", name) for name in state}
        unused = {
            name
            for name, match in found.items()
            if match is not None and int(match[1]) < len(kinds) and match[2] not in kinds[int(match[1])]
        }
        rest, others = super().read(
            {key: tensor for key, tensor in state.items() if key not in unused}, model
        )
        return rest, [*others, *sorted(unused)]


PUBLIC = Options(
    name="vit-pytorch JetViT",
    marks=("transformer.layers.0.1.net.1.weight",),
    rules=(
        Rule("patch_embed.norm_in.{p}", "to_patch_embedding.1.{p}"),
        Rule("patch_embed.proj.weight", "to_patch_embedding.2.weight", PATCHES),
        Rule("patch_embed.proj.bias", "to_patch_embedding.2.bias"),
        Rule("patch_embed.norm_out.{p}", "to_patch_embedding.3.{p}"),
        Rule("positions.table", "pos_embedding", ROWS),
        *(
            Rule(f"{BLOCK}.norm1.{kind}.{{p}}", f"{_OPTIONS}.{kind}.norm.{{p}}")
            for kind in ("FA", "LA", "WA")
        ),
        *(
            rule
            for ours, theirs in (
                ("FA", "FA"),
                ("LA", "LA"),
                ("WA.attention", "WA"),
            )
            for rule in (
                Rule(f"{BLOCK}.attention.{ours}.to_qkv.weight", f"{_OPTIONS}.{theirs}.to_qkv.weight"),
                Rule(f"{BLOCK}.attention.{ours}.to_out.{{p}}", f"{_OPTIONS}.{theirs}.to_out.0.{{p}}"),
            )
        ),
        *(
            Rule(
                f"{BLOCK}.attention.LA.to_kernels.{number}.{{p}}",
                f"{_OPTIONS}.LA.dynamic_conv.mlp.{number}.{{p}}",
            )
            for number in (0, 2)
        ),
        Rule(f"{BLOCK}.attention.WA.bias.table", f"{_OPTIONS}.WA.rel_pos_bias.weight"),
        Rule(f"{BLOCK}.norm2.{{p}}", "transformer.layers.{i}.1.net.0.{p}"),
        Rule(f"{HIDDEN}.{{p}}", "transformer.layers.{i}.1.net.1.{p}"),
        Rule(f"{CONTRACT}.{{p}}", "transformer.layers.{i}.1.net.4.{p}"),
        Rule("norm.{p}", "transformer.norm.{p}"),
        Rule("head.{p}", "mlp_head.{p}"),
    ),
)

FORMATS = (own_format("blocks.0.norm2.weight"), PUBLIC)
