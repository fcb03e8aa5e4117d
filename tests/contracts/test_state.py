import copy
import json
import pickle

import pytest
import torch
from torch import Tensor

from vit_pytorch import create_model
from vit_pytorch.base import VisionModel


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
