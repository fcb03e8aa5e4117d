"""Where the tokens of each recorded layer lie on the image, of any model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.coat import CoaT
from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import CrossCovariance
from vit_pytorch.recorder import Recording

Grid = tuple[int, int]


@dataclass(frozen=True)
class Places:
    """Tokens: some that lie nowhere, then a grid of patches that covers the image, row by row.

    Args:
        prefix: number of the former.
        rows: of the grid; 0 where there is none.
        columns: of the grid.
    """

    prefix: int
    rows: int = 0
    columns: int = 0

    @property
    def count(self) -> int:
        """Number of tokens."""
        return self.prefix + self.rows * self.columns


@dataclass(frozen=True)
class Layer:
    """Attention of one layer.

    Args:
        name: the kernel's, as `get_submodule` takes it.
        maps: what each query takes from each key.
        queries: where the queries lie.
        keys: where the keys lie.
    """

    name: str
    maps: Float[Tensor, "h q k"]
    queries: Places
    keys: Places


@dataclass(frozen=True)
class Found:
    """The layers that can be shown.

    Args:
        layers: in the order of execution.
        notes: how many others there are, and why they are left out.
    """

    layers: list[Layer]
    notes: list[str]


def find_layers(model: VisionModel, recording: Recording, grids: Sequence[Grid]) -> Found:
    """Find the places of the tokens of every layer of a recording of one image.

    Args:
        model: what was recorded.
        recording: its maps, of a batch of one.
        grids: the grids on which the model's features lie.
    """
    layers, reasons = [], []
    for name, maps in zip(recording.names, recording.maps, strict=True):
        reason = _reason_against(model, name, maps)
        queries, keys = (_find(count, grids, prefix_of(model)) for count in maps.shape[2:])
        if maps.shape[2] == 1:
            queries = Places(1)
        if reason is None and queries is not None and keys is not None and keys.rows:
            layers.append(Layer(name, maps[0], queries, keys))
        else:
            reasons.append(reason or "their tokens have no place of their own on the image")
    total = len(recording.maps)
    notes = [
        f"{n} of {total} layers of attention are not shown: {why}." for why, n in Counter(reasons).items()
    ]
    return Found(layers, notes)


def prefix_of(model: VisionModel) -> int:
    """Return the number of tokens in front of a model's patches."""
    return int(getattr(model, "num_prefix_tokens", 0))


def names_of_prefix(model: VisionModel) -> list[str]:
    """Name the tokens in front of a model's patches."""
    count = prefix_of(model)
    if isinstance(model, CoaT) and model.parallel:
        return [f"class token of scale {scale}" for scale in range(2, 2 + count)]
    if isinstance(model, IsotropicModel):
        registers = 0 if model.prefix.registers is None else model.prefix.registers.shape[1]
        named = ["class token"] * (model.prefix.class_token is not None)
        named += [f"register {i + 1}" for i in range(registers)]
    else:
        named = ["class token", "distillation token"]
    return [*named[:count], *(f"token {i + 1}" for i in range(len(named), count))]


def _reason_against(model: VisionModel, name: str, maps: Tensor) -> str | None:
    """Say why a layer's tokens lie nowhere on the image, whatever their number."""
    parts = name.split(".")
    around: list[nn.Module] = [model.get_submodule(".".join(parts[:i])) for i in range(1, len(parts) + 1)]
    if any(isinstance(part, CrossCovariance) for part in around):
        return "they mix channels, not patches"
    if maps.ndim != 4 or maps.shape[0] != 1:
        return "they attend within windows or groups"
    if isinstance(model, IsotropicModel):
        # What a model gives no features of has dropped, merged or moved its patches.
        lost = list(model.blocks)[len(model.feature_info) :]
        if any(part is block for part in around for block in lost):
            return "patches have been dropped or merged there"
    return None


def _find(count: int, grids: Sequence[Grid], prefix: int) -> Places | None:
    for rows, columns in grids:
        if count - rows * columns in (0, prefix):
            return Places(count - rows * columns, rows, columns)
    return None
