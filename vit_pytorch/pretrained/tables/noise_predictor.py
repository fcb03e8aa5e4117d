"""Checkpoints of noise predictors around a U-ViT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vit_pytorch.pretrained.rules import Rule, Transform, own_format
from vit_pytorch.pretrained.tables.uvit import AUTHORS_MARK, MARK, LongSkipFormat, backbone


def _cut_places(parts: Sequence[Tensor], predictor: Any) -> Sequence[Tensor]:
    return parts[0].tensor_split((predictor.places.shape[1],), dim=1)


# One table for time, label and patches; ours has that of the patches apart, which fits other grids.
PLACES = Transform(_cut_places, lambda tensors, predictor: (torch.cat(list(tensors), dim=1),))

OURS = own_format(f"encoder.{MARK}")
AUTHORS = LongSkipFormat(
    name="U-ViT",
    marks=(AUTHORS_MARK,),
    rules=(
        *backbone("encoder."),
        Rule(("places", "encoder.positions.table"), "pos_embed", PLACES),
        Rule("time_mlp.{i}.{p}", "time_embed.{i}.{p}"),
        Rule("labels.weight", "label_emb.weight"),
        Rule("to_pixels.{p}", "decoder_pred.{p}"),
        Rule("final_conv.{p}", "final_layer.{p}"),
    ),
)
FORMATS = (OURS, AUTHORS)
