import copy
import json
import pickle

import pytest
import torch
from torch import Tensor

from vit_pytorch import create_model
from vit_pytorch.base import INPUT_SIZES, VisionModel
from vit_pytorch.pretrained.extents import Extents, table_extents
from vit_pytorch.pretrained.load import fit
from vit_pytorch.registry import ModelEntry


def test_deepcopy(model: VisionModel, images: Tensor):
    want = model(images)
    copied = copy.deepcopy(model)
    assert copied(images).equal(want)
    torch.nn.init.zeros_(next(copied.parameters()))
    assert model(images).equal(want)


def test_pickle(model: VisionModel, images: Tensor):
    assert pickle.loads(pickle.dumps(model))(images).equal(model(images))


def test_state_dict(entry, model: VisionModel, images: Tensor):
    other = entry.build(**entry.tiny).eval()
    assert not other(images).equal(model(images))
    other.load_state_dict(model.state_dict(), strict=True)
    assert other(images).equal(model(images))


def test_save_and_load(model: VisionModel, images: Tensor, tmp_path):
    model.save_pretrained(tmp_path)
    assert type(create_model(tmp_path)) is type(model)
    loaded = type(model).from_pretrained(tmp_path)
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(state[name].equal(tensor) for name, tensor in model.state_dict().items())
    configs = [json.dumps(each.config, sort_keys=True) for each in (loaded, model)]
    assert configs[0] == configs[1]
    assert loaded.default_cfg == model.default_cfg
    assert loaded(images).equal(model(images))


@pytest.mark.parametrize("num_classes", [0, 5])
def test_reset_classifier(model: VisionModel, images: Tensor, tmp_path, num_classes):
    features = model.forward_features(images)
    model.reset_classifier(num_classes)
    assert model.num_classes == model.config["num_classes"] == model.default_cfg["num_classes"] == num_classes
    assert model.forward_features(images).equal(features)
    assert model(images).shape == (3, num_classes or model.head_hidden_size)
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path)(images).equal(model(images))


def test_input_size(entry: ModelEntry, build):
    """A model that is brought to another size is one that was built for it, with the same weights."""
    model = build()
    argument = next((name for name in INPUT_SIZES if name in model._hub_mixin_init_parameters), None)
    if argument is None:
        with pytest.raises(ValueError, match="takes inputs of any size"):
            model.set_input_size(64)
        return
    size = tuple(2 * extent for extent in model.image_size[-2:])
    size = size[0] if argument == "seq_len" else size
    wanted = build(**{argument: size})
    extents = Extents(table_extents(model))
    state, _ = fit(wanted, model.state_dict(), source="the model", extents=extents)
    wanted.load_state_dict(state)
    kept = next(model.blocks.parameters()) if hasattr(model, "blocks") else None
    with torch.no_grad():
        # what is computed once in inference is computed anew
        model(torch.randn(1, model.channels, *model.image_size))
    model.set_input_size(size)
    assert kept is None or any(kept is parameter for parameter in model.parameters())
    images = torch.randn(2, model.channels, *wanted.image_size)
    torch.testing.assert_close(model(images), wanted(images))
    with torch.no_grad():
        torch.testing.assert_close(model(images), wanted(images))
    again = type(model)(**model.config)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(images), wanted(images))
    assert model.default_cfg["input_size"] == (model.channels, *wanted.image_size)
