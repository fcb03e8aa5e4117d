"""Checkpoints of the SimpleViT with tokens of the spectrum."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Rule
from vit_pytorch.pretrained.tables.vit import OURS, PATCHES, public_simple_vit

FORMATS = (
    OURS,
    public_simple_vit(
        "SimpleViT with FFT",
        Rule("frequency_embed.norm_in.{p}", "to_freq_embedding.1.{p}"),
        Rule("frequency_embed.proj.weight", "to_freq_embedding.2.weight", PATCHES),
        Rule("frequency_embed.proj.bias", "to_freq_embedding.2.bias"),
        Rule("frequency_embed.norm_out.{p}", "to_freq_embedding.3.{p}"),
    ),
)
