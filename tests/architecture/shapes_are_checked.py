"""Run by `test_shapes_checked`, where checking is switched on: it must notice a wrong shape."""

import pytest
import torch
from jaxtyping import TypeCheckError

from vit_pytorch.layers.attention import Attention


def test_wrong_shape_is_noticed():
    with pytest.raises(TypeCheckError, match="b n d"):
        Attention(16, heads=2, dim_head=8).forward(torch.randn(3, 16))
