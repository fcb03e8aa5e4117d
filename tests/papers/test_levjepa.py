"""LeVJEPA: its losses, views and encoder; the public package's calls; and learning."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.papers.learning import digits
from tests.papers.reference import TOLERANCE, difference, randomise
from tests.ssl.digits import SIZE, knn_on_digits
from vit_pytorch.levjepa import LeVJEPA, VideoTransformer
from vit_pytorch.levjepa_nd import LeVJEPAND, NDTransformer, sigreg_loss
from vit_pytorch.ssl.views import MultiCrop, View

VIDEO = {"dim": 24, "depth": 2, "heads": 2, "mlp_dim": 32, "image_size": 32, "patch_size": 8, "frames": 4}
SMALL = {"num_classes_K": 16, "projection_hidden": 16, "drop_ratio": 0.5}


def videos(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 4, 32, 32, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def test_the_call_of_the_public_package():
    learner = LeVJEPA(VideoTransformer(**VIDEO), image_size=32, local_size=16, **SMALL)
    loss, parts = learner(videos(), return_loss_breakdown=True)
    assert (parts.invariance_loss + parts.sigreg_loss).equal(loss)
    learner(videos()).backward()
    still = [name for name, parameter in learner.named_parameters() if parameter.grad is None]
    assert still == []
    assert learner(videos(), return_embedding=True).shape == (4, 24)
    first, second = (learner.eval()(videos(), generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert first.equal(second)


def test_arrays_of_any_number_of_axes():
    def augment(x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)

    sizes = {"input_shape": (4, 4, 8, 8), "patch_size": (1, 2, 4, 4)}
    encoder = NDTransformer(ndim=4, **sizes, dim=24, depth=1, heads=2, mlp_dim=32)
    options = {"augment_src": augment, "augment_tgt": augment, "num_target_aug_views": 2}
    learner = LeVJEPAND(encoder, input_shape=(4, 4, 8, 8), **options, **SMALL)
    learner(torch.randn(3, 3, 4, 4, 8, 8)).backward()
    assert learner(torch.randn(3, 3, 4, 4, 8, 8), return_embedding=True).shape == (3, 24)
    with pytest.raises(ValueError, match="must be at most"):
        LeVJEPAND(encoder, input_shape=16)


@torch.no_grad()
def test_views_of_one_video_are_compared():
    learner = LeVJEPA(
        randomise(VideoTransformer(**VIDEO)), image_size=32, **SMALL, use_batch_norm=False
    ).eval()
    views = [videos(), videos(seed=1), videos(seed=2)[..., :16, :16]]
    found = learner.losses(views, torch.Generator().manual_seed(0))
    projected = torch.stack([learner.projector(learner.embed(view)) for view in views])
    distance = sum((projected[v] - projected[0]).square().mean() for v in range(3)) / 3
    torch.testing.assert_close(found.invariance_loss, distance)
    sigreg = sigreg_loss(projected, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.sigreg_loss, 0.02 * sigreg)
    with pytest.raises(ValueError, match="at least two views, got 1"):
        learner.losses(views[:1])


@torch.no_grad()
def test_frames_know_nothing_of_later_ones():
    encoder = randomise(VideoTransformer(**VIDEO)).eval()
    later = videos()
    later[:, :, 2:] = videos(seed=1)[:, :, 2:]
    before, after = encoder(videos()), encoder(later)
    torch.testing.assert_close(before[:, 1:33], after[:, 1:33])
    assert (before - after)[:, 33:].abs().amax(dim=(0, 2)).min() > 0.01
    assert (before - after)[:, 0].abs().max() > 0.01
    whole = randomise(VideoTransformer(**VIDEO, block_causal=False)).eval()
    assert (whole(videos()) - whole(later))[:, 1:33].abs().amax(dim=(0, 2)).min() > 1e-4


@torch.no_grad()
def test_dropped_patches_are_as_if_masked():
    """What stays keeps its place: with all other keys hidden, tokens are the same."""
    encoder = randomise(VideoTransformer(**VIDEO)).train()
    torch.manual_seed(0)
    some = encoder(videos(), drop_ratio=0.75)
    assert some.shape == (4, 1 + 16, 24)
    assert encoder.eval()(videos(), drop_ratio=0.75).shape == (4, 1 + 64, 24)
    tokens, ids = encoder.embed(videos()), torch.tensor([[3, 20, 40, 63]] * 4)
    kept = encoder.encode(torch.cat([tokens[:, :1], tokens[:, 1:][:, ids[0]]], dim=1), (4, 4, 4), ids)
    inputs = encoder.block_inputs((4, 4, 4))
    seen = torch.zeros(65, dtype=torch.bool)
    seen[[0, *(1 + ids[0]).tolist()]] = True
    for block in encoder.blocks:
        q, k, v = block.attention.project(block.norm1(tokens))
        q, k, mask = block.attention.position(q, k, inputs)
        weights = (q @ k.mT * 64**-0.5).masked_fill(~(mask & seen), -torch.inf).softmax(dim=-1).nan_to_num()
        tokens = tokens + block.attention.merge(weights @ v)
        tokens = tokens + block.feedforward(block.norm2(tokens))
    assert difference(kept, encoder.norm(tokens)[:, seen]) < 10 * TOLERANCE


def test_weights_are_standardised():
    options = {**SMALL, "use_weight_standardization": True, "norm_fn": nn.LayerNorm}
    learner = LeVJEPA(VideoTransformer(**VIDEO), image_size=32, **options)
    weight = learner.projector[0].weight
    torch.testing.assert_close(weight.mean(dim=1), torch.zeros(16), atol=1e-6, rtol=0)
    torch.testing.assert_close(weight.var(dim=1, correction=0), torch.ones(16))
    assert isinstance(learner.projector[0], nn.Linear)
    assert isinstance(learner.projector[1], nn.LayerNorm)


def test_frames_of_a_video_share_what_is_drawn():
    view = View((16, 16), (0.2, 0.6), colour=1.0, blur=1.0, solarize=0.5)
    still = torch.rand(6, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 4, -1, -1)
    drawn = view.draw(still, torch.Generator().manual_seed(1))
    assert drawn.shape == (6, 3, 4, 16, 16)
    assert drawn.equal(drawn[:, :, :1].expand_as(drawn))
    assert drawn[:, :, 0].equal(view.draw(still[:, :, 0], torch.Generator().manual_seed(1)))
    (again,) = MultiCrop((view,), (0.1, 0.2, 0.3), (2.0, 1.0, 0.5))(still, torch.Generator().manual_seed(1))
    assert again.shape == drawn.shape


def test_neighbours_share_their_digit():
    """Digits that move: two frames, of which the second is moved by a pixel."""
    torch.manual_seed(0)
    sizes = {"image_size": SIZE, "patch_size": 4, "frames": 2, "channels": 1}
    encoder = VideoTransformer(**sizes, dim=64, depth=2, heads=4, dim_head=16, mlp_dim=128)

    def features(net: VideoTransformer, images: Tensor) -> Tensor:
        return net(torch.stack([images, images.roll(1, dims=3)], dim=2))[:, 1:].mean(dim=1)

    untrained = knn_on_digits(partial(features, encoder.eval()))
    crop = {"flip": 0.0, "grey": 0.0, "blur": 0.0, "colour": 0.5}
    views = MultiCrop((View((SIZE, SIZE), (0.6, 1.0), **crop), *[View((12, 12), (0.4, 0.7), **crop)] * 2))
    cheap = {"num_proj": 32, "knots": 9}
    options = {"num_classes_K": 16, "projection_hidden": 64, "drop_ratio": 0.3, "sigreg_loss_kwargs": cheap}
    learner = LeVJEPA(encoder, image_size=SIZE, views=views, **options).train()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3, weight_decay=0.05, fused=True)
    images = digits(SIZE)[0]
    losses = []
    for _ in range(100):
        batch = images[torch.randint(len(images), (64,))]
        loss = learner(torch.stack([batch, batch.roll(1, dims=3)], dim=2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    trained = knn_on_digits(partial(features, encoder.eval()))
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    assert trained > untrained, (untrained, trained)
