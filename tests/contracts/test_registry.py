import ast
from pathlib import Path

import pytest
import timm
from timm.models._registry import _deprecated_models

from tests.contracts.conftest import excepts
from tests.papers.reference import shapes_only
from vit_pytorch import create_model, list_models
from vit_pytorch.base import VisionModel
from vit_pytorch.registry import ALIASES, find_entry
from vit_pytorch.registry.retired import current_name


@pytest.mark.parametrize("name", sorted(set(list_models()) - set(timm.list_models())))
def test_parameter_count(name):
    """Of names that timm has, tests/papers/test_timm_names.py compares it."""
    with shapes_only():
        model = find_entry(name).build(num_classes=1000)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == (
        find_entry(name).parameters
    )


def test_exceptions_are_contracts():
    contracts = {
        node.name.removeprefix("test_")
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    for name in list_models():
        for exception in find_entry(name).exceptions:
            assert any(excepts(exception, contract) for contract in contracts), (name, exception)
        assert all(find_entry(name).exceptions.values()), name


def test_one_exception_for_one_fact():
    assert excepts("recorder", "recorder_maps")
    assert excepts("bf16", "bf16")
    assert not excepts("record", "recorder_maps")
    assert not excepts("recorder_maps", "recorder")


def test_create_model():
    entry = find_entry("vit_tiny_patch16_224")
    model = create_model(entry.name, **entry.tiny)
    assert type(model) is entry.architecture
    assert isinstance(model, VisionModel)
    assert model.default_cfg["architecture"] == entry.name
    assert model.default_cfg.items() >= entry.default_cfg.items()


def test_unknown_model():
    with pytest.raises(ValueError, match=r"'vit_tiny_patch61_224'.*vit_tiny_patch16_224"):
        create_model("vit_tiny_patch61_224")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": 5}, "name must be a string or a path, got 5"),
        ({"name": None}, "name must be a string or a path, got None"),
        ({"pretrained": 1}, "pretrained must be True or False, a string or a path, got 1"),
        ({"num_classes": 1.5}, r"num_classes must be an integer in .* got 1\.5"),
        ({"features_only": "yes"}, "features_only must be True or False, got 'yes'"),
        ({"dtype": "float16"}, "dtype must be a dtype or None, got 'float16'"),
        ({"device": 1.5}, "device must be a device, a string or None, got 1.5"),
    ],
)
def test_arguments_of_another_type(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**{"name": "vit_tiny_patch16_224", **arguments})


def test_unknown_override():
    with pytest.raises(ValueError, match=r"no argument width, only .*dim"):
        create_model("vit_tiny_patch16_224", width=3)


@pytest.mark.parametrize("name", ALIASES)
def test_aliases(name):
    assert find_entry(name).name == ALIASES[name] in list_models()
    assert name not in list_models()


def test_names_that_timm_has_retired_are_those_of_today():
    known = set(list_models())
    retired = {
        old: now for old, now in _deprecated_models.items() if now and now.partition(".")[0] in known - {old}
    }
    assert len(retired) > 80
    assert {old: current_name(old) for old in retired} == retired
    assert [name for name in {*known, *timm.list_models()} - retired.keys() if current_name(name)] == []


def test_a_name_that_timm_has_retired():
    tiny = find_entry("vit_tiny_patch16_224").tiny
    with pytest.warns(FutureWarning, match=r"to vit_tiny_patch16_224\.augreg_in21k, which is built"):
        model = create_model("vit_tiny_patch16_224_in21k", **tiny)
    assert model.default_cfg["architecture"] == "vit_tiny_patch16_224"
    with pytest.raises(ValueError, match=r"timm calls it xcit_nano_12_p8_224\.fb_dist_in1k now"):
        find_entry("xcit_nano_12_p8_224_dist")


def test_list_models():
    names = list_models()
    assert len(names) == len(set(names))
    assert list_models("vit_*_patch32_224") == [
        f"vit_{size}_patch32_224" for size in ("tiny", "small", "base", "large", "huge")
    ]
    assert list_models("VIT_*") == list_models("no such model") == []
    assert set(list_models("v*")) | set(list_models("[!v]*")) == set(names)
