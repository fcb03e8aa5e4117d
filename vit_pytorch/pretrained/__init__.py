"""Recognising, translating and loading published checkpoints."""

from vit_pytorch.pretrained.autoencoder import load_autoencoder
from vit_pytorch.pretrained.inflation import inflate
from vit_pytorch.pretrained.load import LoadReport, load_pretrained, to_format

__all__ = ["LoadReport", "inflate", "load_autoencoder", "load_pretrained", "to_format"]
