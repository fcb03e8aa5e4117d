"""NaViT computes the same of an image alone, packed or in a batch; and what other libraries do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from torch import Tensor, nn

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, check_parity, difference, randomise, shapes_only
from tests.tolerances import BF16_MODEL, relative_error
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.na_vit import NaViT
from vit_pytorch.na_vit_nested_tensor import NaViT as NestedNaViT
from vit_pytorch.pretrained import to_format

SMALL: dict[str, Any] = {"image_size": (48, 64), "patch_size": 8, "num_classes": 7, "dim": 48, "depth": 3}
OURS: dict[str, Any] = {**SMALL, "heads": 3, "dim_head": 16, "mlp_dim": 192}
PLAIN: dict[str, Any] = {"qk_norm": "none", "qkv_bias": True, "norm_bias": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "fractional": {"pos_type": "frac"},
    "bare pool": {"pool": "query", "qk_norm": "layer", "patch_norm": True, "head_bias": False},
    "registers": {"num_registers": 3, "layer_scale": 1e-5, "pos_type": "aspect"},
    "registers, mean": {"num_registers": 3, "pool": "mean", "fc_norm": True, **PLAIN},
}
SIZES = [(48, 64), (8, 8), (24, 40), (40, 24), (48, 8), (24, 40), (16, 64)]


def pictures(*sizes: tuple[int, int], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def build(kind: type[NaViT] = NaViT, **options: Any) -> NaViT:
    model = kind(**{**OURS, **options})
    randomise(model)
    return model


@pytest.fixture(params=OPTIONS)
def model(request: pytest.FixtureRequest) -> NaViT:
    return build(**OPTIONS[request.param])


@torch.inference_mode()
def test_packed_equals_alone_equals_a_batch(model: NaViT) -> None:
    images = pictures(*SIZES)
    packed = model(images)
    assert difference(packed, torch.cat([model([image]) for image in images])) < TOLERANCE
    assert difference(packed, torch.cat([model(image.unsqueeze(0)) for image in images])) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("options", ["paper", "fractional", "bare pool"])
def test_packed_equals_padded_rows_with_a_mask(options: str) -> None:
    """The paper's own way: rows padded to one length, each image's tokens masked from all others."""
    model = build(**OPTIONS[options])
    images = pictures(*SIZES)
    rows = [images[:2], images[2:5], images[5:]]
    tokens = [[model.embed(image.unsqueeze(0))[0] for image in row] for row in rows]
    longest = max(sum(map(len, row)) for row in tokens) + 3
    x = torch.full((len(rows), longest, 48), 100.0)
    owner = torch.full((len(rows), longest), -1)
    for r, row in enumerate(tokens):
        packed = torch.cat(row)
        x[r, : len(packed)] = packed
        owner[r, : len(packed)] = torch.cat([torch.full((len(t),), i) for i, t in enumerate(row)])
    mask = (owner.unsqueeze(1) == owner.unsqueeze(2)).unsqueeze(1)
    for block in model.blocks:
        attention = block.attention
        q, k, v = attention.project(block.norm1(x))
        x = x + block.scale1(attention.merge(attention.kernel(q, k, v, mask)))
        x = x + block.scale2(block.feedforward(block.norm2(x)))
    x = model.norm(x)
    pooled = [
        model.pool_features(x[r : r + 1, owner[r] == i])
        for r, row in enumerate(rows)
        for i in range(len(row))
    ]
    assert difference(model(rows), model.head(model.fc_norm(torch.cat(pooled)))) < TOLERANCE


@torch.inference_mode()
def test_nested_variant_computes_the_same(model: NaViT) -> None:
    nested = NestedNaViT(**model.config)
    nested.load_state_dict(model.state_dict())
    nested.eval()
    images = pictures(*SIZES)
    assert difference(nested(images), model(images)) < TOLERANCE
    features = nested.forward_features(images)
    assert features.is_nested
    assert features.layout == torch.jagged
    for jagged, tokens in zip(features.unbind(), model.forward_features(images), strict=True):
        torch.testing.assert_close(jagged, tokens)
    batch = torch.stack(pictures((24, 40), (24, 40)))
    assert difference(nested(batch), model(batch)) < TOLERANCE


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_images_as_a_nested_tensor() -> None:
    nested, images = build(NestedNaViT), pictures(*SIZES)
    assert nested(torch.nested.nested_tensor(images)).equal(nested(images))


@torch.inference_mode()
def test_order_and_rows_change_nothing(model: NaViT) -> None:
    images = pictures(*SIZES)
    want = model(images)
    order = [3, 6, 0, 5, 2, 4, 1]
    assert difference(model([images[i] for i in order]), want[order]) < TOLERANCE
    assert difference(model([images[:1], images[1:6], images[6:]]), want) < TOLERANCE
    assert difference(model(tuple(images), group_images=True, group_max_seq_len=48), want) < TOLERANCE
    batch = torch.stack(pictures((24, 40), (24, 40)))
    assert model(batch, group_images=True, group_max_seq_len=15).equal(model(batch))


@torch.inference_mode()
@pytest.mark.parametrize("pos_type", ["frac", "aspect"])
def test_positions_that_are_parts_have_no_largest_image(pos_type: str) -> None:
    model = build(pos_type=pos_type, patch_norm=True)
    images = pictures((96, 32), (16, 136))
    assert difference(model(images), torch.cat([model(image.unsqueeze(0)) for image in images])) < TOLERANCE
    (features,) = model.forward_intermediates(images[0].unsqueeze(0), 1, intermediates_only=True)
    assert features.shape == (1, 48, 12, 4)


@torch.inference_mode()
def test_packed_in_half_precision(model: NaViT) -> None:
    images = pictures(*SIZES)
    want = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(images)
    half = model.bfloat16()([image.bfloat16() for image in images])
    for logits in (mixed, half):
        assert logits.dtype == torch.bfloat16
        assert relative_error(logits, want) < BF16_MODEL


@torch.inference_mode()
def test_one_image_does_not_see_another() -> None:
    model, images = build(), pictures(*SIZES)
    want = model(images)
    images[2].fill_(torch.nan)
    logits = model(images)
    others = [i for i in range(len(images)) if i != 2]
    assert logits[others].equal(want[others])
    assert logits[2].isnan().all()


@pytest.mark.parametrize("kind", [NaViT, NestedNaViT])
@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_reach_everything_and_equal_those_alone(kind: type[NaViT], options: str) -> None:
    model = build(kind, **OPTIONS[options]).train()
    images = [image.requires_grad_() for image in pictures(*SIZES)]
    weights = torch.linspace(-1, 1, 7)

    def gradients(logits: Tensor) -> list[Tensor]:
        wanted = [*model.parameters(), *images]
        return list(torch.autograd.grad((logits * weights).square().sum(), wanted))

    packed = gradients(model(images))
    assert all(gradient.any() and gradient.isfinite().all() for gradient in packed)
    alone = gradients(torch.cat([model([image]) for image in images]))
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_checkpointing_keeps_the_gradients() -> None:
    model, images = build(drop_path=0.4, dropout=0.1).train(), pictures(*SIZES)

    def gradients() -> list[Tensor]:
        torch.manual_seed(3)
        return list(torch.autograd.grad(model(images).square().sum(), list(model.parameters())))

    want = gradients()
    model.set_grad_checkpointing()
    torch.testing.assert_close(gradients(), want)


def test_refused_inputs() -> None:
    model, image = build(), torch.randn(3, 16, 16)
    for images, said in (
        ([], "expected a list of images, or of rows of at least one image, got 0 images in 0 rows"),
        ([[image], []], "got 1 images in 2 rows"),
        ([image, "cat.jpg"], "got a str among them"),
        ([image, torch.randn(1, 3, 16, 16)], r"\(3 channels, height, width\), got shape \(1, 3, 16, 16\)"),
        ([image, torch.randn(1, 16, 16)], "expected 3 channels, got 1"),
        ([image, image.double()], "expected images of dtype torch.float32, got torch.float64"),
        (
            [image, torch.randn(3, 16, 12)],
            r"image size must be a multiple of patch size \(8, 8\), got \(16, 12\)",
        ),
        ([image, torch.randn(3, 56, 16)], r"image size must be at most \(48, 64\), got \(56, 16\)"),
        ([image, torch.randn(3, 0, 16)], r"at least .*got image size \(0, 16\)"),
    ):
        with pytest.raises(ValueError, match=said):
            model(images)
    with pytest.raises(ValueError, match="image 1 has 48 tokens, a row takes at most 47"):
        model([image, torch.randn(3, 48, 64)], group_images=True, group_max_seq_len=47)
    with pytest.raises(ValueError, match="image 0 has 48 tokens, a row takes at most 47"):
        model(torch.randn(2, 3, 48, 64), group_images=True, group_max_seq_len=47)
    with pytest.raises(ValueError, match=r"expected a batch .* of one size, got a list"):
        model.forward_intermediates([image])
    with pytest.raises(ValueError, match="pos_type must be one of abs, frac, aspect, table; got 'sincos'"):
        build(pos_type="sincos")
    with pytest.raises(ValueError, match=r"token_dropout_prob must be .*, got 1\.0"):
        build(token_dropout_prob=1.0)


def count_tokens(model: NaViT) -> list[int]:
    """Record how many tokens enter the blocks at each call from now on."""
    counts: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0].shape[:-1].numel()))
    return counts


@pytest.mark.parametrize("kind", [NaViT, NestedNaViT])
def test_tokens_are_dropped_in_training_alone(kind: type[NaViT]) -> None:
    model, images = build(kind, token_dropout_prob=0.3), pictures((48, 64), (8, 8), (8, 16))
    counts = count_tokens(model)
    assert model(images).equal(model(images))
    batch = torch.stack(pictures((48, 64), (48, 64)))
    assert model(batch).equal(model(batch))
    model.train()
    model(images)
    model(batch)
    assert counts == [51, 51, 96, 96, int(0.7 * 48) + 1 + 1, 2 * int(0.7 * 48)]


def test_dropping_depends_on_the_size(tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []

    def share(height: int, width: int) -> float:
        asked.append((height, width))
        return 0.75 if height * width > 1000 else 0.0

    model, images = build(token_dropout_prob=share), pictures((48, 64), (16, 24))
    counts = count_tokens(model)
    model(images)
    assert asked == []
    model.train()(images)
    model(images, group_images=True, group_max_seq_len=12)
    assert counts == [54, 18, 18]
    assert asked == [(48, 64), (16, 24)] * 2
    with pytest.warns(
        UserWarning, match="the loaded model drops no tokens in training unless it is given again"
    ):
        model.save_pretrained(tmp_path)
    again = NaViT.from_pretrained(tmp_path, token_dropout_prob=share)
    assert again(images).equal(model.eval()(images))


def test_dropping_is_torchs_own_randomness() -> None:
    model = build(token_dropout_prob=0.5).train()
    for images in (pictures(*SIZES), torch.stack(pictures((48, 64), (48, 64)))):
        first, again, other = (_seeded(model, images, seed) for seed in (0, 0, 1))
        assert first.equal(again)
        assert not first.equal(other)


def _seeded(model: NaViT, images: Any, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return model(images)


def test_kept_tokens_keep_their_places() -> None:
    """With constant pixels a token is its position, so those kept must be rows of the full table."""
    model = build(token_dropout_prob=0.5).train()
    table = model.eval().embed(torch.zeros(1, 3, 48, 64))[0]
    model.train()
    entered: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].detach()))
    model([torch.zeros(3, 48, 64)])
    model(torch.zeros(1, 3, 48, 64))
    for tokens in (entered[0][0], entered[1][0]):
        near = torch.cdist(tokens, table)
        assert near.min(dim=1).values.max() < 0.01
        assert len(near.argmin(dim=1).unique()) == 24


def test_paths_are_dropped_by_image() -> None:
    model = build(drop_path=0.99, depth=2).train()
    images = pictures(*[(24, 40)] * 40)
    torch.manual_seed(0)
    with torch.no_grad():
        tokens = torch.stack(model.forward_features(images))
        last = model.blocks[-1]
        last.drop_path.p = 0.999999
        without = torch.stack(model.forward_features(images))
    unchanged = (tokens - without).abs().amax(dim=(1, 2)) < 1e-4
    moved = (tokens - without).abs().amin(dim=2).amax(dim=1) > 1e-3
    assert 30 < unchanged.sum() < 40
    assert (unchanged | moved).all()


def reference(**options: Any) -> NaFlexVit:
    cfg = NaFlexVitCfg(
        patch_size=8,
        embed_dim=48,
        depth=3,
        num_heads=3,
        pos_embed="factorized",
        pos_embed_grid_size=(6, 8),
        **{"init_values": 1e-5, "reg_tokens": 4, "fc_norm": False, **options},
    )
    model = NaFlexVit(cfg, num_classes=7)
    randomise(model)
    return model


TIMM: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gap": ({"global_pool": "avg", "fc_norm": True}, {"pool": "mean", "fc_norm": True, "pos_type": "frac"}),
    "gap, aspect": (
        {"global_pool": "avg", "pos_embed_ar_preserving": True},
        {"pool": "mean", "pos_type": "aspect"},
    ),
    "map": ({"global_pool": "map"}, {"pos_type": "frac"}),
    "map, qk_norm": ({"global_pool": "map", "qk_norm": True}, {"qk_norm": "layer", "pos_type": "frac"}),
}


def timm_batch(images: list[Tensor], patch: int = 8) -> dict[str, Tensor]:
    """One image a row, as timm's model takes images of different sizes."""
    cut = [
        image.unfold(1, patch, patch).unfold(2, patch, patch).permute(1, 2, 3, 4, 0).flatten(2)
        for image in images
    ]
    longest = max(patches.shape[:2].numel() for patches in cut)
    shape = len(images), longest
    patches, places, valid = torch.zeros(*shape, 3 * patch**2), torch.zeros(*shape, 2), torch.zeros(shape)
    for i, part in enumerate(cut):
        n = part.shape[:2].numel()
        patches[i, :n] = part.flatten(0, 1)
        places[i, :n] = torch.cartesian_prod(torch.arange(part.shape[0]), torch.arange(part.shape[1]))
        valid[i, :n] = 1
    return {"patches": patches, "patch_coord": places.long(), "patch_valid": valid.bool()}


