"""Checkpoints of the ViT with a distillation token."""

from __future__ import annotations

from dataclasses import replace

from vit_pytorch.pretrained.rules import Rule
from vit_pytorch.pretrained.tables import vit

# The authors' files have timm's names.
TIMM = replace(
    vit.TIMM,
    rules=(
        Rule("prefix.distillation_token", "dist_token"),
        Rule("head.classifier.{p}", "head.{p}"),
        Rule("head.distilled.{p}", "head_dist.{p}"),
        *vit.TIMM.rules,
    ),
)
TRANSFORMERS = replace(
    vit.TRANSFORMERS,
    name="transformers DeiT",
    prefix="deit.",
    rules=(
        Rule("prefix.distillation_token", "embeddings.distillation_token"),
        Rule("head.classifier.{p}", "/cls_classifier.{p}"),
        Rule("head.distilled.{p}", "/distillation_classifier.{p}"),
        *vit.TRANSFORMERS.rules,
    ),
)
FORMATS = (vit.OURS, TIMM, TRANSFORMERS)
