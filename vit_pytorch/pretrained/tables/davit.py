"""Checkpoints of DaViT, and of Florence-2's image encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vit_pytorch.pretrained.rules import Format, Rule, Transform, own_format

BLOCK = "stages.{i}.blocks.{j}"
# The parts of a block of ours, and what stands before their names in both.
PARTS = (
    *("positions1.conv", "norm1", "attention.attention.to_qkv", "attention.attention.to_out"),
    *("positions2.conv", "norm2", "feedforward.to_hidden", "feedforward.to_out"),
)
KINDS = ("spatial", "channel")
NAMED = ("spatial_block", "channel_block")
LATER_STAGES = range(1, 8)
# Initial values of the norm after pooling.
NO_NORM = {"fc_norm.weight": 1.0, "fc_norm.bias": 0.0}


def _shift(attention: Any, tensor: Tensor) -> int:
    """Return by how many rows theirs are before ours: a third where they call the values queries."""
    return 0 if attention is None or attention.kernel.per_token else len(tensor) // 3


# The authors' code names what the paper calls queries, keys and values so: keys, values and queries; that of
# Florence-2, which scales by the number of cells, as the paper does.
CHANNEL_QKV = Transform(
    lambda parts, attention: parts[0].roll(-_shift(attention, parts[0]), 0),
    lambda tensor, attention: (tensor.roll(_shift(attention, tensor), 0),),
)


class EncoderFormat(Format):
    """A layout of Florence-2, which takes the last map as it is: the norm after pooling does nothing."""

    def read(self, state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
        """Translate a state dict to our names; see `Format.read`."""
        found, unused = super().read(state, model)
        norm = {name: torch.full_like(model.get_parameter(name), value) for name, value in NO_NORM.items()}
        return {**found, **norm}, unused

    def write(self, state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Translate our state dict to this format; see `Format.write`."""
        if any(not (state[name] == value).all() for name, value in NO_NORM.items()):
            raise ValueError(
                f"the format of {self.name} has no norm after pooling, and the model's is trained"
            )
        return super().write({name: tensor for name, tensor in state.items() if name not in NO_NORM}, model)


def _blocks(theirs: Sequence[str], names: Callable[[str], Sequence[str]]) -> tuple[Rule, ...]:
    """Return the rules of the blocks.

    Args:
        theirs: their names of a block with attention within windows, and of one between channels.
        names: returns their names of `PARTS`, by what Florence-2 calls the attention.
    """
    rules = []
    for kind, block, attention in zip(KINDS, theirs, ("window_attn", "channel_attn"), strict=True):
        for part, name in zip(PARTS, names(attention), strict=True):
            qkv = kind == "channel" and part.endswith("to_qkv")
            ours = f"{BLOCK}.{kind}.{part}.{{p}}"
            rules.append(Rule(ours, f"{block}.{name}.{{p}}", *([CHANNEL_QKV] if qkv else [])))
    return tuple(rules)


def _downs(theirs: str, conv: str) -> tuple[Rule, ...]:
    """Return the rules of what precedes the blocks, the stem among them.

    Args:
        theirs: their names of it, without the number of the stage.
        conv: their name of its convolution.
    """
    return (
        Rule("stem.0.layers.0.{p}", f"{theirs}.0.{conv}.{{p}}"),
        Rule("stem.1.{p}", f"{theirs}.0.norm.{{p}}"),
        *(Rule(f"stages.{i}.down.norm.{{p}}", f"{theirs}.{i}.norm.{{p}}") for i in LATER_STAGES),
        *(Rule(f"stages.{i}.down.conv.layers.0.{{p}}", f"{theirs}.{i}.{conv}.{{p}}") for i in LATER_STAGES),
    )


def _timm(name: str, kinds: Sequence[str]) -> Format:
    """Return timm's layout.

    Args:
        name: what it is called.
        kinds: names of the two blocks of a pair.
    """
    names = ("cpe1.proj", "norm1", "attn.qkv", "attn.proj", "cpe2.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return Format(
        name=name,
        marks=(f"stages.0.blocks.0.{kinds[0]}.cpe1.proj.weight",),
        rules=(
            Rule("stem.0.layers.0.{p}", "stem.conv.{p}"),
            Rule("stem.1.{p}", "stem.norm.{p}"),
            Rule("stages.{i}.down.norm.{p}", "stages.{i}.downsample.norm.{p}"),
            Rule("stages.{i}.down.conv.layers.0.{p}", "stages.{i}.downsample.conv.{p}"),
            *_blocks([f"{BLOCK}.{kind}" for kind in kinds], lambda _: names),
            Rule("fc_norm.{p}", "head.norm.{p}"),
            Rule("head.{p}", "head.fc.{p}"),
        ),
    )


OURS = own_format("stages.0.blocks.0.spatial.positions1.conv.weight")
TIMM = _timm("timm", ("0", "1"))
TIMM_FLORENCE = _timm("timm Florence-2", NAMED)
AUTHORS = Format(
    name="davit",
    marks=("main_blocks.0.0.0.cpe.0.proj.weight",),
    rules=(
        *_downs("patch_embeds", "proj"),
        *_blocks(
            [f"main_blocks.{{i}}.{{j}}.{k}" for k in range(2)],
            lambda _: (
                *("cpe.0.proj", "norm1", "attn.qkv", "attn.proj"),
                *("cpe.1.proj", "norm2", "mlp.fc1", "mlp.fc2"),
            ),
        ),
        Rule("fc_norm.{p}", "norms.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FLORENCE = EncoderFormat(
    name="Florence-2",
    marks=("convs.0.proj.weight",),
    prefix="vision_tower.",
    rules=(
        *_downs("convs", "proj"),
        *_blocks(
            [f"blocks.{{i}}.{{j}}.{kind}" for kind in NAMED],
            lambda attention: (
                *("conv1.fn.dw", f"{attention}.norm", f"{attention}.fn.qkv", f"{attention}.fn.proj"),
                *("conv2.fn.dw", "ffn.norm", "ffn.fn.net.fc1", "ffn.fn.net.fc2"),
            ),
        ),
    ),
)
TRANSFORMERS = EncoderFormat(
    name="transformers Florence-2",
    marks=("convs.0.conv.weight",),
    prefix="model.vision_tower.",
    rules=(
        *_downs("convs", "conv"),
        *_blocks(
            [f"blocks.{{i}}.{{j}}.{kind}" for kind in NAMED],
            lambda attention: (
                *("conv1", "norm1", f"{attention}.qkv", f"{attention}.proj"),
                *("conv2", "norm2", "ffn.fc1", "ffn.fc2"),
            ),
        ),
    ),
)
FORMATS = (OURS, TIMM, TIMM_FLORENCE, AUTHORS, FLORENCE, TRANSFORMERS)
