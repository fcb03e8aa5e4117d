"""Checkpoints of MobileViTV2."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Reference, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE
from vit_pytorch.pretrained.tables.mobile_vit import BLOCK, LAYER, batch_normed, pointwise, timm_bottleneck

_LAYER = "stages.{i}.1.transformer.{j}"

OURS = own_format("stages.2.blocks.0.transformer.0.attention.to_qkv.weight")
TIMM = Format(
    name="timm",
    marks=("stages.2.1.transformer.0.attn.qkv_proj.weight",),
    rules=(
        *batch_normed("stem", "stem", "conv", "bn"),
        *timm_bottleneck("stages.{i}.down", "stages.{i}.0"),
        *timm_bottleneck("stages.1.blocks.0", "stages.1.1"),
        *batch_normed(f"{BLOCK}.local", "stages.{i}.1.conv_kxk", "conv", "bn"),
        Rule(f"{BLOCK}.widen.weight", "stages.{i}.1.conv_1x1.weight", POINTWISE),
        Rule(f"{LAYER}.norm1.layers.0.{{p}}", f"{_LAYER}.norm1.{{p}}"),
        Rule(f"{LAYER}.attention.to_qkv.weight", f"{_LAYER}.attn.qkv_proj.weight", POINTWISE),
        Rule(f"{LAYER}.attention.to_qkv.bias", f"{_LAYER}.attn.qkv_proj.bias"),
        Rule(f"{LAYER}.attention.to_out.weight", f"{_LAYER}.attn.out_proj.weight", POINTWISE),
        Rule(f"{LAYER}.attention.to_out.bias", f"{_LAYER}.attn.out_proj.bias"),
        Rule(f"{LAYER}.norm2.layers.0.{{p}}", f"{_LAYER}.norm2.{{p}}"),
        Rule(f"{LAYER}.feedforward.to_hidden.weight", f"{_LAYER}.mlp.fc1.weight", POINTWISE),
        Rule(f"{LAYER}.feedforward.to_hidden.bias", f"{_LAYER}.mlp.fc1.bias"),
        Rule(f"{LAYER}.feedforward.to_out.weight", f"{_LAYER}.mlp.fc2.weight", POINTWISE),
        Rule(f"{LAYER}.feedforward.to_out.bias", f"{_LAYER}.mlp.fc2.bias"),
        Rule(f"{BLOCK}.norm.layers.0.{{p}}", "stages.{i}.1.norm.{p}"),
        *pointwise(f"{BLOCK}.narrow", "stages.{i}.1.conv_proj", "conv", "bn"),
        Rule("head.{p}", "head.fc.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
REFERENCES = (
    Reference(
        format="timm",
        name="timm.create_model",
        theirs={"model_name": "mobilevitv2_050", "num_classes": 7},
        ours={"image_size": 64, "width": 0.5, "num_classes": 7},
    ),
)
