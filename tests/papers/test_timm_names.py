"""All names that timm has, too: parameters, weights on the Hub, and how images are prepared are timm's."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
import timm

from tests.papers.reference import shapes_only
from vit_pytorch import ViT, create_model, list_models
from vit_pytorch.max_vit import MaxViT
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry

NAMES = sorted(set(list_models()) & set(timm.list_models()))
PREPARATION = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "fixed_input_size")
# names, as patterns, whose weights are another release of timm's than its first: the reason
RELEASES = {
    "maxvit_base_tf_[35]*": "trained on ImageNet-21k first",
    "maxvit_large_tf_[35]*": "trained on ImageNet-21k first",
    "vit_base_*_clip_quickgelu_224": "OpenAI's, whose activation it is",
    "vit_large_*_clip_quickgelu_224": "OpenAI's, whose activation it is",
}
# key and names, as patterns, that differ: the reason
EXCEPTIONS = {
    (
        "crop_pct",
        "volo_d[45]_[45]*",
    ): "timm's 1.15 surrounds the image by black; preparation ends at the whole image",
    ("pool_size", "davit_*_fl"): "timm's is that of 224 pixels, the input has 768",
    ("pool_size", "maxvit_large_tf_512"): "timm's is that of 224 pixels, the input has 512",
    ("fixed_input_size", "convmixer_*"): "sizes are multiples of patches, which do not divide those of 32",
    ("fixed_input_size", "deepseek_vit_*"): "sizes are multiples of patches, which do not divide those of 32",
}

# names, as patterns, and the layouts of timm's that are not its first
LAYOUTS = {"davit_*_fl": "timm Florence-2", "levit_conv_*": "timm, convolutions"}
# These have a layout for each kind of model; the tests of their papers write the weights of each.
SEVERAL_LAYOUTS = (ViT, MaxViT)


def excepted(key: str, name: str) -> bool:
    """Return whether a key of a model differs from timm's."""
    return any(key == one and fnmatchcase(name, pattern) for one, pattern in EXCEPTIONS)


def differs(key: str, ours: object, theirs: object) -> bool:
    """Return whether we say other than timm, or less."""
    if key == "fixed_input_size":
        # Inputs of other sizes are taken where timm's are fixed.
        return bool(ours) > bool(theirs)
    if key == "pool_size":
        # NesT's is a list in timm.
        theirs = tuple(theirs)
    return ours != theirs


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_preparation_are_timms(name: str) -> None:
    entry = find_entry(name)
    with shapes_only():
        model, reference = (build(name, num_classes=1000) for build in (create_model, timm.create_model))
    counts = [sum(p.numel() for p in net.parameters() if p.requires_grad) for net in (model, reference)]
    assert counts == [entry.parameters] * 2
    if entry.architecture not in SEVERAL_LAYOUTS:
        layout = next((of for pattern, of in LAYOUTS.items() if fnmatchcase(name, pattern)), "timm")
        written = {key: tensor.shape for key, tensor in to_format(model, layout).items()}
        assert written == {key: tensor.shape for key, tensor in reference.state_dict().items()}
    cfg = timm.models.get_pretrained_cfg(name)
    if any(fnmatchcase(name, pattern) for pattern in RELEASES):
        assert entry.hub_id is not None
        assert entry.hub_id != cfg.hf_hub_id
        cfg = timm.models.get_pretrained_cfg(entry.hub_id.removeprefix("timm/"))
    assert entry.hub_id == cfg.hf_hub_id
    assert entry.config["num_classes"] == cfg.num_classes
    keys = (*PREPARATION, *(["pool_size"] if cfg.pool_size and "pool_size" in model.default_cfg else []))
    found = {key for key in keys if differs(key, model.default_cfg[key], getattr(cfg, key))}
    assert found == {key for key in keys if excepted(key, name)}


@pytest.mark.parametrize("name", NAMES)
def test_releases_are_in_timms_repositories(name: str) -> None:
    """A name with a tag is of the repository on the Hub that timm takes."""
    for release in timm.list_pretrained(f"{name}.*"):
        repository = timm.models.get_pretrained_cfg(release).hf_hub_id
        assert repository in (find_entry(name).repository(release.partition(".")[2]), None)


def test_all_of_timms_levits_are_named() -> None:
    assert {*timm.list_models(module="levit")} <= {*NAMES}


def test_no_exception_is_without_a_model() -> None:
    patterns = [*RELEASES, *(pattern for _, pattern in EXCEPTIONS)]
    assert all(any(fnmatchcase(name, pattern) for name in NAMES) for pattern in patterns)
