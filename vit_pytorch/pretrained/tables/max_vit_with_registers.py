"""Checkpoints of MaxViT with registers."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import own_format

FORMATS = (own_format("stages.0.blocks.0.registers"),)
