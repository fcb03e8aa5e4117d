"""The ViT around any encoder: what it computes, and the interface with encoders of other libraries in it."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from nystrom_attention import Nystromformer
from torch import Tensor, nn
from torch.export import Dim, export

from tests.contracts import test_compile as compiling
from tests.contracts import test_features as features
from tests.contracts import test_forward as forward
from tests.contracts import test_gradients as gradients
from tests.contracts import test_inputs as inputs
from tests.contracts.conftest import randomize_
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import ViT as PlainViT
from vit_pytorch.efficient import ViT
from vit_pytorch.layers.blocks import plain_blocks

with warnings.catch_warnings():
    # Their import uses a part of PyTorch that is deprecated.
    warnings.simplefilter("ignore", FutureWarning)
    import x_transformers

SIZES: dict[str, Any] = {"image_size": 32, "patch_size": 4, "num_classes": 7, "dim": 24}


def make_blocks(depth: int = 2) -> nn.ModuleList:
    norm = partial(nn.LayerNorm, eps=1e-6)
    return plain_blocks(24, depth=depth, heads=2, dim_head=12, mlp_dim=48, norm=norm)


def make_x_transformer() -> nn.Module:
    return x_transformers.Encoder(dim=24, depth=2, heads=2, attn_dim_head=12, ff_glu=True, residual_attn=True)


def make_nystromformer() -> nn.Module:
    return Nystromformer(dim=24, depth=2, heads=2, dim_head=12, num_landmarks=16)


MAKERS = {"blocks": make_blocks, "x-transformers": make_x_transformer, "nystrom": make_nystromformer}


def build(maker: str, **options: Any) -> ViT:
    model = ViT(**{**SIZES, **options}, transformer=MAKERS[maker]()).eval()
    randomize_(model)
    return model


@pytest.fixture(params=MAKERS)
def model(request: pytest.FixtureRequest) -> ViT:
    return build(request.param)


@pytest.fixture
def x() -> Tensor:
    return images(32, 32, batch=3)


@torch.inference_mode()
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("maker", MAKERS)
def test_logits_step_by_step(maker: str, pool: Any, x: Tensor) -> None:
    model = build(maker, pool=pool, image_size=(32, 48))
    x = images(32, 48, batch=3)
    tokens = model.patch_embed.proj(x).flatten(2).transpose(1, 2)
    if pool == "cls":
        tokens = torch.cat([model.prefix.class_token.expand(3, -1, -1), tokens], dim=1)
    encoded = tokens + model.positions.table
    for part in model.blocks if maker == "blocks" else [model.blocks[0].transformer]:
        encoded = part(encoded)
    encoded = model.norm(encoded)
    pooled = encoded[:, 0] if pool == "cls" else encoded.mean(dim=1)
    assert difference(model(x), model.head(pooled)) < TOLERANCE


@torch.inference_mode()
def test_with_our_blocks_is_the_plain_vit(x: Tensor) -> None:
    plain = randomise(PlainViT(**SIZES, depth=3, heads=2, dim_head=12, mlp_dim=48))
    model = ViT(**SIZES, transformer=make_blocks(depth=3)).eval()
    model.load_state_dict(plain.state_dict())
    assert model(x).equal(plain(x))
    _, ours = model.forward_intermediates(x)
    _, theirs = plain.forward_intermediates(x)
    assert len(ours) == len(model.feature_info) == 3
    assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))


def test_transformer_is_the_one_passed_in() -> None:
    for maker in MAKERS.values():
        transformer = maker()
        model = ViT(**SIZES, transformer=transformer)
        assert any(module is transformer for module in model.modules())


@pytest.mark.parametrize(
    "contract",
    [
        features.test_features_then_head,
        features.test_intermediate_formats,
        features.test_intermediate_norm_and_prefix,
        forward.test_deterministic_in_eval,
        forward.test_smaller_inputs,
        gradients.test_every_parameter_has_a_gradient,
        gradients.test_grad_checkpointing,
        inputs.test_wrong_rank,
        inputs.test_wrong_channels,
        inputs.test_wrong_dtype,
        inputs.test_indivisible_size,
        inputs.test_too_large,
    ],
    ids=lambda contract: contract.__name__.removeprefix("test_"),
)
def test_contract(contract: Any, model: ViT, x: Tensor) -> None:
    contract(model, x)


@pytest.mark.parametrize(
    "contract",
    [features.test_feature_info, features.test_default_cfg, gradients.test_no_weight_decay],
    ids=lambda contract: contract.__name__.removeprefix("test_"),
)
def test_contract_of_description(contract: Any, model: ViT, x: Tensor) -> None:
    contract(*(model, x) if contract is features.test_feature_info else (model,))


@pytest.mark.parametrize("coarse", [False, True])
def test_group_matcher(model: ViT, x: Tensor, coarse: bool) -> None:
    features.test_group_matcher(model, x, coarse)


@pytest.mark.parametrize("maker", ["blocks", "x-transformers"])
def test_samples_are_independent(maker: str, x: Tensor) -> None:
    """The Nystromformer is left out: it scales by the largest entry of the whole batch."""
    forward.test_sample_independence(build(maker), x)


@pytest.mark.parametrize("maker", ["blocks", "x-transformers"])
def test_low_precision(maker: str, x: Tensor) -> None:
    forward.test_autocast(build(maker), x)
    forward.test_bf16(build(maker), x)


@pytest.mark.parametrize("maker", ["blocks", "nystrom"])
def test_compiles(maker: str, x: Tensor) -> None:
    compiling.check_compiled(build(maker), x, "aot_eager")
    torch.compiler.reset()


@pytest.mark.parametrize("maker", ["blocks", "nystrom"])
def test_exports(maker: str, x: Tensor) -> None:
    model = build(maker)
    program = export(model, (x[:2],), dynamic_shapes=({0: Dim("batch", max=4096)},), strict=True)
    torch.testing.assert_close(program.module()(x), model(x))


@torch.inference_mode()
def test_copies_and_classifier(model: ViT, x: Tensor) -> None:
    expected = model(x)
    assert copy.deepcopy(model)(x).equal(expected)
    assert pickle.loads(pickle.dumps(model))(x).equal(expected)
    tokens = model.forward_features(x)
    model.reset_classifier(5)
    assert model(x).shape == (3, 5)
    assert model.num_classes == model.default_cfg["num_classes"] == 5
    assert model.forward_features(x).equal(tokens)
    model.reset_classifier(0, "avg")
    assert model(x).equal(tokens[:, 1:].mean(dim=1))


@torch.inference_mode()
@pytest.mark.parametrize("maker", ["x-transformers", "nystrom"])
def test_state_of_version_0_1(maker: str, x: Tensor) -> None:
    model, again = build(maker), build(maker)
    state = {
        n.replace("blocks.0.transformer.", "encoder.blocks.0."): p for n, p in model.state_dict().items()
    }
    for parameter in again.parameters():
        parameter.zero_()
    again.load_state_dict(state)
    assert again(x).equal(model(x))


def test_saving_names_the_transformer(model: ViT, tmp_path: Any) -> None:
    message = "arguments of ViT that no configuration file can hold: transformer"
    with pytest.raises(ValueError, match=re.escape(message)):
        model.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(x: Tensor) -> None:
    with pytest.raises(ValueError, match="transformer must be a module, got <function"):
        ViT(**SIZES, transformer=make_blocks)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pool must be one of cls, mean; got 'map'"):
        build("blocks", pool="map")
    narrow = ViT(**SIZES, transformer=nn.Linear(24, 20))
    with pytest.raises(ValueError, match=r"tokens of shape \(3, 65, 24\), got \(3, 65, 20\)"):
        narrow(x)
    pair = ViT(**SIZES, transformer=nn.GRU(24, 24, batch_first=True))
    with pytest.raises(ValueError, match=r"tokens of shape \(3, 65, 24\), got tuple"):
        pair(x)
