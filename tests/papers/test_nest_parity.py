"""NesT computes what timm's Nest computes."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models import nest as timm_nest
from timm.models.nest import Nest
from torch import Tensor, nn

from tests.papers.family import Family, Named
from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.layers.windows import windows
from vit_pytorch.nest import Aggregation, NesT
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry

OURS = {
    "image_size": 32,
    "patch_size": 2,
    "dim": 24,
    "heads": 2,
    "num_hierarchies": 3,
    "block_repeats": (1, 2, 2),
    "num_classes": 7,
}
THEIRS = {
    "img_size": 32,
    "patch_size": 2,
    "embed_dims": (24, 48, 96),
    "num_heads": (2, 4, 8),
    "num_levels": 3,
    "depths": (1, 2, 2),
    "num_classes": 7,
    "pad_type": "same",
    "drop_path_rate": 0.0,
}

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "padded at the end": ({}, {}),
    "padded all round": ({"padding": "symmetric"}, {"pad_type": ""}),
    "two levels": (
        {"num_hierarchies": 2, "block_repeats": 2},
        {"num_levels": 2, "embed_dims": (24, 48), "num_heads": (2, 4), "depths": 2},
    ),
    "sizes level by level": (
        {"dim": (24, 36, 40), "heads": (2, 3, 5), "mlp_ratio": 2.5, "image_size": 24},
        {"embed_dims": (24, 36, 40), "num_heads": (2, 3, 5), "mlp_ratio": 2.5, "img_size": 24},
    ),
    "no bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
}


def with_strides(model: NesT, reference: nn.Module) -> None:
    """Let timm's say the strides of patches of 2 pixels; it says those of 4."""
    for info in reference.feature_info:
        info["reduction"] //= 2


FAMILY = Family(
    NesT,
    Nest,
    OURS,
    THEIRS,
    OPTIONS,
    module="nest",
    named=[Named("nest_tiny"), Named("nest_tiny_jx"), Named("nest_base_jx")],
    others=tuple(f"nest_{size}_s16_32" for size in ("tiny", "small", "base")),
    maps=("padded at the end",),
    norms=[(False, False), (True, True)],
    trained=("padded at the end",),
    prepare=with_strides,
)


def level_in_plain(level: Any, x: Tensor) -> Tensor:
    """A level, block by block, on a channels-last map."""
    x = level.down(x)
    height, width = x.shape[1] // level.regions, x.shape[2] // level.regions
    table = level.positions.table.unflatten(1, level.positions.grid)
    x = x + table[:, : x.shape[1], : x.shape[2]]
    out = torch.empty_like(x)
    for i in range(level.regions):
        for j in range(level.regions):
            rows, columns = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
            tokens = x[:, rows, columns].flatten(1, 2)[:, None]
            for block in level.blocks:
                tokens = block(tokens)
            out[:, rows, columns] = tokens[:, 0].unflatten(1, (height, width))
    return out


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("nest_tiny", 17_057_608),
        ("nest_small", 38_351_176),
        ("nest_base_jx", 67_723_368),
        ("nest_tiny_s16_32", 6_197_800),
        ("nest_small_s16_32", 23_231_080),
        ("nest_base_s16_32", 89_811_688),
    ],
)
def test_parameter_count_is_the_published_one(name: str, parameters: int) -> None:
    assert find_entry(name).parameters == parameters


@torch.inference_mode()
def test_maps_and_strides() -> None:
    model = create_model("nest_tiny", block_repeats=1).eval()
    maps = model.forward_intermediates(images(224, 224, batch=1), intermediates_only=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(96, 56, 56), (192, 28, 28), (384, 14, 14)]
    theirs = timm.create_model("nest_tiny").feature_info
    for key in ("num_chs", "reduction"):
        assert [info[key] for info in model.feature_info] == [info[key] for info in theirs]


@torch.inference_mode()
def test_heads_that_share_keys_and_values_are_heads_with_the_same_ones() -> None:
    shared, model = NesT(**OURS, multi_query=True), NesT(**OURS)
    randomise(shared)
    state = shared.state_dict()
    for name, tensor in state.items():
        if ".to_qkv." in name:
            attention = shared.get_submodule(name.rsplit(".", 2)[0])
            q, k, v = tensor.split([attention.heads * 12, 12, 12])
            repeats = [attention.heads] + [1] * (tensor.ndim - 1)
            state[name] = torch.cat([q, k.repeat(repeats), v.repeat(repeats)])
    model.load_state_dict(state)
    x = images(32, 32)
    assert difference(shared.eval()(x), model.eval()(x)) < TOLERANCE


