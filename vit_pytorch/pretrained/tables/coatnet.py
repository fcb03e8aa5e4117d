"""Checkpoints of CoAtNet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from vit_pytorch.layers.conv import MBConv
from vit_pytorch.pretrained.rules import NumberedFormat, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE
from vit_pytorch.pretrained.tables.mbconv import (
    BY_HEAD,
    TIMM_MBCONV,
    around_rules,
    bias_rules,
    convnext_rules,
    layer_rules,
    mbconv_rules,
    scale_rules,
)

BLOCK = "stages.{i}.blocks.{j}"
DEPTHWISE = f"{BLOCK}.bottleneck.depthwise.layers.2"
BY_HEAD_POINTWISE = Transform(
    lambda parts, attention: BY_HEAD.read([parts[0].flatten(1)], attention),
    lambda tensor, attention: POINTWISE.write(BY_HEAD.write(tensor, attention)[0], attention),
)
# A convolution of theirs has norms under the names of a transformer block's.
OF_CONV = {name: f"conv_{name}" for name in ("norm1", "norm2")}


class TimmCoAtNet(NumberedFormat):
    """timm's layout, in which one name stands for several parts, by the kind of the block."""

    def places(self, model: Any) -> dict[str, str]:
        """Return, by the beginning of their names of a part, that of its names in the rules."""
        found = {}
        for i, stage in enumerate(model.stages):
            for j, block in enumerate(stage.blocks):
                name = f"stages.{i}.blocks.{j}"
                if isinstance(block, MBConv):
                    found.update({f"{name}.{theirs}.": f"{name}.{part}." for theirs, part in OF_CONV.items()})
                    # squeeze-and-excitation stands between the convolution and its norm
                    if isinstance(block.get_submodule("bottleneck.depthwise.layers.2"), nn.Sequential):
                        found[f"{name}.conv2_kxk."] = f"{name}.conv2_gated."
        return found


# of an MBConv, of a ConvNeXt block, of a transformer block
OURS = replace(
    own_format("stages.0.blocks.0.bottleneck.expand.weight"),
    marks=tuple(
        f"stages.0.blocks.0.{name}.weight"
        for name in ("bottleneck.expand", "conv.layers.0", "attention.attention.to_qkv")
    ),
)
TIMM = TimmCoAtNet(
    name="timm",
    marks=tuple(f"stages.0.blocks.0.{name}.weight" for name in ("conv1_1x1", "conv_dw", "attn.qkv")),
    rules=(
        *around_rules(),
        *mbconv_rules(BLOCK, BLOCK, [OF_CONV.get(name, name) for name in TIMM_MBCONV]),
        Rule(f"{DEPTHWISE}.0.{{p}}", f"{BLOCK}.conv2_gated.{{p}}"),
        *layer_rules(f"{DEPTHWISE}.1.squeeze", f"{BLOCK}.se_early.fc1", "1 x 1"),
        *layer_rules(f"{DEPTHWISE}.1.excite", f"{BLOCK}.se_early.fc2", "1 x 1"),
        # the feed-forward of transformer blocks, too
        *convnext_rules(BLOCK, BLOCK),
        Rule(f"{BLOCK}.norm1.{{name}}", f"{BLOCK}.norm1.{{name}}"),
        Rule(f"{BLOCK}.norm2.{{name}}", f"{BLOCK}.norm2.{{name}}"),
        Rule(f"{BLOCK}.attention.attention.to_qkv.weight", f"{BLOCK}.attn.qkv.weight", BY_HEAD_POINTWISE),
        Rule(f"{BLOCK}.attention.attention.to_qkv.bias", f"{BLOCK}.attn.qkv.bias", BY_HEAD),
        *layer_rules(f"{BLOCK}.attention.attention.to_out", f"{BLOCK}.attn.proj", "1 x 1"),
        *bias_rules(f"{BLOCK}.attention.bias", f"{BLOCK}.attn.rel_pos"),
        *scale_rules(BLOCK, BLOCK),
        Rule("norm.{name}", "norm.{name}"),
    ),
)
FORMATS = (OURS, TIMM)
