"""Grids of positions and windows of biases, as far as a checkpoint's configuration names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import Any, Literal

import torch
from torch import nn

from vit_pytorch.base import VisionModel
from vit_pytorch.distill import DISTILLABLE
from vit_pytorch.layers.positions import Positions
from vit_pytorch.layers.relative import DistanceBias, RelativeBias
from vit_pytorch.legacy import upgrade_arguments
from vit_pytorch.registry import entries


@dataclass(frozen=True)
class Extents:
    """What a configuration says of the grids that tables of positions and biases belong to.

    Args:
        tables: the grid or window of each table by its name, from the configuration of a model of ours.
        size: height and width of the image, from others' configurations; None if unknown.
    """

    tables: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    size: tuple[int, int] | None = None

    def grid(self, key: str, cells: int) -> tuple[int, ...] | None:
        """Return the grid of a table with so many cells; None if it is not known."""
        if key in self.tables:
            return self.tables[key]
        if self.size is None:
            return None
        # Patches are square: their area is the image's, shared out among the cells.
        height, width = self.size
        patch = isqrt(height * width // cells) if cells else 0
        if not patch or height // patch * (width // patch) != cells:
            return None
        return height // patch, width // patch


def read_extents(config: Mapping[str, Any], saved: nn.Module | None) -> Extents:
    """Read what a configuration says: ours, by the model that it describes; timm's; transformers'.

    Args:
        config: the checkpoint's configuration; may be empty.
        saved: what `build_saved` makes of it.
    """
    if is_own(config):
        return Extents({} if saved is None else table_extents(saved))
    timm = config.get("pretrained_cfg") or {}
    found = (config.get("model_args") or {}).get("img_size") or (timm.get("input_size") or (None,))[1:]
    found = found or config.get("image_size")
    sides = (found, found) if isinstance(found, int) else tuple(found or ())
    return Extents(size=(sides[0], sides[1]) if len(sides) == 2 else None)


def is_own(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is one of this package."""
    return "default_cfg" in config and isinstance(config.get("architecture"), str)


def build_saved(model: nn.Module, config: Mapping[str, Any]) -> VisionModel | None:
    """Build the model that a configuration describes, without values; None if it is not ours, or unknown.

    Args:
        model: what will take the weights, whose class may be that of the configuration.
        config: the checkpoint's configuration; may be empty.
    """
    if not is_own(config):
        return None
    name = config["architecture"]
    known: list[Any] = [type(model), *(e.architecture for e in entries().values()), *DISTILLABLE.values()]
    architecture = next((a for a in known if a.__name__ == name and issubclass(a, VisionModel)), None)
    if architecture is None:
        return None
    parameters = architecture._hub_mixin_init_parameters
    arguments = upgrade_arguments({k: v for k, v in config.items() if v is not None}, parameters)
    with torch.device("meta"):
        return architecture(**{k: v for k, v in arguments.items() if k in parameters})


def table_extents(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the grid or window of each table of positions or biases of a model, by the table's name."""
    found: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, (Positions, DistanceBias)):
            found[f"{name}.table"] = tuple(module.grid)
        elif isinstance(module, RelativeBias):
            found[f"{name}.table"] = module.window
    return found


def is_certain(extents: Sequence[int]) -> bool:
    """Return whether extents are what a table of as many cells is taken to have: a line, or a square."""
    return len(extents) == 1 or extents[-1] == extents[-2]


def ask_for(
    what: str, rows: int, extents: Sequence[int], *, shape: Literal["grid", "window"] = "grid"
) -> ValueError:
    """Return the error for a table whose extents nothing names: so many rows may be those of other extents.

    Args:
        what: what a row is for.
        rows: those of the table.
        extents: the model's.
        shape: what the extents are of: a grid has a row a cell, a window 2 n - 1 offsets along n cells.
    """
    others = [(rows // side, side) for side in range(1, rows + 1) if rows % side == 0]
    if shape == "window":
        others = [((y + 1) // 2, (x + 1) // 2) for y, x in others]
    other = min((e for e in others if e != tuple(extents)), key=lambda e: abs(e[0] - e[1]), default=(1, rows))
    return ValueError(
        f"{rows} {what} may belong to a {shape} of {tuple(extents)} or of {other}; pass the checkpoint's "
        "grid to load_pretrained ('model' for the model's own), or a folder with its configuration"
    )
