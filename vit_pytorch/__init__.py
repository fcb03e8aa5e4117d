"""Vision Transformers for PyTorch that people can trust.

Build a model by its class, `ViT(image_size=224, patch_size=16, …)`, or by its name,
`create_model("vit_small_patch16_224")`; `list_models("*patch16*")` lists the names.

The catalogue, each with its paper, its module and its classes:

- An Image is Worth 16x16 Words (arXiv:2010.11929): `vit_pytorch.vit`, `ViT`
- Better plain ViT baselines for ImageNet-1k (arXiv:2205.01580): `vit_pytorch.simple_vit`, `SimpleViT`
- NaViT: any Aspect Ratio and Resolution (arXiv:2307.06304): `vit_pytorch.na_vit`, `NaViT`
- NaViT in nested tensors (arXiv:2307.06304): `vit_pytorch.na_vit_nested_tensor`, `NaViT`
"""

from vit_pytorch.create import create_model
from vit_pytorch.pretrained import load_pretrained
from vit_pytorch.registry import list_models
from vit_pytorch.simple_vit import SimpleViT
from vit_pytorch.vit import ViT

__all__ = ["SimpleViT", "ViT", "create_model", "list_models", "load_pretrained"]
__version__ = "0.1.0"
