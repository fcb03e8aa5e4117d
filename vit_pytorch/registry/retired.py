"""Names that timm has retired: its releases are tags of the architecture's name now."""

from __future__ import annotations

import re

AUGREG, ORIGINAL = ".augreg_in21k", ".orig_in21k"
# names and what they became; a pattern is that of the whole name
RETIRED = (
    (r"vit_(large_patch32|huge_patch14)_224_in21k", rf"vit_\1_224{ORIGINAL}"),
    (r"vit_base_(?:r50_s16|resnet50)_224_in21k", f"vit_base_r50_s16_224{ORIGINAL}"),
    (r"vit_base_resnet50_384", f"vit_base_r50_s16_384{ORIGINAL}_ft_in1k"),
    (r"vit_((?:tiny|small|base|large)_(?:patch|r)\w*_224)_in21k", rf"vit_\1{AUGREG}"),
    (r"(vit_base_patch16_224_miil)_in21k", r"\1.in21k"),
    (r"(vit_\w+_224)_(sam|dino)", r"\1.\2"),
    (r"(vit_\w+)_224_clip_laion2b", r"\1_clip_224.laion2b"),
    (r"(deit3_\w+)_in21ft1k", r"\1.fb_in22k_ft_in1k"),
    (r"(mixer_[bl]16_224)_in21k", r"\1.goog_in21k_ft_in1k"),
    (r"(mixer_b16_224)_miil", r"\1.miil_in21k_ft_in1k"),
    (r"(mixer_b16_224)_miil_in21k", r"\1.miil_in21k"),
    (r"(mobilevitv2_\d+)(_384)?_in22ft1k", r"\1.cvnets_in22k_ft_in1k\2"),
    (r"jx_(nest_\w+)", r"\1_jx"),
    (r"(swin_\w+)_in22k", r"\1.ms_in22k"),
    (r"(swinv2_\w+)_22k", r"\1.ms_in22k"),
    (r"(swinv2_\w+)_22kft1k", r"\1.ms_in22k_ft_in1k"),
    (r"(xcit_\w+)_dist", r"\1.fb_dist_in1k"),
)


def current_name(name: str) -> str | None:
    """Return what timm calls a model today whose name it has retired; None for any other name."""
    matches = ((re.fullmatch(pattern, name), now) for pattern, now in RETIRED)
    return next((found.expand(now) for found, now in matches if found), None)
