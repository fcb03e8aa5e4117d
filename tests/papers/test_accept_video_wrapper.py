"""Videos pass through models of images frame by frame."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.papers.reference import TOLERANCE, difference, randomise
from vit_pytorch import ViT
from vit_pytorch.accept_video_wrapper import AcceptVideoWrapper
from vit_pytorch.extractor import Extractor

SMALL: dict[str, Any] = {
    "image_size": 24,
    "patch_size": 4,
    "num_classes": 5,
    "dim": 24,
    "depth": 2,
    "heads": 2,
    "dim_head": 8,
    "mlp_dim": 32,
}


def videos() -> Tensor:
    return torch.randn(2, 3, 4, 24, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vit() -> nn.Module:
    return randomise(ViT(**SMALL))


@torch.inference_mode()
def test_each_frame_is_an_image(vit: nn.Module) -> None:
    want = torch.stack([vit(videos()[:, :, frame]) for frame in range(4)], dim=1)
    assert difference(AcceptVideoWrapper(vit)(videos()), want) < TOLERANCE
    features = AcceptVideoWrapper(vit, forward_function="forward_features")(videos())
    assert features.shape == (2, 4, 37, 24)


def test_documented_call(vit: nn.Module) -> None:
    """As the public package's page has it, with an extractor: logits, and embeddings with places in time."""
    wrapper = AcceptVideoWrapper(
        Extractor(vit.train()),
        add_time_pos_emb=True,
        output_pos_add_pos_emb=1,
        time_seq_len=12,
        dim_emb=24,
        proj_embed_to_dim=16,
    )
    logits, embeddings = wrapper(videos(), eval_with_no_grad=True)
    assert logits.shape == (2, 4, 5)
    assert vit.training
    tokens = vit.eval().forward_features(videos().transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 4))
    want = tokens @ wrapper.embed_proj.weight.T + wrapper.embed_proj.bias + wrapper.pos_emb[:4, None]
    assert difference(embeddings, want) < TOLERANCE
    embeddings.square().sum().backward()
    assert all(p.grad is None for p in vit.parameters())
    assert wrapper.pos_emb.grad[:4].abs().min() > 0
    assert not wrapper.pos_emb.grad[4:].any()


Found = namedtuple("Found", ["map", "extra"])


class Maps(nn.Module):
    """Returns a map whose channels come first, in a structure with a loss and a word."""

    def forward(self, images: Tensor, scale: float = 1.0) -> Any:
        return [{"loss": images.mean(), "name": "map"}, Found(scale * images[:, :, :2, :5], None)]


def test_structures_and_maps() -> None:
    wrapper = AcceptVideoWrapper(
        Maps(),
        add_time_pos_emb=True,
        embed_is_channel_first=True,
        output_pos_add_pos_emb=1,
        time_seq_len=4,
        dim_emb=3,
    )
    first, second = wrapper(videos(), forward_kwargs={"scale": 2.0})
    assert first["name"] == "map"
    torch.testing.assert_close(first["loss"], videos().mean())
    assert second.extra is None
    want = 2 * videos()[:, :, :, :2, :5].transpose(1, 2) + wrapper.pos_emb[:, :, None, None]
    torch.testing.assert_close(second.map, want)


class NoBatch(nn.Module):
    """Returns one vector for all images."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(0, 2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add_time_pos_emb": True, "time_seq_len": 4}, "need dim_emb"),
        ({"add_time_pos_emb": True, "dim_emb": 24}, "need time_seq_len"),
        ({"forward_function": "encode_image"}, "ViT has no method encode_image"),
        ({"dim_emb": 0}, "dim_emb must be"),
    ],
)
def test_wrong_arguments_are_refused(vit: nn.Module, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AcceptVideoWrapper(vit, **options)


def test_wrong_videos_are_refused(vit: nn.Module) -> None:
    timed = AcceptVideoWrapper(vit, add_time_pos_emb=True, dim_emb=5, time_seq_len=3)
    with pytest.raises(ValueError, match="at most 3 frames, got 4"):
        timed(videos())
    with pytest.raises(ValueError, match="rank 5"):
        timed(videos()[0])
    other = AcceptVideoWrapper(vit, proj_embed_to_dim=2, dim_emb=5, output_pos_add_pos_emb=1)
    with pytest.raises(ValueError, match=r"must be in \[0, 0\], got 1"):
        other(videos())
    with pytest.raises(ValueError, match="one for each of 8 frames"):
        AcceptVideoWrapper(NoBatch())(videos())