def from_jax(weights: dict[str, Tensor], model: NesT) -> dict[str, Tensor]:
    """Bring the authors' weights to our names: their blocks are numbered over all levels."""
    ours: dict[str, Tensor] = {}

    def norm(name: str, theirs: str) -> None:
        ours[f"{name}.weight"], ours[f"{name}.bias"] = weights[f"{theirs}/scale"], weights[f"{theirs}/bias"]

    def layer(name: str, theirs: str) -> None:
        kernel = weights[f"{theirs}/kernel"]
        ours[f"{name}.weight"] = kernel.movedim((-1, -2), (0, 1))
        ours[f"{name}.bias"] = weights[f"{theirs}/bias"]

    layer("stages.0.down.layers.0", "PatchEmbedding_0/Conv_0")
    count = 0
    for i, level in enumerate(model.stages):
        if i > 0:
            layer(f"stages.{i}.down.conv.layers.0", f"ConvPool_{i - 1}/Conv_0")
            norm(f"stages.{i}.down.norm", f"ConvPool_{i - 1}/LayerNorm_0")
        blocks = weights[f"PositionEmbedding_{i}/pos_embedding"]
        side = int(blocks.shape[2] ** 0.5)
        grid = (side * level.regions, side * level.regions)
        ours[f"stages.{i}.positions.table"] = windows((side, side)).merge(blocks[0], grid).flatten(1, 2)
        for j in range(len(level.blocks)):
            name, theirs = f"stages.{i}.blocks.{j}", f"EncoderNDBlock_{count}"
            count += 1
            norm(f"{name}.norm1", f"{theirs}/LayerNorm_0")
            norm(f"{name}.norm2", f"{theirs}/LayerNorm_1")
            layer(f"{name}.feedforward.to_hidden", f"{theirs}/MlpBlock_0/Dense_0")
            layer(f"{name}.feedforward.to_out", f"{theirs}/MlpBlock_0/Dense_1")
            kind = next(key.split("/")[1] for key in weights if key.startswith(f"{theirs}/Multi"))
            both = "Dense_0" if kind.startswith("MultiQuery") else "DenseGeneral_1"
            for what, end in (("weight", "kernel"), ("bias", "bias")):
                q = weights[f"{theirs}/{kind}/DenseGeneral_0/{end}"]
                k, v = weights[f"{theirs}/{kind}/{both}/{end}"].chunk(2, dim=-1)
                parts = [part.flatten(1).T if what == "weight" else part.flatten() for part in (q, k, v)]
                ours[f"{name}.attention.to_qkv.{what}"] = torch.cat(parts)
            out = weights[f"{theirs}/{kind}/proj_kernel"]
            ours[f"{name}.attention.to_out.weight"] = out.flatten(0, 1).T
            ours[f"{name}.attention.to_out.bias"] = weights[f"{theirs}/{kind}/bias"]
    norm("norm", "LayerNorm_0")
    layer("head", "Dense_0")
    return ours


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("nest_multi_head", {"dim": 12, "heads": 3, "patch_size": 2, "block_repeats": (1, 1, 2)}),
        (
            "nest_multi_query",
            {"dim": (24,) * 3, "heads": (3,) * 3, "patch_size": 1, "block_repeats": (1, 2, 1)},
        ),
    ],
)
def test_logits_equal_those_of_the_authors_program(name: str, sizes: dict[str, Any]) -> None:
    config, weights, golden = read_golden(name)
    arguments = {**OURS, **sizes, "image_size": config["image_size"], "act": "gelu_tanh"}
    model = NesT(**arguments, multi_query=name == "nest_multi_query").eval()
    model.load_state_dict(from_jax(weights, model))
    assert sum(p.numel() for p in model.parameters()) == sum(tensor.numel() for tensor in weights.values())
    assert difference(model(golden["input"]), golden["output"]) < TOLERANCE


# Inputs of other sizes.


@torch.inference_mode()
@pytest.mark.parametrize("size", [16, 8])
def test_smaller_image_is_timms_model_of_that_size(size: int) -> None:
    """As many blocks, each smaller; positions of the same places."""
    model, reference = FAMILY.pair("padded at the end")
    smaller = Nest(**{**THEIRS, "img_size": size}).eval()
    state = reference.state_dict()
    for i, level in enumerate(smaller.levels):
        side, block = level.pos_embed.shape[1:3]
        assert side == 4 ** (2 - i)
        extent = int((side * block) ** 0.5)
        table = model.stages[i].positions.table_for((extent, extent)).unflatten(1, (extent, extent))
        state[f"levels.{i}.pos_embed"] = timm_nest.blockify(table, int(block**0.5))
    smaller.load_state_dict(state)
    x = images(size, size)
    assert difference(model(x), smaller(x)) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("size", [(32, 32), (16, 24), (32, 8)])
def test_blocks_of_images_that_are_not_square(size: tuple[int, int]) -> None:
    model, _ = FAMILY.pair("padded at the end")
    state = images(*size).permute(0, 2, 3, 1)
    for level in model.stages:
        state = level_in_plain(level, state)
    want = model.norm(state).permute(0, 3, 1, 2)
    assert difference(model.forward_features(images(*size)), want) < TOLERANCE
    other = NesT(**{**OURS, "image_size": size}).eval()
    tables = {
        f"stages.{i}.positions.table": level.positions.table_for(other.stages[i].positions.grid)
        for i, level in enumerate(model.stages)
    }
    other.load_state_dict({**model.state_dict(), **tables})
    assert other(images(*size)).equal(model(images(*size)))


