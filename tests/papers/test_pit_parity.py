"""PiT computes what timm's PoolingVisionTransformer computes."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.pit import PoolingVisionTransformer, checkpoint_filter_fn

from tests.papers.family import Family, Named
from tests.papers.reference import TOLERANCE, difference, images
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.layers.tokens import DistilledHead
from vit_pytorch.pit import HeadPool, PiT
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry

OURS = {
    "image_size": 48,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 24,
    "depth": (1, 2, 1),
    "heads": 2,
    "mlp_dim": 96,
}
THEIRS = {
    "img_size": 48,
    "patch_size": 8,
    "stride": 4,
    "num_classes": 7,
    "base_dims": (12, 12, 12),
    "depth": (1, 2, 1),
    "heads": (2, 4, 8),
}

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "distilled": ({"distilled": True}, {"distilled": True}),
    "not square": ({"image_size": (32, 72)}, {"img_size": (32, 72)}),
    "another stride": ({"stride": 2, "image_size": 24}, {"stride": 2, "img_size": 24}),
    "sizes stage by stage": (
        {"dim": (24, 24, 72), "heads": (2, 3, 6), "mlp_dim": (48, 48, 144)},
        {"base_dims": (12, 8, 12), "heads": (2, 3, 6), "mlp_ratio": 2},
    ),
    "two stages": (
        {"depth": (2, 1), "mlp_dim": 72},
        {"depth": (2, 1), "base_dims": (12, 12), "heads": (2, 4), "mlp_ratio": 3},
    ),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
}
FAMILY = Family(
    PiT,
    PoolingVisionTransformer,
    OURS,
    THEIRS,
    OPTIONS,
    module="pit",
    named=[
        Named("pit_ti_224"),
        Named("pit_ti_distilled_224"),
        *(
            Named(name, {"depth": (1, 1, 1)}, {"depth": (1, 1, 1)})
            for name in ("pit_xs_224", "pit_s_distilled_224", "pit_b_224")
        ),
    ],
    maps=("distilled", "not square", "two stages"),
    # timm has no groups for it, and cuts the list of its weights into twelves.
    layers=False,
    trained=("plain", "distilled"),
)


@torch.inference_mode()
def test_maps_and_strides() -> None:
    """27 overlapping patches, then 14 and 7; the stride is that of the patches' distance in pixels."""
    model = create_model("pit_ti_224", depth=(1, 1, 1)).eval()
    maps = model.forward_intermediates(images(224, 224, batch=1), intermediates_only=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 27, 27), (128, 14, 14), (256, 7, 7)]
    assert [(i["num_chs"], i["reduction"]) for i in model.feature_info] == [(64, 8), (128, 16), (256, 32)]
    theirs = timm.create_model("pit_ti_224").feature_info
    assert [i["reduction"] for i in model.feature_info] == [i["reduction"] for i in theirs]
    assert [i["num_chs"] for i in model.feature_info] == [i["num_chs"] for i in theirs]
    assert isinstance(model.get_submodule(model.feature_info[1]["module"]).down, HeadPool)


@torch.inference_mode()
def test_the_final_norm_acts_on_the_last_stage_alone() -> None:
    model, _ = FAMILY.pair("plain")
    x = images(48, 48)
    final, normed = model.forward_intermediates(x, norm=True, output_fmt="NLC", return_prefix_tokens=True)
    _, bare = model.forward_intermediates(x, output_fmt="NLC", return_prefix_tokens=True)
    for a, b in zip(normed[:2], bare[:2], strict=True):
        assert a[0].equal(b[0])
        assert a[1].equal(b[1])
    assert torch.cat(normed[2][::-1], dim=1).equal(final)
    assert torch.cat(bare[2][::-1], dim=1).equal(final) is False
    early = model.forward_intermediates(x, [0], stop_early=True, output_fmt="NLC", intermediates_only=True)
    assert early[0].equal(bare[0][0])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("pit_ti_224", 4_847_272),
        ("pit_xs_224", 10_618_888),
        ("pit_s_224", 23_461_912),
        ("pit_b_224", 73_764_840),
        ("pit_ti_distilled_224", 5_104_336),
        ("pit_s_distilled_224", 24_039_056),
    ],
)
def test_parameter_count_is_the_published_one(name: str, parameters: int) -> None:
    assert find_entry(name).parameters == parameters


@pytest.mark.parametrize("name", ["plain", "distilled", "two stages"])
def test_authors_names(name: str) -> None:
    """The authors' files keep the pools apart from the stages; timm's own reader translates them, too."""
    model, reference = FAMILY.pair(name)
    state = {
        key.replace("transformers.1.pool.", "pools.0.").replace("transformers.2.pool.", "pools.1."): tensor
        for key, tensor in reference.state_dict().items()
    }
    again = PiT(**{**OURS, **OPTIONS[name][0]})
    assert load_pretrained(again, state).format == "pit"
    assert all(model.state_dict()[key].equal(tensor) for key, tensor in again.state_dict().items())
    written = to_format(again, "pit")
    assert written.keys() == state.keys()
    assert all(written[key].equal(tensor) for key, tensor in state.items())
    reference.load_state_dict(checkpoint_filter_fn(written, reference), strict=True)


@pytest.mark.filterwarnings("ignore:.*have their initial values:UserWarning")
def test_new_number_of_classes_replaces_both_heads() -> None:
    model, _ = FAMILY.pair("distilled")
    other = PiT(**{**OURS, "num_classes": 5}, distilled=True)
    report = load_pretrained(other, model.state_dict())
    assert set(report.kept) == {
        "head.classifier.weight",
        "head.classifier.bias",
        "head.distilled.weight",
        "head.distilled.bias",
    }
    assert other.eval().forward_features(images(48, 48)).equal(model.forward_features(images(48, 48)))


