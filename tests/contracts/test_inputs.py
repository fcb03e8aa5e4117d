"""Wrong input is an error that names what was expected and what came."""

import pytest
import torch
from torch import Tensor

from vit_pytorch.base import VisionModel


def refuse(model: VisionModel, images: Tensor, expected: object, got: object) -> None:
    """Hold that both the logits and the intermediates are refused with these words."""
    for compute in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match=r"image|channels") as error:
            compute(images)
        assert str(expected) in str(error.value)
        assert str(got) in str(error.value)


def test_wrong_rank(model: VisionModel, images: Tensor):
    rank = images.ndim
    for wrong in (images[0], images[None]):
        refuse(model, wrong, f"rank {rank}", tuple(wrong.shape))


def test_wrong_channels(model: VisionModel, images: Tensor):
    for wrong in (images[:, :1], torch.cat([images, images], dim=1)):
        refuse(model, wrong, model.channels, f"got {wrong.shape[1]}")


def test_wrong_dtype(model: VisionModel, images: Tensor):
    for dtype in (torch.uint8, torch.int64, torch.float64, torch.bfloat16):
        refuse(model, images.to(dtype), torch.float32, f"got {dtype}")
    with torch.autocast("cpu", torch.bfloat16):
        refuse(model, images.to(torch.uint8), torch.float32, "got torch.uint8")


def test_indivisible_size(model: VisionModel, images: Tensor):
    for axis in range(2, images.ndim):
        wrong = images.narrow(axis, 0, images.shape[axis] - 1)
        if getattr(model, "size_multiple", None) == (1, 1):
            assert model(wrong).isfinite().all()
        else:
            refuse(model, wrong, "a multiple of", tuple(wrong.shape[2:]))


def test_too_large(model: VisionModel, images: Tensor):
    for axis in range(2, images.ndim):
        wrong = torch.cat([images, images], dim=axis)
        if getattr(model, "any_size", False):
            assert model(wrong).isfinite().all()
        else:
            refuse(model, wrong, model.image_size, tuple(wrong.shape[2:]))


def test_empty_size(model: VisionModel, images: Tensor):
    for axis in range(2, images.ndim):
        wrong = images.narrow(axis, 0, 0)
        refuse(model, wrong, "at least", tuple(wrong.shape[2:]))
