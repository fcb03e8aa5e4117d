"""The ViT for small datasets computes what its authors' program computes."""

from __future__ import annotations

import math

import pytest
import torch

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import load_pretrained
from vit_pytorch.pretrained import to_format
from vit_pytorch.vit_for_small_dataset import SPT, Locality, ViT

SMALL = {
    "image_size": 32,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 48,
    "depth": 3,
    "heads": 3,
    "dim_head": 16,
    "mlp_dim": 96,
}


@torch.inference_mode()
@pytest.mark.parametrize("name", ["spt_lsa_vit", "spt_vit", "lsa_vit"])
def test_logits_equal_the_authors(name: str) -> None:
    config, weights, golden = read_golden(name)
    same = ("patch_size", "num_classes", "dim", "depth", "heads", "channels", "dim_head")
    model = ViT(
        image_size=config["img_size"],
        mlp_dim=config["dim"] * config["mlp_dim_ratio"],
        stem="shifted" if config["is_SPT"] else "linear",
        attention="locality" if config["is_LSA"] else "plain",
        **{key: config[key] for key in same},
    ).eval()
    report = load_pretrained(model, weights, grid="model")
    assert report.format == "SPT_LSA_ViT"
    assert [*report.kept, *report.dropped, *report.resized] == []
    assert difference(model(golden["input"]), golden["output"]) < TOLERANCE
    written = to_format(model, "SPT_LSA_ViT")
    assert written.keys() == weights.keys()
    assert all(written[key].equal(tensor) for key, tensor in weights.items())


@pytest.mark.parametrize("patch", [(4, 4), (2, 6), (5, 3)])
def test_shifts_are_diagonal_by_half_a_patch(patch: tuple[int, int]) -> None:
    x = torch.randn(1, 2, 2 * patch[0], 2 * patch[1])
    down, right = patch[0] // 2, patch[1] // 2
    want = [x]
    for dy, dx in ((down, right), (down, -right), (-down, right), (-down, -right)):
        moved = torch.zeros_like(x)
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                if 0 <= i - dy < x.shape[2] and 0 <= j - dx < x.shape[3]:
                    moved[:, :, i, j] = x[:, :, i - dy, j - dx]
        want.append(moved)
    assert SPT(8, patch, 2).with_shifts(x).equal(torch.cat(want, dim=1))


@torch.inference_mode()
def test_shifted_patches_take_maps_of_any_size() -> None:
    spt = randomise(SPT(8, 4, channels=5))
    x = torch.randn(2, 5, 12, 20)
    tokens = spt(x)
    assert tokens.shape == (2, 15, 8)
    patch = spt.with_shifts(x)[1, :, 4:8, 12:16].permute(1, 2, 0).flatten()
    torch.testing.assert_close(tokens[1, 8], spt.linear(spt.norm(patch)))
    with pytest.raises(ValueError, match=r"must be a multiple of patch size \(4, 4\), got \(12, 18\)"):
        spt(x[..., :18])


def test_patch_without_a_half_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 2, got \(1, 1\)"):
        SPT(8, 1)


def test_temperatures_start_at_vits_scale() -> None:
    temperature = Locality(3, 16).temperature.factors
    assert temperature.requires_grad
    torch.testing.assert_close(temperature.detach(), torch.full((3,), 0.25))


@torch.inference_mode()
def test_locality_leaves_each_token_out_of_its_own_sum() -> None:
    attend = Locality(2, 4)
    attend.temperature.factors.copy_(torch.tensor([0.3, 1.7]))
    q, k, v = torch.randn(3, 2, 2, 5, 4).unbind(0)
    mixed = attend(q, k, v)
    for b in range(2):
        for head, temperature in enumerate((0.3, 1.7)):
            for i in range(5):
                others = [j for j in range(5) if j != i]
                weights = [math.exp(temperature * torch.dot(q[b, head, i], k[b, head, j])) for j in others]
                want = sum(w / sum(weights) * v[b, head, j] for w, j in zip(weights, others, strict=True))
                torch.testing.assert_close(mixed[b, head, i], want)


@torch.inference_mode()
def test_mean_pooling_leaves_the_class_token_out() -> None:
    model = ViT(**SMALL, pool="mean")
    randomise(model)
    features = model.forward_features(images(32, 32))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.equal(model.fc_norm(features[:, 1:].mean(dim=1)))


def test_stochastic_depth_is_the_same_in_every_block() -> None:
    for block in ViT(**SMALL, drop_path=0.1).blocks:
        assert block.drop_path.p == 0.1


@pytest.mark.parametrize(
    ("option", "known"),
    [("pool", "cls, mean"), ("stem", "shifted, linear"), ("attention", "locality, plain")],
)
def test_unknown_options_are_refused(option: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be one of {known}; got 'other'"):
        ViT(**SMALL, **{option: "other"})
