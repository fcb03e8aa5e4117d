"""Vision Transformers for PyTorch that people can trust.

Build a model by its class, `ViT(image_size=224, patch_size=16, …)`, or by its name,
`create_model("vit_small_patch16_224")`; `list_models("*patch16*")` lists the names.

The catalogue, each with its paper, its module and its classes:

- An Image is Worth 16x16 Words (arXiv:2010.11929): `vit_pytorch.vit`, `ViT`
- Better plain ViT baselines for ImageNet-1k (arXiv:2205.01580): `vit_pytorch.simple_vit`, `SimpleViT`
- Three things everyone should know about Vision Transformers (arXiv:2203.09795):
  `vit_pytorch.parallel_vit`, `ViT`
- Fine-tuning Image Transformers using Learnable Memory (arXiv:2203.15243):
  `vit_pytorch.learnable_memory_vit`, `Adapter`, `Adapters`

Around any encoder of tokens: `vit_pytorch.efficient`, `ViT`.
"""

from vit_pytorch.create import create_model
from vit_pytorch.pretrained import load_pretrained
from vit_pytorch.registry import list_models
from vit_pytorch.simple_vit import SimpleViT
from vit_pytorch.vit import ViT

__all__ = ["SimpleViT", "ViT", "create_model", "list_models", "load_pretrained"]
__version__ = "0.1.0"
