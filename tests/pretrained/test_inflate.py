"""Video models that start from image models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.papers.reference import TOLERANCE, difference, randomise
from vit_pytorch import SimpleViT, ViT
from vit_pytorch.pretrained import inflate
from vit_pytorch.simple_vit_3d import SimpleViT3D
from vit_pytorch.vit_3d import ViT3D
from vit_pytorch.vivit import ViViT

BOTH = {"num_classes": 7, "dim": 48, "heads": 4, "dim_head": 12, "mlp_dim": 96, "image_size": (20, 16)}
IMAGE = {**BOTH, "patch_size": 4, "depth": 2, "act": "gelu_tanh"}
VIDEO = {**BOTH, "image_patch_size": 4, "frames": 9, "frame_patch_size": 3}
FACTORISED = ("factorized_encoder", "factorized_self_attention", "factorized_dot_product")
HOWS = ("central", "average")


def image_model(**changes: Any) -> ViT:
    return randomise(ViT(**{**IMAGE, **changes}))


def vivit(variant: str, **changes: Any) -> ViViT:
    depths = {"temporal_depth": 2} if variant == "factorized_encoder" else {}
    return randomise(ViViT(**{**VIDEO, "spatial_depth": 2, "variant": variant, **depths, **changes}), seed=7)


def still(frames: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.randn(2, 3, 20, 16)
    return image, image[:, :, None].expand(-1, -1, frames, -1, -1)


@torch.inference_mode()
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", ["plain", "patch_norm", "joint", "factorized_self_attention"])
def test_frames_of_a_still_video_have_the_images_tokens(kind: str, how: str) -> None:
    source = image_model(pool="mean", stem="dual_norm" if kind == "patch_norm" else "linear")
    if kind in ("plain", "patch_norm"):
        options = {"depth": 2, "pool": "mean", "act": "gelu_tanh", "patch_norm": kind == "patch_norm"}
        model = randomise(ViT3D(**VIDEO, **options), seed=7)
    else:
        model = vivit(kind, pool="mean")
    report = inflate(source, model, how)
    assert report.kept[-2:] == ("head.weight", "head.bias")
    assert all("time." in name for name in report.kept[:-2])
    image, video = still()
    want, features = source.forward_features(image), model.forward_features(video)
    for frame in features.unflatten(1, (3, 20)).unbind(1):
        assert difference(frame, want) < TOLERANCE
    embedding = source.forward_head(want, pre_logits=True)
    assert (
        difference(model.forward_head(model.forward_features(video), pre_logits=True), embedding) < TOLERANCE
    )


@torch.inference_mode()
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_encoder_of_frames_is_the_image_model(pool: str, how: str) -> None:
    """Each patch of a moving video is its central frame, or the mean of its frames."""
    source = image_model(pool=pool)
    model = vivit("factorized_encoder", pool=pool)
    before = {name: part.clone() for name, part in model.state_dict().items()}
    report = inflate(source, model, how)
    assert {name.split(".")[0] for name in report.kept} == {"blocks", "temporal_embed", "norm", "head"}
    assert all(model.state_dict()[name].equal(before[name]) for name in report.kept)
    video = torch.randn(2, 3, 9, 20, 16)
    frames = video[:, :, 1::3] if how == "central" else video.unflatten(2, (3, 3)).mean(3)
    options = {"return_prefix_tokens": True, "norm": True, "output_fmt": "NLC", "intermediates_only": True}
    ((patches, tokens),) = model.forward_intermediates(video, [1], **options)
    for place, frame in enumerate(frames.unbind(2)):
        want = source.forward_features(frame)
        prefix = len(source.prefix)
        assert difference(patches.unflatten(1, (3, 20))[:, place], want[:, prefix:]) < TOLERANCE
        if prefix:
            assert difference(tokens[:, place], want[:, 0]) < TOLERANCE


@torch.inference_mode()
def test_class_token_of_one_sequence_starts_as_the_images() -> None:
    source = image_model()
    model = vivit("joint")
    inflate(source, model, "average")
    image, video = still()
    patches = source.embed(image)
    want = torch.cat([patches[:, :1], patches[:, 1:].repeat(1, 3, 1)], dim=1)
    assert difference(model.embed(video), want) < TOLERANCE
    assert model.blocks[1].state_dict().keys() == source.blocks[1].state_dict().keys()
    for name, part in source.blocks.state_dict().items():
        assert model.blocks.state_dict()[name].equal(part)


def test_half_of_the_heads_keep_their_weights() -> None:
    source, model = image_model(), vivit("factorized_dot_product")
    assert inflate(source, model).kept == ("head.weight", "head.bias")
    for name, part in source.blocks.state_dict().items():
        assert model.blocks.state_dict()[name].equal(part)
    assert model.positions.table.equal(source.positions.table[:, 1:].repeat(1, 3, 1))


def test_attention_over_time_adds_nothing_and_learns() -> None:
    model = vivit("factorized_self_attention")
    inflate(image_model(), model)
    model(torch.randn(2, 3, 9, 20, 16)).square().sum().backward()
    for block in model.blocks:
        assert not block.time.to_out.weight.any()
        assert block.time.to_out.weight.grad.any()


@pytest.mark.parametrize("variant", ["joint", "factorized_encoder"])
def test_positions_are_interpolated_in_space(variant: str) -> None:
    source = image_model(image_size=32)
    model = vivit(variant)
    report = inflate(source, model)
    assert report.resized == {"positions.table": ((8, 8), (5, 4))}
    cells = source.positions.table[:, 1:].mT.unflatten(2, (8, 8))
    want = F.interpolate(cells, (5, 4), mode="bicubic", antialias=True).flatten(2).mT
    found = model.positions.table
    assert found[:, :1].equal(source.positions.table[:, :1])
    assert all(part.equal(want) for part in found[:, 1:].split(20, dim=1))


def test_model_without_class_token_takes_one_that_has_it_and_the_other_way_round() -> None:
    model = vivit("joint", pool="mean")
    source = image_model()
    inflate(source, model)
    assert model.positions.table.equal(source.positions.table[:, 1:].repeat(1, 3, 1))
    with_token = vivit("joint")
    token = with_token.prefix.class_token.clone()
    assert "prefix.class_token" in inflate(image_model(pool="mean"), with_token).kept
    assert with_token.prefix.class_token.equal(token)
    assert not with_token.positions.table[:, 0].any()


def test_fixed_positions_stay() -> None:
    source = randomise(SimpleViT(**{key: IMAGE[key] for key in IMAGE if key != "act"}))
    model = SimpleViT3D(**VIDEO, depth=2)
    table = model.positions.table.clone()
    inflate(source, model)
    assert model.positions.table.equal(table)
    learned = randomise(ViT3D(**VIDEO, depth=2, pool="mean"))
    inflate(source, learned)
    assert learned.positions.table.equal(source.positions.table.repeat(1, 3, 1))


def test_models_that_differ_are_refused() -> None:
    model = vivit("joint")
    before = {name: part.clone() for name, part in model.state_dict().items()}
    for options, words in (
        ({"depth": 3}, r"ViT does not fit ViViT"),
        ({"dim": 24}, r"ViT does not fit ViViT"),
        ({"num_registers": 2}, r"registers"),
        ({"patch_size": (4, 2)}, r"patch_embed.proj.weight"),
    ):
        with pytest.raises(ValueError, match=words):
            inflate(image_model(**options), model)
    with pytest.raises(ValueError, match="2 and 3 axes; got 3 and 3"):
        inflate(model, model)
    with pytest.raises(ValueError, match="one of central, average; got 'mean'"):
        inflate(image_model(), model, "mean")
    assert all(part.equal(before[name]) for name, part in model.state_dict().items())
