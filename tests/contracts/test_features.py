import re
from itertools import chain
from math import inf

import pytest
import torch
from torch import Tensor, nn

from vit_pytorch.backbone import Backbone
from vit_pytorch.base import VisionModel
from vit_pytorch.pretrained import load_pretrained
from vit_pytorch.sam2_hiera import SAM2Hiera


def as_tokens(features: Tensor) -> Tensor:
    """Read a feature map as tokens; tokens stay as they are."""
    return features if features.ndim == 3 else features.flatten(2).transpose(1, 2)


def test_features_then_head(model: VisionModel, images: Tensor):
    features = model.forward_features(images)
    assert as_tokens(features).shape[::2] == (3, model.num_features)
    assert model.forward_head(features).equal(model(images))
    embedding = model.forward_head(features, pre_logits=True)
    assert embedding.shape == (3, model.head_hidden_size)
    assert model.get_classifier()(embedding).equal(model(images))


def test_without_classes(build, model: VisionModel, images: Tensor):
    headless = build(num_classes=0)
    headless.load_state_dict(model.state_dict(), strict=False)
    assert isinstance(headless.get_classifier(), nn.Identity)
    assert headless(images).equal(model.forward_head(model.forward_features(images), pre_logits=True))


def test_default_cfg(model: VisionModel):
    cfg = model.default_cfg
    assert cfg is model.pretrained_cfg
    assert cfg["input_size"] == (model.channels, *model.image_size)
    assert cfg["num_classes"] == model.num_classes
    assert len(cfg["mean"]) == len(cfg["std"]) == model.channels
    assert cfg["interpolation"] in ("bilinear", "bicubic", "nearest")
    assert 0 < cfg["crop_pct"] <= 1


