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
from vit_pytorch.layers.attention import GroupedQuery, MultiHead
from vit_pytorch.layers.hyper_connections import HyperConnections
from vit_pytorch.layers.norm import Norm
from vit_pytorch.layers.patches import LinearStem
from vit_pytorch.layers.positions import Learned, Learned2D
from vit_pytorch.layers.rotary import Rotary, ScaledRotary
from vit_pytorch.layers.tokens import AttentionPooling, Head
from vit_pytorch.layers.value_residual import ValueResidual

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
    "pool": ("cls", "mean", "cls+mean", "map", AttentionPooling(heads=3, mlp_dim=16, prefix=True)),
    "dim_head": (8, 8, 8, 6),
    "qkv_bias": (True, False),
    "out_bias": (True, False),
    "qk_norm": (False, True),
    "attention": ("multi_head", MultiHead(scale=0.3), "grouped_query"),
    "attn_dropout": (0.0, 0.1),
    "patch_dropout": (0.0, 0.3),
    "drop_path": (0.0, 0.2),
    "layer_scale": (None, 0.1, (0.1, None)),
    "act": ("gelu", "gelu_tanh", "quickgelu", "relu", "silu"),
    "norm_eps": (1e-6, 1e-5),
    "norm": ("layer", "zero_centered", "rms", Norm(sub="feedforward"), Norm(sub="both")),
    "value_residual": (False, True, "identity", "gated", (1,), ValueResidual("gated", (1,))),
    "hyper_connections": (None, 1, HyperConnections(3), HyperConnections(2, dynamic=False)),
    "stem": ("linear", "dual_norm", "conv", LinearStem(pre_norm=True)),
    "positions": (
        "none",
        "learned",
        "learned_2d",
        "sincos",
        "sequence",
        "relative",
        "relative_by_layer",
        "rope",
        "rope_mixed",
        "learned+rope",
        "rope_mixed+sincos",
        "learned_2d+relative",
        Learned(class_token=False),
        Rotary(theta=50.0),
        ScaledRotary(reference=(3, 3), offset=1.0),
        (Learned2D(class_token=False), Rotary(theta=20.0, learned=True)),
    ),
    "class_token": (False, True),
    "num_registers": (0, 2),
    "head": (
        "linear",
        Head(norm=True),
        Head(hidden_dim=16),
        Head(zero_init=True, norm=True),
        Head(norm=None),
    ),
}