@torch.inference_mode()
@pytest.mark.parametrize("name", TIMM)
def test_logits_equal_timms(name: str) -> None:
    theirs, ours = TIMM[name]
    timm = reference(**theirs)
    model = NaViT(**{**OURS, **PLAIN, "layer_scale": 1e-5, "num_registers": 4, **ours}).eval()
    load_pretrained(model, timm.state_dict())
    images = pictures((48, 64), (24, 40), (40, 24), (48, 8), (56, 96))
    assert difference(model(images), timm(timm_batch(images))) < TOLERANCE
    batch = torch.stack(pictures((40, 56), (40, 56)))
    assert difference(model(batch), timm(batch)) < TOLERANCE
    written = to_format(model, "timm")
    assert written.keys() == timm.state_dict().keys()
    timm.load_state_dict(written)


@torch.inference_mode()
def test_counted_positions_equal_timms_on_the_full_grid() -> None:
    timm = reference(global_pool="map")
    model = NaViT(**OURS, **PLAIN, layer_scale=1e-5, num_registers=4).eval()
    load_pretrained(model, timm.state_dict())
    batch = torch.stack(pictures((48, 64), (48, 64)))
    assert difference(model(batch), timm(batch)) < TOLERANCE


NAFLEX = timm.list_models("naflexvit*")


