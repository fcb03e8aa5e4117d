"""PatchDropout leaves out as many patches as timm, and what stays computes what timm computes of it."""

from __future__ import annotations

import pytest
import torch
from timm.layers import PatchDropout as TimmPatchDropout
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import ViT, load_pretrained
from vit_pytorch.layers.patches import PatchDropout
from vit_pytorch.recorder import Recorder

SMALL = {"image_size": 48, "patch_size": 8, "num_classes": 7, "dim": 48, "depth": 2, "heads": 3}
OURS = {**SMALL, "dim_head": 16, "mlp_dim": 192}
THEIRS = {"img_size": 48, "patch_size": 8, "num_classes": 7, "embed_dim": 48, "depth": 2, "num_heads": 3}


class Chosen(nn.Module):
    """Leaves the patches of some places, in the manner of either library."""

    def __init__(self, kept: Tensor, prefix: int, *, tell: bool) -> None:
        super().__init__()
        self.places = torch.cat([torch.arange(prefix).expand(len(kept), -1), prefix + kept], dim=1)
        self.kept = kept
        self.tell = tell

    def forward(self, tokens: Tensor, prefix: int = 0, seen: Tensor | None = None):
        left = tokens.take_along_dim(self.places[..., None], dim=1)
        return (left, self.kept) if self.tell else left


@torch.no_grad()
@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        ({}, {}, 1),
        (
            {"num_registers": 4, "positions": {"kind": "learned", "class_token": False}},
            {"reg_tokens": 4, "no_embed_class": True},
            5,
        ),
        (
            {"pool": "mean", "head": {"kind": "linear", "norm": True}},
            {"global_pool": "avg", "class_token": False},
            0,
        ),
        ({"stem": {"kind": "linear", "pre_norm": True}}, {"pre_norm": True}, 1),
    ],
)
def test_same_patches_give_timms_logits(ours, theirs, prefix):
    reference = randomise(VisionTransformer(**THEIRS, **theirs, patch_drop_rate=0.5)).train()
    model = ViT(**OURS, **ours, patch_dropout=0.5).train()
    load_pretrained(model, reference.state_dict())
    kept = torch.stack([torch.randperm(36)[:18].sort().values for _ in range(2)])
    reference.patch_drop = Chosen(kept, prefix, tell=False)
    model.patch_dropout = Chosen(kept, prefix, tell=True)
    batch = images(48, 48)
    assert difference(model(batch), reference(batch)) < TOLERANCE
    assert difference(model.forward_features(batch), reference.forward_features(batch)) < TOLERANCE


@pytest.mark.parametrize("patches", [1, 2, 7, 10, 36, 196])
@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("prefix", [0, 3])
def test_as_many_stay_as_in_timm(patches, p, prefix):
    tokens = torch.randn(3, prefix + patches, 4)
    left, kept = PatchDropout(p).train()(tokens, prefix)
    assert left.shape == TimmPatchDropout(p, num_prefix_tokens=prefix).train()(tokens).shape
    assert kept.shape == (3, max(1, int(patches * (1 - p))))


def test_what_stays():
    """Prefix tokens, and patches in order, others in each sample and each time; every patch as often."""
    drop, tokens = PatchDropout(0.6).train(), torch.randn(200, 2 + 10, 4)
    left, kept = drop(tokens, 2)
    assert left[:, :2].equal(tokens[:, :2])
    assert (kept.diff(dim=1) > 0).all()
    for sample, places, whole in zip(left, kept, tokens, strict=True):
        assert sample[2:].equal(whole[2:][places])
    assert not drop(tokens, 2)[1].equal(kept)
    share = torch.stack([drop(tokens, 2)[1] for _ in range(20)]).flatten().bincount(minlength=10) / 4000
    torch.testing.assert_close(share, torch.full((10,), 0.4), rtol=0, atol=0.05)


def test_all_stay_in_eval():
    tokens = torch.randn(2, 12, 4)
    for drop in (PatchDropout(0.5).eval(), PatchDropout(0.0).train()):
        left, kept = drop(tokens, 2)
        assert left is tokens
        assert kept is None
    model = randomise(ViT(**OURS, patch_dropout=0.5))
    batch = images(48, 48)
    assert model.forward_features(batch).shape == (2, 37, 48)
    assert model(batch).equal(model(batch))
    model.train()
    assert model.forward_features(batch).shape == (2, 19, 48)
    assert not model(batch).equal(model(batch))


@torch.no_grad()
def test_positions_come_before():
    """Tokens have the positions of the places that they come from."""
    model = randomise(ViT(**OURS, patch_dropout=0.5)).train()
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = images(48, 48)
    model(batch)
    whole = model.embed(batch)
    apart = torch.cdist(seen[0], whole).argmin(dim=2)
    assert apart[:, 0].tolist() == [0, 0]
    assert seen[0].equal(whole.take_along_dim(apart[..., None], dim=1))


@pytest.mark.parametrize("positions", ["learned", "rope", "rope_mixed", "relative", "relative_by_layer"])
def test_intermediates_in_training(positions):
    model = randomise(ViT(**OURS, positions=positions, patch_dropout=0.5)).train()
    batch = images(48, 48)
    final, taken = model.forward_intermediates(batch, output_fmt="NLC", return_prefix_tokens=True)
    assert final.shape == (2, 19, 48)
    assert [(tokens.shape[1], prefix.shape[1]) for tokens, prefix in taken] == [(18, 1), (18, 1)]
    with pytest.raises(ValueError, match="a map needs all 36 patches, and patch_dropout leaves 18 of them"):
        model.forward_intermediates(batch)
    final.sum().backward()
    assert model.eval().forward_intermediates(batch)[1][0].shape == (2, 48, 6, 6)


def test_maps_are_recorded_in_training():
    model = randomise(ViT(**OURS, positions="rope", patch_dropout=0.5)).train()
    _, maps = Recorder(model)(images(48, 48))
    assert maps.shape == (2, 2, 3, 19, 19)


@pytest.mark.parametrize("p", [1.0, -0.1])
def test_wrong_share(p):
    with pytest.raises(ValueError, match=rf"patch_dropout must be a number in \[0, 1\), got {p}"):
        ViT(**OURS, patch_dropout=p)
