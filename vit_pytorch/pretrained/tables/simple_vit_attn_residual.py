"""Checkpoints of the SimpleViT with attention residuals."""

from __future__ import annotations

from vit_pytorch.pretrained.tables.vit import OURS

FORMATS = (OURS,)