@pytest.mark.parametrize("name", NAFLEX)
def test_named_models_equal_timms(name: str) -> None:
    theirs = timm.create_model(name, depth=1, num_classes=7).eval()
    randomise(theirs)
    model = create_model(name, depth=1, num_classes=7).eval()
    check_parity(model, theirs, torch.stack(pictures((96, 64), (96, 64))))
    load_pretrained(model, theirs.state_dict())
    images = pictures((256, 256), (64, 320), (128, 96))
    with torch.inference_mode():
        assert difference(model(images), theirs(timm_batch(images, patch=16))) < TOLERANCE


@pytest.mark.parametrize("name", NAFLEX)
def test_named_models_are_as_large_and_prepared_as_timms(name: str) -> None:
    with shapes_only():
        theirs, model = timm.create_model(name), create_model(name)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (model, theirs)]
    assert sizes[0] == sizes[1]
    for key in ("input_size", "num_classes", "mean", "std", "interpolation", "crop_pct"):
        assert model.default_cfg[key] == theirs.default_cfg[key], key


PUBLIC: dict[str, dict[str, Any]] = {
    "public_na_vit": {"qk_norm": "rms"},
    "public_na_vit_nested": {"qk_norm": "layer", "pool": {"kind": "query", "residual": False}},
}


