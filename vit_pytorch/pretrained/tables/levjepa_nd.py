"""Checkpoints of the encoders of arrays that LeVJEPA trains."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, Transform
from vit_pytorch.pretrained.tables.na_vit import PIXELS, QUERY
from vit_pytorch.pretrained.tables.vit import BLOCK, CONTRACT, HIDDEN, OURS, OUT, QKV

# Patches are flattened in the order (channel, axes of the patch) there, and with the channel last here.
CHANNELS_FIRST = Transform(
    lambda parts, embed: parts[0].unflatten(1, (-1, *embed.grid.patch)).movedim(1, -1).flatten(1),
    lambda tensor, embed: (tensor.unflatten(1, (*embed.grid.patch, -1)).movedim(-1, 1).flatten(1),),
)
_LAYER = "transformer.layers.{i}"
PUBLIC = Format(
    name="vit-pytorch encoder of arrays",
    marks=("to_patch_embedding.3.weight",),
    unused=("rotary_emb.scales",),
    rules=(
        Rule("prefix.class_token", "cls_token", QUERY),
        Rule("patch_embed.norm_in.weight", "to_patch_embedding.1.weight", PIXELS),
        Rule("patch_embed.proj.weight", "to_patch_embedding.2.weight", CHANNELS_FIRST),
        Rule("patch_embed.proj.bias", "to_patch_embedding.2.bias"),
        Rule("patch_embed.norm_out.weight", "to_patch_embedding.3.weight"),
        Rule(f"{BLOCK}.norm1.weight", f"{_LAYER}.0.norm.weight"),
        Rule(f"{QKV}.weight", f"{_LAYER}.0.to_qkv.weight"),
        Rule(f"{OUT}.weight", f"{_LAYER}.0.to_out.0.weight"),
        Rule(f"{BLOCK}.norm2.weight", f"{_LAYER}.1.net.0.weight"),
        Rule(f"{HIDDEN}.{{p}}", f"{_LAYER}.1.net.1.{{p}}"),
        Rule(f"{CONTRACT}.{{p}}", f"{_LAYER}.1.net.4.{{p}}"),
        Rule("norm.weight", "norm.weight"),
    ),
)

FORMATS = (OURS, PUBLIC)