def test_feature_info(model: VisionModel, images: Tensor):
    final, maps = model.forward_intermediates(images)
    assert final.equal(model.forward_features(images))
    assert len(maps) == len(model.feature_info)
    for info, features in zip(model.feature_info, maps, strict=True):
        assert isinstance(model.get_submodule(info["module"]), nn.Module)
        reductions = info.get("reductions", [info["reduction"]] * len(model.image_size))
        size = [extent // step for extent, step in zip(model.image_size, reductions, strict=True)]
        assert features.shape == (3, info["num_chs"], *size)


def test_intermediate_indices(model: VisionModel, images: Tensor):
    _, every = model.forward_intermediates(images)
    depth = len(every)
    for indices, layers in ((1, [-1]), (depth, range(depth)), ([0], [0]), ([-1], [-1]), ([0, -1], [0, -1])):
        taken = model.forward_intermediates(images, indices, intermediates_only=True)
        assert len(taken) == len(layers)
        assert all(features.equal(every[layer]) for features, layer in zip(taken, layers, strict=True))
    for outside in ([depth], [-depth - 1], depth + 1, 0):
        with pytest.raises(ValueError, match=str(depth)):
            model.forward_intermediates(images, outside)


def test_intermediate_formats(model: VisionModel, images: Tensor):
    maps = model.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
    tokens = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    flat = (features.flatten(2).transpose(1, 2) for features in maps)
    assert all(features.equal(same) for features, same in zip(flat, tokens, strict=True))
    with pytest.raises(ValueError, match="one of NCHW, NLC; got 'NHWC'"):
        model.forward_intermediates(images, output_fmt="NHWC")


def test_intermediate_norm_and_prefix(model: VisionModel, images: Tensor):
    final, taken = model.forward_intermediates(
        images, 1, return_prefix_tokens=True, norm=True, output_fmt="NLC"
    )
    tokens, prefix = taken[0]
    assert prefix.shape[1] == getattr(model, "num_prefix_tokens", 0)
    assert torch.cat([prefix, tokens], dim=1).equal(as_tokens(final))


def test_intermediates_stop_early(model: VisionModel, images: Tensor):
    ran = []
    last = model.get_submodule(model.feature_info[-1]["module"])
    last.register_forward_hook(lambda *_: ran.append(True))
    for stop_early in (False, True):
        model.forward_intermediates(images, [0], stop_early=stop_early, intermediates_only=True)
    assert len(model.feature_info) > 1
    assert len(ran) == 1
    # The final features need all layers.
    model.forward_intermediates(images, [0], stop_early=True)
    assert len(ran) == 2


@pytest.mark.parametrize("coarse", [False, True])
def test_group_matcher(model: VisionModel, images: Tensor, coarse):
    """Every parameter behind the features has a group, and groups rise with depth.

    Learned rotary frequencies, which all blocks share, have none, as in timm.
    """
    model.forward_features(images).square().sum().backward()
    learned = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    body = [name for name in learned if not name.startswith("rotary.")]
    matcher = model.group_matcher(coarse)
    assert [name for name in body if group(name, matcher) == (inf,)] == []
    for branch in {info.get("branch") for info in model.feature_info}:
        infos = [info for info in model.feature_info if info.get("branch") == branch]
        layers = [group(f"{info['module']}.weight", matcher) for info in infos]
        assert layers == sorted(layers)
        assert group(body[0], matcher) < layers[-1]


def group(name: str, matcher: dict) -> tuple[float, ...]:
    """Sort a parameter into a group in the manner of timm's `group_with_matcher`."""
    for ordinal, patterns in enumerate(matcher.values()):
        for pattern, suffix in [(patterns, None)] if isinstance(patterns, str) else patterns:
            if found := re.match(pattern, name):
                parts = ((ordinal,), found.groups(), suffix)
                return tuple(map(float, chain.from_iterable(filter(None, parts))))
    return (inf,)


def test_pruned(build, images: Tensor, tmp_path):
    """The layers that stay return what they returned; what is left is neither saved nor loaded into."""
    model = build().eval()
    state, layer = model.state_dict(), max(0, len(model.feature_info) - 2)
    with torch.no_grad():
        (expected,) = model.forward_intermediates(images, [layer], intermediates_only=True)
        if model.needs_last_layers or not {"blocks", "stages"} & {*dict(model.named_children())}:
            with pytest.raises(ValueError, match="cannot do without its last layers"):
                model.prune_intermediate_layers([0])
            return
        assert model.prune_intermediate_layers([layer]) == [layer]
        found = model.forward_intermediates(images, [layer], return_prefix_tokens=True, output_dict=True)
        assert found["image_intermediates"][0].equal(expected)
        assert found["image_features"].equal(model.forward_features(images))
        assert model(images).equal(model.forward_features(images))
    assert len(found["image_intermediates_prefix"]) == len(found["image_intermediates"]) == 1
    assert len(model.feature_info) == layer + 1
    assert sum(p.numel() for p in model.parameters()) < sum(tensor.numel() for tensor in state.values())
    with pytest.raises(ValueError, match="layers were removed: save the model before"):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="may be missing: load weights into the whole model, before"):
        load_pretrained(model, state)


def test_backbone(build, images: Tensor):
    """Maps of some layers without the rest of the model; all parameters that are left get gradients."""
    model = build().eval()
    layers = sorted({0, max(0, len(model.feature_info) - 2)})
    expected = model.forward_intermediates(images, indices=layers, intermediates_only=True)
    before = sum(parameter.numel() for parameter in model.parameters())
    backbone = Backbone(model, layers)
    maps = backbone(images)
    assert backbone.feature_info.out_indices == tuple(layers)
    assert backbone.feature_info.channels() == [features.shape[1] for features in maps]
    for features, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(features, wanted)
    sum(features.square().mean() for features in maps).backward()
    left = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in left)
    assert sum(parameter.numel() for parameter in backbone.parameters()) < before


@pytest.mark.parametrize("start", ["frozen", "inference"])
def test_backbone_of_what_gets_no_gradients(start: str):
    """What a map needs stays, also a table that is read without its module being called."""
    torch.manual_seed(0)
    sizes = {"image_size": 32, "dim": 16, "depth": (1, 1, 2), "heads": 1, "window_size": (4, 2, 2)}
    with torch.inference_mode(start == "inference"):
        model = SAM2Hiera(num_classes=7, **sizes, global_layers=(1,), position_grid=3).eval()
        model.requires_grad_(False)
        images = torch.randn(2, 3, 32, 32)
        (expected,) = model.forward_intermediates(images, indices=[1], intermediates_only=True)
        (found,) = Backbone(model, [1])(images)
    assert found.equal(expected)
    assert isinstance(model.head, nn.Identity)
