"""Position prediction does what its paper says; there is no program of the authors to run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.papers.reference import TOLERANCE, images, randomise
from vit_pytorch import create_model
from vit_pytorch.layers.attention import attention_weights
from vit_pytorch.mp3 import MP3, ViT
from vit_pytorch.vit import ViT as PlainViT

SMALL = {"image_size": 48, "patch_size": 8, "num_classes": 0, "heads": 4, "dim_head": 12, "mlp_dim": 96}


def make(*, pool: str = "cls", masking_ratio: float = 0.75, loss_on: str = "all", **options) -> MP3:
    vit = ViT(**SMALL, dim=48, depth=3, pool=pool, **options)
    return MP3(vit=vit, masking_ratio=masking_ratio, loss_on=loss_on)


def test_the_vit_is_the_vit():
    assert ViT is PlainViT


def test_there_is_a_class_for_every_place():
    assert make().head.out_features == 36


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_in_plain_steps(pool):
    """A mask of the keys in every layer gives the same: context as it is in that layer, not as it began."""
    method, pixels, noise = randomise(make(pool=pool)), images(48, 48), torch.rand(2, 36)
    vit, prefix = method.vit, method.vit.num_prefix_tokens
    x = vit.patch_embed(pixels)
    if prefix:
        x = torch.cat([vit.prefix.class_token.expand(2, -1, -1), x], dim=1)
    context = torch.ones(2, prefix + 36, dtype=torch.bool)
    for b in range(2):
        for place in noise[b].argsort()[9:]:
            context[b, prefix + place] = False
    for block in vit.blocks:
        attention = block.attention
        q, k, v = attention.project(block.norm1(x))
        weights = attention_weights(q, k, mask=context[:, None, None])
        x = x + attention.merge(weights @ v)
        x = x + block.feedforward(block.norm2(x))
    want = method.head(vit.norm(x)[:, prefix:])
    logits, masked = method.predict(pixels, noise)
    assert (logits - want).abs().max() < TOLERANCE
    assert masked.equal(~context[:, prefix:])
    places = torch.arange(36).repeat(2)
    torch.testing.assert_close(method(pixels, noise), F.cross_entropy(want.flatten(0, 1), places))
    method.loss_on = "masked"
    chosen = masked.flatten()
    want = F.cross_entropy(want.flatten(0, 1)[chosen], places[chosen])
    torch.testing.assert_close(method(pixels, noise), want)


def test_patches_outside_the_context_are_not_seen():
    method, pixels, noise = randomise(make()), images(48, 48), torch.rand(2, 36)
    logits, masked = method.predict(pixels, noise)
    assert masked.sum(dim=1).tolist() == [27, 27]
    patches = method.vit.patchify(pixels)
    hidden = masked.clone()
    for b in range(2):
        hidden[b, masked[b].nonzero()[0]] = False
    other = method.vit.grid.unpatchify(torch.where(hidden[..., None], torch.randn_like(patches), patches))
    changed, _ = method.predict(other, noise)
    assert changed[~hidden].equal(logits[~hidden])
    assert not changed[hidden].isclose(logits[hidden]).all(dim=-1).any()


def test_patches_do_not_know_their_places():
    """Shuffled patches give the same logits, shuffled: nothing but content tells the place."""
    method, pixels, noise = randomise(make()), images(48, 48), torch.rand(2, 36)
    logits, _ = method.predict(pixels, noise)
    order = torch.randperm(36)
    shuffled = method.vit.grid.unpatchify(method.vit.patchify(pixels)[:, order])
    moved, _ = method.predict(shuffled, noise[:, order])
    torch.testing.assert_close(moved, logits[:, order], rtol=0, atol=TOLERANCE)


def test_all_context_is_the_model_without_positions():
    vit = randomise(ViT(**SMALL, dim=48, depth=3, positions="none"))
    method = MP3(vit=vit)
    method.context = 36
    logits, _ = method.predict(images(48, 48))
    want = method.head(vit.forward_features(images(48, 48))[:, 1:])
    torch.testing.assert_close(logits, want, rtol=0, atol=TOLERANCE)


def test_all_weights_but_the_positions_learn():
    method = make(dropout=0.1, drop_path=0.1, num_registers=2, layer_scale=0.1)
    method.vit.set_grad_checkpointing()
    method(images(48, 48, batch=8)).backward()
    idle = [name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == ["vit.positions.table"]


def test_wrong_input():
    method = make()
    with pytest.raises(ValueError, match=r"shape \(2, 36\); got \(2, 9\)"):
        method(images(48, 48), torch.rand(2, 9))
    with pytest.raises(ValueError, match=r"images of size \(48, 48\), got \(40, 48\)"):
        method(images(40, 48))
    with pytest.raises(ValueError, match="loss_on must be one of all, masked; got 'none'"):
        make(loss_on="none")
    with pytest.raises(ValueError, match=r"masking_ratio must be .*, got 0\.0"):
        make(masking_ratio=0.0)


@pytest.mark.parametrize(
    "name",
    [
        "deepvit_S",
        "vit_small_patch16_18x2_224",
        "deit_small_patch16_224_ats",
        "vit_small_patch16_224_patch_merger",
        "navit_tiny_patch16",
    ],
)
@pytest.mark.filterwarnings("ignore:DeepViT embeds patches")
def test_models_of_other_blocks_are_refused(name):
    with pytest.raises(ValueError, match="needs a model of plain self-attention blocks"):
        MP3(vit=create_model(name))


def test_other_modules_are_refused():
    with pytest.raises(ValueError, match="got Linear"):
        MP3(vit=nn.Linear(2, 2))
