"""Checkpoints of EdgeNeXt."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE

BLOCK = "stages.{i}.blocks.{j}"


def _layout(
    name: str, marks: tuple[str, ...], block: str, names: dict[str, str], others: tuple[Rule, ...]
) -> Format:
    """Return a layout.

    Args:
        name: what it is called.
        marks: its names in a first block of either kind.
        block: its name of a block.
        names: its names of what timm calls `conv_dw`, `mlp.fc1` and `mlp.fc2`.
        others: what is outside of the blocks.
    """
    waves = f"{block}.pos_embd.token_projection"
    return Format(
        name=name,
        marks=marks,
        rules=(
            *others,
            Rule(f"{BLOCK}.conv.layers.0.{{p}}", f"{block}.{names['conv']}.{{p}}"),
            Rule(f"{BLOCK}.norm.{{p}}", f"{block}.norm.{{p}}"),
            Rule(f"{BLOCK}.scale.gamma", f"{block}.gamma"),
            Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", f"{block}.{names['to_hidden']}.{{p}}"),
            Rule(f"{BLOCK}.feedforward.to_out.{{p}}", f"{block}.{names['to_out']}.{{p}}"),
            Rule(f"{BLOCK}.split.convs.{{k}}.layers.0.{{p}}", f"{block}.convs.{{k}}.{{p}}"),
            Rule(f"{BLOCK}.positions.proj.weight", f"{waves}.weight", POINTWISE),
            Rule(f"{BLOCK}.positions.proj.bias", f"{waves}.bias"),
            Rule(f"{BLOCK}.norm1.{{p}}", f"{block}.norm_xca.{{p}}"),
            Rule(f"{BLOCK}.scale1.gamma", f"{block}.gamma_xca"),
            Rule(f"{BLOCK}.attention.kernel.temperature", f"{block}.xca.temperature"),
            Rule(f"{BLOCK}.attention.to_qkv.{{p}}", f"{block}.xca.qkv.{{p}}"),
            Rule(f"{BLOCK}.attention.to_out.{{p}}", f"{block}.xca.proj.{{p}}"),
            Rule(f"{BLOCK}.norm2.{{p}}", f"{block}.norm.{{p}}"),
            Rule(f"{BLOCK}.scale2.gamma", f"{block}.gamma"),
        ),
    )


OURS = own_format("stem.0.layers.0.weight")
TIMM = _layout(
    "timm",
    ("stages.0.blocks.0.conv_dw.weight", "stages.0.blocks.0.norm_xca.weight"),
    BLOCK,
    {"conv": "conv_dw", "to_hidden": "mlp.fc1", "to_out": "mlp.fc2"},
    (
        Rule("stem.0.layers.0.{p}", "stem.0.{p}"),
        Rule("stem.1.{p}", "stem.1.{p}"),
        # Halving by the first block's convolution comes before it here.
        Rule("stages.{i}.down.layers.0.{p}", "stages.{i}.blocks.0.conv_dw.{p}"),
        Rule("stages.{i}.down.0.{p}", "stages.{i}.downsample.0.{p}"),
        Rule("stages.{i}.down.1.layers.0.{p}", "stages.{i}.downsample.1.{p}"),
        Rule("fc_norm.{p}", "head.norm.{p}"),
        Rule("head.{p}", "head.fc.{p}"),
    ),
)
AUTHORS = _layout(
    "edgenext",
    ("stages.0.0.dwconv.weight", "stages.0.0.norm_xca.weight"),
    "stages.{i}.{j}",
    {"conv": "dwconv", "to_hidden": "pwconv1", "to_out": "pwconv2"},
    (
        Rule("stem.0.layers.0.{p}", "downsample_layers.0.0.{p}"),
        Rule("stem.1.{p}", "downsample_layers.0.1.{p}"),
        *(Rule(f"stages.{i}.down.0.{{p}}", f"downsample_layers.{i}.0.{{p}}") for i in range(1, 8)),
        *(Rule(f"stages.{i}.down.1.layers.0.{{p}}", f"downsample_layers.{i}.1.{{p}}") for i in range(1, 8)),
        Rule("fc_norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, TIMM, AUTHORS)
