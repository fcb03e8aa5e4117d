"""The plain ViT's options stand together: random combinations of all of them keep every promise."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim, export

from tests.contracts.conftest import randomize_
from vit_pytorch import ViT

SIZES: dict[str, Any] = {
    "patch_size": 4,
    "num_classes": 5,
    "dim": 24,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 32,
    "channels": 2,
}
# A value that stands here more than once is drawn more often.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "image_size": (20, (16, 24)),
    "dropout": (0.0, 0.1),
    "emb_dropout": (0.0, 0.1),
    "pool": ("cls", "mean", "cls+mean", "map"),
    "dim_head": (8, 8, 8, 6),
    "qkv_bias": (True, False),
    "out_bias": (True, False),
    "qk_norm": (False, True),
    "qk_scale": (None, 0.3),
    "attn_dropout": (0.0, 0.1),
    "patch_dropout": (0.0, 0.3),
    "drop_path": (0.0, 0.2),
    "layer_scale": (None, 0.1),
    "act": ("gelu", "gelu_tanh", "quickgelu", "relu", "silu"),
    "norm_eps": (1e-6, 1e-5),
    "zero_centered_norm": (False, True),
    "value_residual": (False, True, "identity", "gated", (1,)),
    "hyper_connections": (None, 1, 3),
    "hyper_static": (False, False, True),
    "stem": ("linear", "linear", "conv"),
    "patch_norm": (False, False, True),
    "positions": (
        "none",
        "learned",
        "learned_2d",
        "sincos",
        "relative",
        "relative_by_layer",
        "rope",
        "rope_mixed",
        "learned+rope",
        "rope_mixed+sincos",
        "learned_2d+relative",
    ),
    "rope_theta": (None, None, None, 50.0),
    "class_token": (None, None, True, False),
    "num_registers": (0, 2),
    "no_embed_class": (False, True),
    "fc_norm": (False, True),
    "pre_norm": (False, True),
    "representation_size": (None, 16),
    "head_zero_init": (False, True),
}


def contradiction(options: dict[str, Any]) -> str | None:
    """Give what a refusal says, or None for options that go together."""
    rotary = "rope" in options["positions"]
    if options["patch_norm"] and options["stem"] != "linear":
        return "patch_norm belongs to stem='linear'"
    if options["fc_norm"] and options["pool"] == "cls+mean":
        return "fc_norm acts on one vector"
    if options["hyper_static"] and options["hyper_connections"] is None:
        return "hyper_static says what hyper_connections are"
    if options["rope_theta"] is not None and not rotary:
        return "rope_theta is above 0 and belongs to rotary positions"
    if options["pool"] in ("cls", "cls+mean") and options["class_token"] is False:
        return "needs a class token"
    if rotary and options["dim_head"] % 4:
        return "need heads of a width that is a multiple of 4"
    return None


def combinations() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Draw until there are fifty combinations that go together; give these and the others."""
    generator = torch.Generator().manual_seed(0)
    good: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    while len(good) < 50:
        options = {
            name: values[int(torch.randint(len(values), (), generator=generator))]
            for name, values in OPTIONS.items()
        }
        (good if contradiction(options) is None else bad).append(options)
    return good, bad


GOOD, BAD = combinations()


def build(options: dict[str, Any]) -> ViT:
    torch.manual_seed(0)
    model = randomize_(ViT(**SIZES, **options)).eval()
    assert isinstance(model, ViT)
    return model


def images_for(model: ViT) -> Tensor:
    return torch.randn(3, 2, *model.image_size, generator=torch.Generator().manual_seed(1))


def test_all_options_are_drawn() -> None:
    known = inspect.signature(ViT.__init__).parameters.keys() - {"self"}
    assert known == SIZES.keys() | OPTIONS.keys()
    for name, values in OPTIONS.items():
        assert {repr(value) for value in values} == {repr(options[name]) for options in GOOD}
    assert len({contradiction(options) for options in BAD}) == 6


@pytest.mark.parametrize("options", BAD, ids=range(len(BAD)))
def test_contradictions_are_refused(options: dict[str, Any]) -> None:
    said = contradiction(options)
    assert said is not None
    with pytest.raises(ValueError, match=said) as caught:
        ViT(**SIZES, **options)
    assert "\n" not in str(caught.value)


def unseen(options: dict[str, Any]) -> set[str]:
    """Name the parameters that logits do not depend on: how patches see each other in the last layer.

    Where the class token alone is classified, only what it sees itself counts there.
    """
    own = options["positions"] == "relative_by_layer" and options["pool"] == "cls"
    return {"encoder.blocks.1.attention.branch.bias.patches.table"} if own else set()


@pytest.mark.parametrize("options", GOOD, ids=range(len(GOOD)))
def test_combinations(options: dict[str, Any], tmp_path: Path) -> None:
    model = build(options)
    images = images_for(model)
    targets = torch.tensor([0, 1, 2])

    loss = F.cross_entropy(model.train()(images), targets)
    assert loss.isfinite()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()
    F.cross_entropy(model.eval()(images), targets).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert {name for name, gradient in gradients.items() if not gradient.any()} == unseen(options)

    with torch.inference_mode():
        logits = model(images)
        assert model(images).equal(logits)
        others = images.clone()
        others[1:] = torch.nan
        assert model(others)[0].equal(logits[0])
        torch.testing.assert_close(model(images[:1]), logits[:1], rtol=1e-5, atol=1e-5)
        final, maps = model.forward_intermediates(images)
        assert final.equal(model.forward_features(images))
        assert [found.shape[2:] for found in maps] == [model.grid.shape] * 2
        assert model(images[..., :12, :]).isfinite().all()

        again = ViT(**SIZES, **options).eval()
        again.load_state_dict(model.state_dict(), strict=True)
        assert again(images).equal(logits)
        model.save_pretrained(tmp_path)
        loaded = ViT.from_pretrained(tmp_path)
        assert json.dumps(loaded.config, sort_keys=True) == json.dumps(model.config, sort_keys=True)
        assert loaded(images).equal(logits)


@pytest.fixture
def _forget_graphs() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_forget_graphs")
@pytest.mark.parametrize("number", range(4))
def test_combinations_are_traced(number: int) -> None:
    model = build(GOOD[number])
    images = images_for(model)
    with torch.no_grad():
        logits = model(images)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(images), logits)
    program = export(model, (images[:2],), dynamic_shapes=({0: Dim("batch", max=4096)},), strict=True)
    torch.testing.assert_close(program.module()(images), logits)
    onnx = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
    session = onnxruntime.InferenceSession(onnx.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), logits, rtol=1e-4, atol=1e-5)