@pytest.mark.parametrize("size", [16, 64])
def test_positions_are_resized_as_timm_does(size: int) -> None:
    """timm's loader has the function for it, which takes squares."""
    _, reference = FAMILY.pair("padded at the end")
    larger = NesT(**{**OURS, "image_size": size}).eval()
    report = load_pretrained(larger, reference.state_dict(), antialias=False)
    assert report.resized == {
        f"stages.{i}.positions.table": ((16 >> i, 16 >> i), (size // 2 >> i, size // 2 >> i))
        for i in range(3)
    }
    written = to_format(larger, "timm")
    for i, level in enumerate(Nest(**{**THEIRS, "img_size": size}).levels):
        table = reference.levels[i].pos_embed
        want = timm_nest.resize_pos_embed(table, level.pos_embed)
        torch.testing.assert_close(written[f"levels.{i}.pos_embed"], want)


def test_positions_of_all_levels_are_resized_to_an_oblong_grid_and_back() -> None:
    model, _ = FAMILY.pair("padded at the end")
    oblong = NesT(**{**OURS, "image_size": (16, 64)}).eval()
    report = load_pretrained(oblong, model.state_dict(), grid=(16, 16))
    assert report.resized == {
        f"stages.{i}.positions.table": ((16 >> i, 16 >> i), (8 >> i, 32 >> i)) for i in range(3)
    }
    again = NesT(**{**OURS, "image_size": (24, 48)}).eval()
    report = load_pretrained(again, oblong.state_dict(), grid=(8, 32))
    assert report.resized == {
        f"stages.{i}.positions.table": ((8 >> i, 32 >> i), (12 >> i, 24 >> i)) for i in range(3)
    }
    assert again(images(24, 48)).isfinite().all()


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((36, 32), r"at most \(32, 32\), got \(36, 32\)"),
        ((28, 32), r"a multiple of \(8, 8\), got \(28, 32\)"),
        ((4, 4), r"a multiple of \(8, 8\), got \(4, 4\)"),
    ],
)
def test_size_that_the_hierarchy_does_not_divide_is_refused(size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NesT(**OURS)(images(*size))


# What other programs get wrong.


def test_every_level_has_a_vector_of_position_for_every_place() -> None:
    model = NesT(**OURS)
    shapes = [tuple(level.positions.table.shape) for level in model.stages]
    assert shapes == [(1, 256, 24), (1, 64, 48), (1, 16, 96)]
    assert model.no_weight_decay() == {f"stages.{i}.positions.table" for i in range(3)}


def test_queries_keys_and_values_have_biases_and_patches_no_norm() -> None:
    model = NesT(**OURS)
    for level in model.stages:
        for block in level.blocks:
            assert block.attention.to_qkv.bias is not None
    assert [name for name, _ in model.stages[0].down.named_parameters()] == [
        "layers.0.weight",
        "layers.0.bias",
    ]


def test_blocks_do_not_see_each_other() -> None:
    model, _ = FAMILY.pair("padded at the end")
    x = images(32, 32)
    other = x.clone()
    other[:, :, :8, :8] = torch.randn(2, 3, 8, 8)
    one, two = (model.forward_intermediates(each, [0], intermediates_only=True)[0] for each in (x, other))
    same = (one == two).all(dim=1)
    assert not same[:, :4, :4].any()
    assert same[:, 4:].all()
    assert same[:, :4, 4:].all()


@pytest.mark.parametrize(("padding", "first"), [("same", 0), ("symmetric", -1)])
def test_where_pooling_begins(padding: str, first: int) -> None:
    pool = Aggregation(1, 1, padding=padding).pool
    x = torch.rand(1, 6, 8, 1)
    out = pool(x)
    assert out.shape == (1, 3, 4, 1)
    for i in range(3):
        for j in range(4):
            rows = slice(max(2 * i + first, 0), 2 * i + first + 3)
            columns = slice(max(2 * j + first, 0), 2 * j + first + 3)
            assert out[0, i, j, 0] == x[0, rows, columns].max()


def test_a_dropped_branch_is_dropped_in_all_blocks_of_a_sample() -> None:
    """Chance is over samples, not over blocks of one."""
    drop = DropPath(0.5).train()
    model = NesT(**OURS, drop_path=0.5)
    seen: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, DropPath):
            module.register_forward_hook(lambda m, inputs, out: seen.append(tuple(inputs[0].shape)))
    model.train()(images(32, 32))
    assert {shape[0] for shape in seen} == {2}
    assert drop(torch.ones(64, 4, 3, 2)).flatten(1).std(dim=1).max() == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": (2, 4)}, r"heads must be one number or one for each of 3 stages, got \(2, 4\)"),
        (
            {"block_repeats": (2, 2)},
            r"block_repeats must be one number or one for each of 3 stages, got \(2, 2\)",
        ),
        ({"heads": 5}, "dim must be a multiple of heads, got dim=24 and heads=5"),
        ({"image_size": 20}, r"a multiple of \(8, 8\), got \(20, 20\)"),
        ({"num_hierarchies": 0}, r"num_hierarchies must be .*, got 0"),
        ({"padding": "valid"}, "padding must be one of same, symmetric; got 'valid'"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NesT(**{**OURS, **wrong})
