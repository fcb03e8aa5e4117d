"""Checkpoints of the ViT that pools objects."""

from __future__ import annotations

from dataclasses import replace

from vit_pytorch.pretrained.rules import Rule
from vit_pytorch.pretrained.tables.vit import OURS, PUBLIC_VIT
from vit_pytorch.pretrained.tables.vit_3d import TOKEN

PUBLIC = replace(
    PUBLIC_VIT,
    name="vit-pytorch DetPool ViT",
    rules=(Rule("prefix.class_token", "cls_token", TOKEN), *PUBLIC_VIT.rules),
)

FORMATS = (OURS, PUBLIC)