def combinations() -> list[dict[str, Any]]:
    """Return fifty random combinations; no two options contradict each other."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            name: values[int(torch.randint(len(values), (), generator=generator))]
            for name, values in OPTIONS.items()
        }
        for _ in range(50)
    ]


DRAWN = combinations()


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
    assert len(known) <= 30
    for name, values in OPTIONS.items():
        assert {repr(value) for value in values} == {repr(options[name]) for options in DRAWN}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"positions": "learned+sincos"}, "at most one that is added"),
        ({"positions": "rope+relative"}, "at most one that is added"),
        ({"positions": "rotary"}, "positions must be one of none, learned"),
        (
            {"positions": {"kind": "rope", "base": 10}},
            "positions='rope' has no setting base",
        ),
        ({"positions": ValueResidual()}, "positions must be one of"),
        ({"positions": "rope", "dim_head": 3}, "need a head dimension of at least 4, got 3"),
        ({"stem": "none"}, "stem must be one of linear, dual_norm, conv"),
        ({"value_residual": (2,)}, r"layers of a value residual must be 1 to 1, got \[2\]"),
        ({"hyper_connections": 0}, r"hyper_connections must be .*, got 0"),
        ({"pool": "max"}, "pool must be one of"),
        ({"layer_scale": (0.1,)}, r"layer_scale must be one for both branches or one for each, got \(0.1,\)"),
        ({"attention": {"kind": "grouped_query", "kv_heads": 3}}, "heads must be a multiple of kv_heads"),
        ({"attention": "grouped_query", "qk_norm": "rms"}, "as many heads of keys as of queries"),
        (
            {"attention": GroupedQuery(full_layers=1), "depth": 3, "value_residual": True},
            r"need as many heads of values, got \[2, 1, 2\]",
        ),
        ({"norm": Norm(post=True), "hyper_connections": 2}, "do not go with hyper_connections"),
        ({"norm": Norm(shared=True), "hyper_connections": 2}, "do not go with hyper_connections"),
        ({"norm": {"kind": "layer", "shared": True, "post": True}}, "shared=True and post=True"),
        ({"norm": Norm(shared=True), "layer_scale": (1.0, 2.0)}, "have one layer_scale"),
        ({"attention": "differential", "qk_norm": True}, "takes no qk_norm and no rotations"),
        ({"attention": "differential", "positions": "rope"}, "takes no qk_norm and no rotations"),
        ({"attention": "differential", "dim_head": 7}, "must be even, got 7"),
        ({"positions": Learned(registers=True)}, "positions of registers need registers"),
        (
            {"positions": Learned(class_token=False, registers=True), "num_registers": 1},
            "follow a class token with one",
        ),
        ({"positions": ScaledRotary(reference=(3,))}, "reference for grids of 2 axes needs as many"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        ViT(**{"image_size": 20, **SIZES, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flat", "options"),
    [
        ({"positions": "learned+rope", "rope_theta": 50.0}, {"positions": (Learned(), Rotary(theta=50.0))}),
        ({"positions": "rope_mixed", "rope_theta": 5.0}, {"positions": Rotary(theta=5.0, learned=True)}),
        ({"no_embed_class": True}, {"positions": Learned(class_token=False)}),
        (
            {"zero_centered_norm": True, "qk_scale": 0.3},
            {"norm": "zero_centered", "attention": MultiHead(0.3)},
        ),
        ({"patch_norm": True, "pre_norm": True}, {"stem": LinearStem(patch_norm=True, pre_norm=True)}),
        ({"hyper_connections": 2, "hyper_static": True}, {"hyper_connections": HyperConnections(2, False)}),
        (
            {"pool": "mean", "fc_norm": True, "representation_size": 8, "head_zero_init": True},
            {"pool": "mean", "head": Head(norm=True, hidden_dim=8, zero_init=True)},
        ),
    ],
)
def test_flat_options_of_version_0_1(flat: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.warns(DeprecationWarning, match=r"have a new form: \w+=.* is now \w+=") as said:
        old = ViT(image_size=20, **SIZES, **flat)
    assert [warning.filename for warning in said] == [__file__]
    torch.manual_seed(0)
    new = ViT(image_size=20, **SIZES, **options)
    images = images_for(new)
    assert old.eval()(images).equal(new.eval()(images))
    old.save_pretrained(tmp_path)
    assert ViT.from_pretrained(tmp_path)(images).equal(new(images))


def test_flat_options_that_do_not_count() -> None:
    """Defaults of version 0.1, as its configurations hold them, say nothing; what goes with nothing is
    refused."""
    flat = {"rope_theta": None, "patch_norm": False, "hyper_static": False, "class_token": None}
    model = ViT(image_size=20, **SIZES, **flat)
    assert model.config == ViT(image_size=20, **SIZES).config
    with pytest.raises(ValueError, match="rope_theta is a setting of positions='rope', 'rope_mixed', got"):
        ViT(image_size=20, **SIZES, rope_theta=10.0)


def unseen(options: dict[str, Any]) -> set[str]:
    """Return the names of parameters that logits do not depend on: how patches see each other in the last
    layer.

    Where the class token alone is classified, only what it sees itself counts there.
    """
    own = options["positions"] == "relative_by_layer" and options["pool"] == "cls"
    return {"blocks.1.attention.position.bias.patches.table"} if own else set()


@pytest.mark.parametrize("options", DRAWN, ids=range(len(DRAWN)))
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
    model = build(DRAWN[number])
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
