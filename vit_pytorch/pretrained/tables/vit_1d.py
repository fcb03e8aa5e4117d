"""Checkpoints of ViTs on signals."""

from __future__ import annotations

from vit_pytorch.pretrained.tables.vit import OURS, PUBLIC_SIMPLE_VIT
from vit_pytorch.pretrained.tables.vit_3d import PUBLIC_VIT_1D

FORMATS = (OURS, PUBLIC_VIT_1D, PUBLIC_SIMPLE_VIT)
