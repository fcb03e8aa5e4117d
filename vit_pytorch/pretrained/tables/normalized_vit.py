"""Checkpoints of the normalized ViT: only our own exist."""

from vit_pytorch.pretrained.tables.vit import OURS

FORMATS = (OURS,)
