"""Patch n' Pack: NaViT, a Vision Transformer for any Aspect Ratio and Resolution.

M. Dehghani, B. Mustafa, J. Djolonga, J. Heek et al. 2023, arXiv:2307.06304.

NaViT in PyTorch's nested tensors: the features of a list of images are one jagged tensor (b, j, d), and
images of different sizes may come as a nested tensor. Parameters and function are those of `na_vit.NaViT`.

Family: plain
Differs from the paper: as `na_vit.NaViT` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_pytorch.na_vit import Images
from vit_pytorch.na_vit import NaViT as PackedNaViT


class NaViT(PackedNaViT):
    """NaViT whose features are nested tensors; its arguments are those of `na_vit.NaViT`."""

    def forward_features(self, images: Images, longest: int | None = None) -> Any:
        """Return the tokens after the final norm.

        Args:
            images: a list of images, a list of lists of them, a nested tensor of images, or a batch.
            longest: largest number of tokens of an image; None for any number.

        Returns:
            Tokens (b n d) of a batch; otherwise a jagged tensor (b, j, d), in the order of the images.
        """
        tokens = super().forward_features(images, longest)
        if isinstance(tokens, list):
            return torch.nested.as_nested_tensor(tokens, layout=torch.jagged)
        return tokens

    def pool_features(self, features: Tensor | Sequence[Tensor]) -> Float[Tensor, "b d"]:
        """Return one vector per image."""
        if isinstance(features, Tensor) and features.is_nested:
            features = features.unbind()
        return super().pool_features(features)
