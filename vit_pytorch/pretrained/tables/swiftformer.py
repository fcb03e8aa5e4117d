"""Checkpoints of SwiftFormer."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE
from vit_pytorch.pretrained.tables.pit import HeadFormat

STAGES = range(8)
# Factors of a map whose channels are first.
SCALE = Transform(
    lambda parts, module: parts[0].permute(1, 2, 0), lambda tensor, module: (tensor.permute(2, 0, 1),)
)
COLUMN = Transform(lambda parts, module: parts[0].mT, lambda tensor, module: (tensor.mT,))


def _convs(ours: str, theirs: str, scale: str) -> tuple[Rule, ...]:
    """Return the rules of a depth-wise convolution and what follows it."""
    return (
        Rule(f"{ours}.conv.layers.0.conv.{{p}}", f"{theirs}.dwconv.{{p}}"),
        Rule(f"{ours}.conv.layers.0.norm.{{name}}", f"{theirs}.norm.{{name}}"),
        *_pointwise(f"{ours}.feedforward.to_hidden", f"{theirs}.pwconv1"),
        *_pointwise(f"{ours}.feedforward.to_out", f"{theirs}.pwconv2"),
        Rule(f"{ours}.scale.gamma", f"{theirs}.layer_scale{scale}", SCALE),
    )


def _pointwise(ours: str, theirs: str) -> tuple[Rule, Rule]:
    return Rule(f"{ours}.weight", f"{theirs}.weight", POINTWISE), Rule(f"{ours}.bias", f"{theirs}.bias")


def _layout(name: str, mark: str, names: dict[str, str]) -> HeadFormat:
    """Return a layout.

    Args:
        name: what it is called.
        mark: a name of it.
        names: its names of the stem; of a block and of what halves the map, from the number of the stage,
            `stage`, twice that, `double`, and one less, `odd`; of what follows the factors' names; of the
            projection within attention and of the classifier that learns from a teacher.
    """
    rules = []
    for k in range(2):
        rules.append(Rule(f"stem.layers.{k}.conv.{{p}}", f"{names['stem']}.{3 * k}.{{p}}"))
        rules.append(Rule(f"stem.layers.{k}.norm.{{name}}", f"{names['stem']}.{3 * k + 1}.{{name}}"))
    for i in STAGES:
        numbers = {"stage": i, "double": 2 * i, "odd": 2 * i - 1}
        ours, theirs = f"stages.{i}.blocks.{{j}}", names["block"].format(**numbers, j="{j}")
        down, halves = f"stages.{i}.down.layers.0", names["down"].format(**numbers)
        rules += [
            Rule(f"{down}.conv.{{p}}", f"{halves}.proj.{{p}}"),
            Rule(f"{down}.norm.{{name}}", f"{halves}.norm.{{name}}"),
            *_convs(ours, theirs, names["scale"]),
            *_convs(f"{ours}.local", f"{theirs}.local_representation", names["scale"]),
            Rule(f"{ours}.attention.to_q.{{p}}", f"{theirs}.attn.to_query.{{p}}"),
            Rule(f"{ours}.attention.to_k.{{p}}", f"{theirs}.attn.to_key.{{p}}"),
            Rule(f"{ours}.attention.to_scores.weight", f"{theirs}.attn.w_g", COLUMN),
            Rule(f"{ours}.attention.project.{{p}}", f"{theirs}.attn.{names['proj']}.{{p}}"),
            Rule(f"{ours}.attention.to_out.{{p}}", f"{theirs}.attn.final.{{p}}"),
            Rule(f"{ours}.feedforward.0.{{name}}", f"{theirs}.linear.norm1.{{name}}"),
            *_pointwise(f"{ours}.feedforward.1.to_hidden", f"{theirs}.linear.fc1"),
            *_pointwise(f"{ours}.feedforward.1.to_out", f"{theirs}.linear.fc2"),
            *(
                Rule(f"{ours}.scale{k}.gamma", f"{theirs}.layer_scale_{k}{names['scale']}", SCALE)
                for k in (1, 2)
            ),
        ]
    return HeadFormat(
        name=name,
        marks=(mark,),
        rules=(
            *rules,
            Rule("norm.{name}", "norm.{name}"),
            Rule("head.{p}", "head.{p}"),
            Rule("head.classifier.{p}", "head.{p}"),
            Rule("head.distilled.{p}", f"{names['distilled']}.{{p}}"),
        ),
    )


OURS = own_format("stem.layers.0.conv.weight")
TIMM = _layout(
    "timm",
    "stem.0.weight",
    {
        "stem": "stem",
        "block": "stages.{stage}.blocks.{j}",
        "down": "stages.{stage}.downsample",
        "scale": ".gamma",
        "proj": "proj",
        "distilled": "head_dist",
    },
)
AUTHORS = _layout(
    "SwiftFormer",
    "patch_embed.0.weight",
    {
        "stem": "patch_embed",
        "block": "network.{double}.{j}",
        "down": "network.{odd}",
        "scale": "",
        "proj": "Proj",
        "distilled": "dist_head",
    },
)
FORMATS = (OURS, TIMM, AUTHORS)
