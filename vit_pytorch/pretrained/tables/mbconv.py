"""What MaxViT's and CoAtNet's formats share: stem, convolutional blocks, biases of timm's own attention."""

from __future__ import annotations

from collections.abc import Sequence

from vit_pytorch.pretrained.rules import Rule, Transform
from vit_pytorch.pretrained.tables.blocks import POINTWISE

# Queries, keys and values of a head are neighbours there; ours are those of all heads.
BY_HEAD = Transform(
    lambda parts, attention: parts[0].unflatten(0, (attention.heads, 3, -1)).transpose(0, 1).flatten(0, 2),
    lambda tensor, attention: (tensor.unflatten(0, (3, attention.heads, -1)).transpose(0, 1).flatten(0, 2),),
)
# Layers of an MBConv, and what kind of rule carries them (`layer_rules`).
MBCONV = (
    ("shortcut.1", "1 x 1"),
    ("norm.layers.0", "{name}"),
    ("bottleneck.expand", "1 x 1"),
    ("bottleneck.depthwise.layers.0", "{name}"),
    ("bottleneck.depthwise.layers.2", "{p}"),
    ("bottleneck.depthwise.layers.3", "{name}"),
    ("bottleneck.depthwise.layers.5.squeeze", "1 x 1"),
    ("bottleneck.depthwise.layers.5.excite", "1 x 1"),
    ("bottleneck.project", "1 x 1"),
)
TIMM_MBCONV = (
    *("shortcut.expand", "pre_norm", "conv1_1x1", "norm1", "conv2_kxk", "norm2"),
    *("se.fc1", "se.fc2", "conv3_1x1"),
)
AROUND = (
    ("stem.layers.0", "{p}"),
    ("stem.layers.1", "{name}"),
    ("stem.layers.3", "{p}"),
    ("fc_norm", "{p}"),
    ("pre_logits.0", "{p}"),
    ("head", "{p}"),
)
TIMM_AROUND = ("stem.conv1", "stem.norm1", "stem.conv2", "head.norm", "head.pre_logits.fc", "head.fc")


def layer_rules(ours: str, theirs: str, kind: str) -> tuple[Rule, ...]:
    """Return the rules of a layer.

    Args:
        kind: "{p}" for weight and bias, "{name}" for all that a norm has, "1 x 1" for a linear layer of ours
            that is a convolution there.
    """
    if kind == "1 x 1":
        return Rule(f"{ours}.weight", f"{theirs}.weight", POINTWISE), Rule(f"{ours}.bias", f"{theirs}.bias")
    return (Rule(f"{ours}.{kind}", f"{theirs}.{kind}"),)


def mbconv_rules(ours: str, theirs: str, names: Sequence[str] = TIMM_MBCONV) -> tuple[Rule, ...]:
    """Return the rules of an MBConv.

    Args:
        names: their names of its layers, in the order of `MBCONV`.
    """
    named = zip(MBCONV, names, strict=True)
    return tuple(
        rule
        for (part, kind), name in named
        for rule in layer_rules(f"{ours}.{part}", f"{theirs}.{name}", kind)
    )


def convnext_rules(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rules of what a ConvNeXt block of timm's has and an MBConv has not."""
    return (
        Rule(f"{ours}.conv.layers.0.{{p}}", f"{theirs}.conv_dw.{{p}}"),
        Rule(f"{ours}.norm.{{p}}", f"{theirs}.norm.{{p}}"),
        *layer_rules(f"{ours}.feedforward.to_hidden", f"{theirs}.mlp.fc1", "1 x 1"),
        *layer_rules(f"{ours}.feedforward.to_out", f"{theirs}.mlp.fc2", "1 x 1"),
        Rule(f"{ours}.scale.gamma", f"{theirs}.ls.gamma"),
    )


def around_rules(names: Sequence[str] = TIMM_AROUND) -> tuple[Rule, ...]:
    """Return the rules of the stem and the classifier.

    Args:
        names: their names of the layers, in the order of `AROUND`.
    """
    named = zip(AROUND, names, strict=True)
    return tuple(rule for (ours, kind), name in named for rule in layer_rules(ours, name, kind))


def bias_rules(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rules of biases of offsets, in a table or computed by a network."""
    return (
        Rule(f"{ours}.table", f"{theirs}.relative_position_bias_table"),
        *(
            Rule(f"{ours}.network.{index}.{{p}}", f"{theirs}.mlp.fc{1 + index // 2}.{{p}}")
            for index in (0, 2)
        ),
    )


def scale_rules(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rules of the LayerScale of both branches of a block."""
    return tuple(Rule(f"{ours}.scale{i}.gamma", f"{theirs}.ls{i}.gamma") for i in (1, 2))
