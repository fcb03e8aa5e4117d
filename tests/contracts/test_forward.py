import pytest
import torch
from torch import Tensor

from tests.tolerances import BF16_MODEL, relative_error
from vit_pytorch.base import VisionModel

DROPOUTS = ("dropout", "emb_dropout", "layer_dropout", "attn_dropout", "drop_path")


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_channels(build, channels):
    model = build(channels=channels)
    logits = model(torch.randn(2, channels, *model.image_size))
    assert logits.shape == (2, model.num_classes)
    assert model.default_cfg["input_size"] == (channels, *model.image_size)
    assert len(model.default_cfg["mean"]) == len(model.default_cfg["std"]) == channels


def test_bf16(model: VisionModel, images: Tensor):
    want = model(images)
    logits = model.bfloat16()(images.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert relative_error(logits, want) < BF16_MODEL


def test_autocast(model: VisionModel, images: Tensor):
    want = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    assert relative_error(logits, want) < BF16_MODEL


def test_deterministic_in_eval(model: VisionModel, images: Tensor):
    assert model(images).equal(model(images))


def test_sample_independence(model: VisionModel, images: Tensor):
    want = model(images)
    others = images.clone()
    others[1:] = torch.nan
    assert model(others)[0].equal(want[0])
    torch.testing.assert_close(model(images[:1]), want[:1], rtol=1e-5, atol=1e-5)


def test_smaller_inputs(model: VisionModel, images: Tensor):
    for axis in range(2, images.ndim):
        half = images.narrow(axis, 0, images.shape[axis] // 2)
        assert model(half).shape == (3, model.num_classes)


def test_dropout_only_in_training(build, entry):
    arguments = entry.architecture._hub_mixin_init_parameters
    plain = build()
    dropping = build(**{name: 0.5 for name in DROPOUTS if name in arguments})
    dropping.load_state_dict(plain.state_dict())
    images = torch.randn(4, plain.channels, *plain.image_size)
    assert dropping(images).equal(plain(images))
    dropping.train()
    repeats = dropping(images).equal(dropping(images))
    assert repeats != any(name in arguments for name in DROPOUTS)
