"""Video models learn what no frame tells: in which of four directions a digit drifts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.papers.learning import accuracy, digits, learn
from vit_pytorch import create_model
from vit_pytorch.base import VisionModel

FRAMES, SIZE = 6, 16
DIRECTIONS = torch.tensor([(0, 1), (0, -1), (1, 0), (-1, 0)])


def drifting(images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Let each image (b c h w) drift from anywhere, a pixel a frame, over a field whose edges meet.

    A frame is the image anywhere, whatever the direction; and played backwards it has another direction.

    Returns:
        Videos (b c t h w), and the number of each one's direction.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(DIRECTIONS), (len(images),), generator=generator)
    start = torch.randint(SIZE, (len(images), 1, 2), generator=generator)
    places = start + torch.arange(FRAMES)[:, None] * DIRECTIONS[labels, None]
    field = F.pad(images, (0, SIZE - images.shape[3], 0, SIZE - images.shape[2]), value=-1.0)
    along = torch.arange(SIZE)
    rows = (along - places[..., :1]) % SIZE
    columns = (along - places[..., 1:]) % SIZE
    sample = torch.arange(len(images))[:, None, None, None]
    videos = field[:, 0][sample, rows[..., None], columns[:, :, None]]
    return videos[:, None], labels


CLIPS = {"channels": 1, "num_classes": len(DIRECTIONS)}
VIT = {
    "image_size": SIZE,
    "frames": FRAMES,
    "image_patch_size": 4,
    "frame_patch_size": 2,
    "dim": 48,
    "heads": 4,
    "dim_head": 12,
    "mlp_dim": 96,
}
CCT = {
    "img_size": SIZE,
    "num_frames": FRAMES,
    "embedding_dim": 48,
    "n_conv_layers": 1,
    "kernel_size": 3,
    "padding": 1,
    "num_layers": 2,
    "num_heads": 4,
}
CASES: dict[str, dict[str, Any]] = {
    "videomae_small_patch16_224": {**VIT, "depth": 2},
    "simple_vit_3d_tiny_16x2": {**VIT, "depth": 2},
    "vivit_b_16x2": {**VIT, "spatial_depth": 2},
    "vivit_b_16x2_fe": {**VIT, "spatial_depth": 2, "temporal_depth": 1},
    "vivit_b_16x2_fsa": {**VIT, "spatial_depth": 2},
    "vivit_b_16x2_fdp": {**VIT, "spatial_depth": 2},
    "cct_3d_7_7x2_8x224": CCT,
}


def test_no_frame_tells_the_direction() -> None:
    """Every frame is the image somewhere, wherever it drifts; all four directions are there alike."""
    images = torch.randn(64, 1, 8, 8)
    videos, labels = drifting(images, seed=0)
    assert labels.bincount().min() > 8
    for image, video, label in zip(images, videos, labels, strict=True):
        whole = F.pad(image, (0, 8, 0, 8), value=-1.0)
        step = tuple(DIRECTIONS[label].tolist())
        for before, after in zip(video[0], video[0, 1:], strict=False):
            assert after.equal(before.roll(step, dims=(0, 1)))
            assert (
                before.sort()
                .values.sum(0)
                .sort()
                .values.allclose(before.roll((5, 3), dims=(0, 1)).sort().values.sum(0).sort().values)
            )
        assert any(video[0, 0].equal(whole[0].roll((y, x), (0, 1))) for y in range(16) for x in range(16))


@pytest.mark.parametrize("name", CASES)
def test_learns_the_direction_of_drifting_digits(name: str) -> None:
    torch.manual_seed(0)
    images, _, test_images, _ = digits(size=8)
    videos, labels = drifting(images.repeat(2, 1, 1, 1), seed=0)
    test_videos, test_labels = drifting(test_images, seed=1)
    model: VisionModel = create_model(name, **CLIPS, **CASES[name])

    def loss(batch: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(batch), targets)

    learn(model, loss, videos, labels, epochs=2)
    found = accuracy(model, test_videos, test_labels)
    # Played backwards, a digit drifts in the other direction of the pair.
    backwards = accuracy(model, test_videos.flip(2), test_labels ^ 1)
    assert min(found, backwards) > 0.95
