"""Checkpoints of LookupViT, of which none is published."""

from vit_pytorch.pretrained.rules import own_format

FORMATS = (own_format("blocks.0.gather.to_kv.weight"),)
