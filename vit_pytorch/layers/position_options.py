"""Which positions a model can have, by their strings; what acts inside attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.fx import Proxy

from vit_pytorch.layers.attention import BlockInputs
from vit_pytorch.layers.options import Option, OptionLike, read_option
from vit_pytorch.layers.patches import ConvolutionalStem, LinearStem
from vit_pytorch.layers.positions import Learned, Learned2D, NoPositions, Sequential, SinCos
from vit_pytorch.layers.relative import LogRelative, Relative, RelativePositions, TokenBias
from vit_pytorch.layers.rotary import (
    AxialRotary,
    HalvedRotary,
    MixedRotary,
    NormalizedRotary,
    Rotary,
    RotaryOption,
    ScaledRotary,
)

POSITIONS: dict[str, type[Option] | Option] = {
    "none": NoPositions,
    "learned": Learned,
    "learned_2d": Learned2D,
    "sincos": SinCos,
    "sequence": Sequential,
    "relative": Relative,
    "relative_by_layer": Relative(per_layer=True),
    "relative_log": LogRelative,
    "rope": Rotary,
    "rope_mixed": Rotary(learned=True),
    "rope_halves": HalvedRotary,
    "rope_normalized": NormalizedRotary,
    "rope_scaled": ScaledRotary,
}
Inside = RotaryOption | Relative


def why_no_mask(stem: LinearStem | ConvolutionalStem, added: Option, inside: Inside | None) -> str | None:
    """Say why a model's patches would differ beside padding; None if they do not."""
    if isinstance(stem, ConvolutionalStem):
        return "its convolutional stem mixes patches with those beside them"
    if stem.crop:
        return "its stem leaves out what no patch covers"
    if isinstance(added, Learned) and added.dynamic_img_size:
        return "its dynamic_img_size stretches positions over each input"
    if isinstance(inside, NormalizedRotary | ScaledRotary):
        return f"its positions {inside.kind!r} are stretched over each input"
    return None


def attention_position(inside: Inside | None, layer: int, bias: Callable[[], TokenBias]) -> nn.Module | None:
    """Build the positions inside the attention of a layer; None for none, or for those that layers share.

    Args:
        inside: the option.
        bias: builds a bias of the layer's own.
    """
    if isinstance(inside, Relative):
        return RelativePositions(bias()) if inside.per_layer else None
    return None if inside is None else inside.positions(layer)


def position_inputs(
    inputs: BlockInputs, rotary: AxialRotary | MixedRotary | None, relative: TokenBias | None
) -> BlockInputs:
    """Return the inputs of each block with the rotations or biases of their grid."""
    grid, prefix, ids_keep = inputs.grid or (), inputs.num_prefix_tokens, inputs.ids_keep
    if rotary is not None and any(isinstance(extent, Proxy) for extent in grid):
        # Rotations are computed outside the graph of FX, which has those of the largest grid.
        grid = rotary.grid
    if isinstance(rotary, MixedRotary):
        return replace(inputs, rotation=rotary.rotations(grid, prefix, ids_keep))
    if rotary is not None:
        return replace(inputs, rotation=rotary(grid, prefix, ids_keep))
    if relative is not None:
        return replace(inputs, mask=relative.mask(grid, prefix, ids_keep))
    return inputs


def read_positions(positions: OptionLike | Sequence[OptionLike]) -> tuple[Any, Inside | None]:
    """Return the positions that are added to the tokens, and those inside attention.

    Raises:
        ValueError: if a kind is unknown, or there are two of one sort.
    """
    if isinstance(positions, str):
        positions = positions.split("+")
    elif isinstance(positions, (Option, dict)):
        positions = [positions]
    found: list[Option] = [read_option("positions", position, POSITIONS) for position in positions]
    inside = [position for position in found if isinstance(position, Inside)]
    added = [position for position in found if not isinstance(position, Inside)]
    if len(added) > 1 or len(inside) > 1:
        raise ValueError(
            "positions must be at most one that is added to the tokens and one that acts inside attention; "
            f"got {', '.join(position.kind for position in found)}"
        )
    return added[0] if added else NoPositions(), inside[0] if inside else None
