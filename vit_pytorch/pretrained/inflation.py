"""Weights of an image model as initial weights of a video model."""

from __future__ import annotations

import re
from math import prod
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.positions import LearnedPositions, Positions, resize_table
from vit_pytorch.pretrained.load import LoadReport, announce
from vit_pytorch.vivit import ViViT
from vit_pytorch.weights import load_weights

How = Literal["central", "average"]


def inflate(image_model: IsotropicModel, video_model: IsotropicModel, how: How = "central") -> LoadReport:
    """Initialize a video model with an image model's weights (ViViT, section 3.4), all or nothing.

    A patch is embedded as its central frame, or as the mean of its frames, is by the image model; positions
    in a frame are repeated over time, and interpolated where the frame has another size. Blocks start as
    they are in the image model: those over space where there are others. Attention over time in each block
    (model 3) adds nothing at first, its output projection being zero; in half of the heads (model 4), heads
    keep their weights. Blocks after the frames' encoder (model 2) and the classifier stay as they were.

    Of a video that stands still, all frames have the image's tokens where neither model has a class token,
    except in model 4, and the frames' class tokens are the image's in model 2. Where one sequence has a class
    token, it weighs less among the patches of several frames than among those of one.

    Args:
        image_model: a ViT on images, of the video model's sizes and options.
        video_model: what takes the weights.
        how: "central" gives the weights to the central frame of a patch and zeros to the others, "average"
            gives each frame an equal part.

    Returns:
        What was done; it is logged, and the video model's `load_report`.

    Raises:
        ValueError: if the two differ in their sizes; the video model is unchanged then.
    """
    check_choice("how", how, get_args(How))
    ranks = tuple(len(model.grid.patch) for model in (image_model, video_model))
    if ranks != (2, 3):
        raise ValueError(
            f"expected a model of images and one of videos, of 2 and 3 axes; got {ranks[0]} and {ranks[1]}"
        )
    own = video_model.state_dict()
    found = {
        name: part
        for name, part in image_model.state_dict().items()
        if not name.startswith(("head.", "positions."))
    }
    found["patch_embed.proj.weight"] = _in_time(
        found["patch_embed.proj.weight"], video_model.grid.patch[0], how
    )
    for name in ("patch_embed.norm_in.weight", "patch_embed.norm_in.bias"):
        if name in found:
            found[name] = found[name].repeat(video_model.grid.patch[0])
    resized = {}
    theirs, positions = image_model.positions, video_model.positions
    if theirs is not None and isinstance(positions, LearnedPositions):
        found["positions.table"] = _over_time(theirs, positions)
        if theirs.grid != positions.grid[-2:]:
            resized["positions.table"] = (theirs.grid, positions.grid[-2:])
    if video_model.prefix.class_token is None:
        found.pop("prefix.class_token", None)
    stays = r"head\.|prefix\.class_token$|.*\.(?:norm_)?time\."
    if isinstance(video_model, ViViT) and video_model.temporal_embed is not None:
        blocks = "|".join(map(str, range(video_model.spatial_depth, len(video_model.blocks))))
        stays += rf"|norm\.|temporal_embed\.(?:prefix|positions)\.|blocks\.(?:{blocks})\."
        for name in ("norm.weight", "norm.bias"):
            found[f"temporal_embed.{name}"] = found.pop(name)
    kept = tuple(name for name in own if name not in found and re.match(stays, name))
    found |= {name: own[name] for name in kept}
    found |= {name: torch.zeros_like(part) for name, part in own.items() if ".time.to_out." in name}
    source = type(image_model).__name__
    load_weights(video_model, found, source=source)
    report = LoadReport(source=source, format=f"inflated, {how}", kept=kept, resized=resized)
    announce(video_model, report, warn=False)
    return report


def _in_time(weight: Float[Tensor, "d c h w"], frames: int, how: How) -> Float[Tensor, "d c t h w"]:
    """Return the projection of a patch of frames from that of one frame."""
    if how == "average":
        return (weight / frames)[:, :, None].repeat(1, 1, frames, 1, 1)
    inflated = weight.new_zeros(*weight.shape[:2], frames, *weight.shape[2:])
    inflated[:, :, frames // 2] = weight
    return inflated


def _over_time(theirs: Positions, positions: LearnedPositions) -> Float[Tensor, "1 n d"]:
    """Repeat an image's positions for each frame; those of prefix tokens are zero if it has none."""
    rows = theirs.table[:, : min(theirs.prefix, positions.prefix)]
    rows = F.pad(rows, (0, 0, 0, positions.prefix - rows.shape[1]))
    cells = resize_table(theirs.table[:, theirs.prefix :], theirs.grid, positions.grid[-2:])
    return torch.cat([rows, cells.repeat(1, prod(positions.grid[:-2]), 1)], dim=1)