def test_positions_are_interpolated_in_two_dimensions() -> None:
    model, reference = FAMILY.pair("plain")
    larger = PiT(**{**OURS, "image_size": (48, 64)}).eval()
    report = load_pretrained(larger, model.state_dict(), grid=(11, 11))
    assert report.resized == {"positions.table": ((11, 11), (11, 15))}
    want = F.interpolate(reference.pos_embed, (11, 15), mode="bicubic", antialias=True)
    torch.testing.assert_close(larger.positions.table, want.flatten(2).transpose(1, 2))


# What other programs get wrong.


def test_width_heads_and_feedforward_double_from_stage_to_stage() -> None:
    model = PiT(**OURS)
    blocks = [stage.blocks[0] for stage in model.stages]
    assert [b.feedforward.to_hidden.weight.shape for b in blocks] == [(96, 24), (192, 48), (384, 96)]
    assert [b.attention.heads for b in blocks] == [2, 4, 8]
    assert [b.attention.dim_head for b in blocks] == [12, 12, 12]


def test_pooling_is_one_grouped_convolution() -> None:
    pool = HeadPool(4, 8)
    assert {name: tuple(p.shape) for name, p in pool.named_parameters()} == {
        "conv.weight": (8, 1, 3, 3),
        "conv.bias": (8,),
        "fc.weight": (8, 4),
        "fc.bias": (8,),
    }
    x = torch.randn(2, 2 + 15, 4)
    out = pool(x, (3, 5))
    assert out.shape == (2, 2 + 2 * 3, 8)
    torch.testing.assert_close(out[:, :2], pool.fc(x[:, :2]))
    # The middle of the first window is the first patch; channels 2 and 3 come from channel 1 alone.
    only = torch.zeros_like(x)
    only[:, :, 1] = x[:, :, 1]
    moved = (pool(only, (3, 5)) - pool(torch.zeros_like(x), (3, 5)))[:, 2:]
    assert moved[..., 2:4].any()
    assert not moved[..., :2].any()
    assert not moved[..., 4:].any()


def test_positions_belong_to_the_patches_alone() -> None:
    model, _ = FAMILY.pair("distilled")
    assert model.positions.table.shape == (1, 11 * 11, 24)
    tokens = model.embed(images(48, 48))
    assert tokens[:, :2].equal(model.tokens.expand(2, -1, -1))


def test_every_block_projects_and_has_biases() -> None:
    one_head = PiT(**{**OURS, "heads": (1, 1, 1)})
    for stage in one_head.stages:
        for block in stage.blocks:
            assert block.attention.to_out.weight.ndim == 2
            assert block.attention.to_qkv.bias is not None


def test_smaller_image_has_the_positions_of_the_same_places() -> None:
    model, _ = FAMILY.pair("plain")
    x = images(48, 48)
    part = model.embed(x[..., :24, :40])[:, 1:].unflatten(1, (5, 9))
    assert part.allclose(model.embed(x)[:, 1:].unflatten(1, (11, 11))[:, :5, :9], atol=1e-6)


def test_distilled_logits_are_the_mean_in_training_too() -> None:
    model, reference = FAMILY.pair("distilled")
    x = images(48, 48)
    for net in (model, reference):
        net.train()
    assert difference(model(x), reference(x)) < TOLERANCE
    assert isinstance(model.head, DistilledHead)
    embedding = model.pool_features(model.forward_features(x))
    assert embedding.shape == (2, 2 * 96)
    token, distilled = model.head.separate(embedding)
    reference.set_distilled_training()
    expected, expected_distilled = reference(x)
    assert difference(token, expected) < TOLERANCE
    assert difference(distilled, expected_distilled) < TOLERANCE


def test_distilled_model_keeps_two_heads() -> None:
    model = PiT(**OURS, distilled=True)
    model.reset_classifier(5)
    assert isinstance(model.head, DistilledHead)
    assert model.head.distilled.weight.shape == (5, 96)
    model.reset_classifier(0)
    tokens = model.forward_features(images(48, 48))
    assert model(images(48, 48)).equal((tokens[:, 0] + tokens[:, 1]) / 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": (2, 4)}, r"heads must be one number or one for each of 3 stages, got \(2, 4\)"),
        ({"dim": (24, 36, 72)}, "a multiple of that of the stage before, got 24, 36"),
        ({"heads": (5, 5, 5)}, "must be a multiple of heads, got dim=24 and heads=5"),
        (
            {"image_size": 50},
            r"image size must be patch size \(8, 8\) plus a multiple of .*\(4, 4\), got \(50, 50\)",
        ),
        ({"image_size": 6}, r"at least \(8, 8\), got image size \(6, 6\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PiT(**{**OURS, **wrong})


def test_other_poolings_are_refused() -> None:
    model = PiT(**OURS)
    model.reset_classifier(5, "token")
    with pytest.raises(ValueError, match="pooling cannot be 'avg'"):
        model.reset_classifier(5, "avg")


def test_coarse_groups_are_stages() -> None:
    model = PiT(**OURS)
    names = [name for name, _ in model.named_parameters() if not name.startswith("head")]
    for coarse, groups in ((True, 4), (False, 7)):
        found = timm.models.group_parameters(model, model.group_matcher(coarse))
        members = [name for group in found.values() for name in group if not name.startswith("head")]
        assert sorted(members) == sorted(names)
        assert len([g for g in found.values() if not all(n.startswith("head") for n in g)]) == groups