@torch.inference_mode()
@pytest.mark.parametrize("kind", [NaViT, NestedNaViT])
@pytest.mark.parametrize("name", PUBLIC)
def test_logits_equal_the_public_packages(name: str, kind: type[NaViT]) -> None:
    facts, state, tensors = read_golden(name)
    form = {"patch_norm": True, "pool": "query", "out_bias": False, "head_bias": False, "norm_eps": 1e-5}
    model = kind(**{**facts, **form, **PUBLIC[name]}).eval()
    report = load_pretrained(model, state)
    images = [tensors[f"input/{i}"] for i in range(5)]
    assert difference(model(images), tensors["output"]) < TOLERANCE
    written = to_format(model, report.format)
    assert written.keys() == state.keys()
    torch.testing.assert_close(written, state)


@torch.inference_mode()
def test_arguments_of_version_0_1() -> None:
    sizes: dict[str, Any] = {**OURS, "depth": 1}
    with pytest.warns(DeprecationWarning, match="pool_mlp=False is now pool="):
        model = NaViT(**sizes, pool_mlp=False, pool_residual=False)  # type: ignore[call-arg]
    assert model.config["pool"] == {"kind": "query", "residual": False}
    assert model.attention_pool is not None
    assert model.attention_pool.residual is False
    again = NestedNaViT(**model.config)
    again.load_state_dict(model.state_dict())
    assert NaViT(**sizes, pool_mlp=True).pool == "map"  # type: ignore[call-arg]


@torch.inference_mode()
def test_a_fresh_model_tells_images_apart() -> None:
    """No position and no query is as large as the image's own part of a token."""
    model = NaViT(**OURS).eval()
    assert isinstance(model.head, nn.Linear)
    features = model.forward_head(model.forward_features(pictures((24, 40), (24, 40))), pre_logits=True)
    assert (features[0] - features[1]).abs().max() > 0.1
