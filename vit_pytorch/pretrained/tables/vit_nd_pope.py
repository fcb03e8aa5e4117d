"""Checkpoints of polar ViTs on arrays of any number of axes."""

from __future__ import annotations

from dataclasses import replace

from vit_pytorch.pretrained.rules import Rule, Transform
from vit_pytorch.pretrained.tables.vit import OURS, QKV
from vit_pytorch.pretrained.tables.vit_nd import ATTENTION, PUBLIC, concat_qk_v, split_qk_v

PUBLIC_POLAR = replace(
    PUBLIC,
    name="vit-pytorch polar ViT of n axes",
    # What is there twice, and the frequencies.
    unused=("polar_emb.learned_bias", "polar_emb.freqs", "transformer.polar_emb.freqs"),
    rules=(
        Rule("phase", "transformer.polar_emb.learned_bias"),
        Rule(
            f"{QKV}.weight",
            (f"{ATTENTION}.to_qk.weight", f"{ATTENTION}.to_v.weight"),
            Transform(concat_qk_v, split_qk_v),
        ),
        *PUBLIC.rules,
    ),
)

FORMATS = (OURS, PUBLIC_POLAR)
