"""Checkpoints of rotary ViTs on arrays of any number of axes."""

from __future__ import annotations

from vit_pytorch.pretrained.tables.vit import OURS
from vit_pytorch.pretrained.tables.vit_nd import PUBLIC_ROTARY

FORMATS = (OURS, PUBLIC_ROTARY)
