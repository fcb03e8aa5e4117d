"""Checkpoints for adaptive token sampling, which learns nothing of its own: those of plain ViTs and DeiT.

The public vit-pytorch package's are not among them: it samples at random, by other scores.
"""

from dataclasses import replace

from vit_pytorch.pretrained.tables.vit import BIG_VISION, OURS, TIMM, TORCHVISION, TRANSFORMERS, VIT_JAX

# The authors' code has timm's names, and zeros that it writes into.
TIMM_OR_AUTHORS = replace(TIMM, unused=(*TIMM.unused, "blocks.{i}.attn.out_zero_mask"))

FORMATS = (OURS, TIMM_OR_AUTHORS, TORCHVISION, TRANSFORMERS, VIT_JAX, BIG_VISION)
