"""SepViT computes what the authors' code computes, that for classification and that for detection."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.papers.golden import assert_goes_back, read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.layers.conv import PositionGenerator
from vit_pytorch.layers.positions import resize_table
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry
from vit_pytorch.sep_vit import SeparableAttention, SepViT

OURS: dict[str, Any] = {
    "num_classes": 7,
    "dim": 8,
    "dim_head": 8,
    "heads": (1, 2, 4),
    "depth": (1, 4, 2),
    "window_size": 2,
    "image_size": 32,
}


def from_config(config: dict[str, Any], **options: Any) -> SepViT:
    """Build what the reference was built with."""
    return SepViT(
        num_classes=config["num_classes"],
        dim=config["embed_dims"],
        dim_head=config["embed_dims"][0] // config["num_heads"][0],
        heads=config["num_heads"],
        depth=config["depths"],
        window_size=config["ws"],
        mlp_ratio=config["mlp_ratios"][0],
        **options,
    ).eval()


@pytest.fixture(params=["sepvit", "sepvit_detection"])
def golden(request: pytest.FixtureRequest) -> tuple[SepViT, dict[str, Tensor], dict[str, Tensor]]:
    """Ours with the authors' weights, these, and their input and outputs."""
    config, weights, tensors = read_golden(request.param)
    options = {} if request.param == "sepvit" else {"window_tokens": "zeros"}
    model = from_config(config, **options)
    assert load_pretrained(model, weights).format == "sepvit"
    return model, weights, tensors


@torch.inference_mode()
def test_outputs_equal_the_authors(golden: tuple[SepViT, dict[str, Tensor], dict[str, Tensor]]) -> None:
    """That for detection gives the bare map of every stage, here with windows that do not fill."""
    model, _, tensors = golden
    x = tensors["input"]
    if "output" in tensors:
        assert difference(model(x), tensors["output"]) < TOLERANCE
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        assert difference(pooled, tensors["features"]) < TOLERANCE
    else:
        maps = model.forward_intermediates(x, intermediates_only=True)
        assert [tuple(m.shape[2:]) for m in maps] == [(15, 19), (8, 10), (4, 5)]
        # Before the norm, entries reach 9.
        assert all(difference(m, tensors[f"map{i}"]) < 3 * TOLERANCE for i, m in enumerate(maps))


def test_weights_go_back(golden: tuple[SepViT, dict[str, Tensor], dict[str, Tensor]]) -> None:
    model, weights, _ = golden
    assert_goes_back(model, "sepvit", weights)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sepvit_lite", 3_661_128),
        ("sepvit_tiny", 31_182_856),
        ("sepvit_small", 46_570_504),
        ("sepvit_base", 82_377_064),
    ],
)
def test_parameter_count_is_that_of_the_authors_code(name: str, parameters: int) -> None:
    assert find_entry(name).parameters == parameters


def test_all_of_the_authors_models_are_named() -> None:
    assert len(list_models("sepvit_*")) == 4


def test_windows_of_the_named_models() -> None:
    with torch.device("meta"):
        model = create_model("sepvit_small")
    sides = [[b.attention.window for b in stage.blocks] for stage in model.stages]
    assert sides == [[7], [7, 14], [7, None] * 7, [None, None]]
    grids = [b.attention.tokens.grid for stage in model.stages[:2] for b in stage.blocks]
    assert grids == [(8, 8), (4, 4), (2, 2)]


def reference_attention(branch: SeparableAttention, x: Tensor) -> Tensor:
    """Compute the attention of one sample's map (y x d) in plain loops over windows and heads."""
    side, width = branch.window, branch.dim_head
    rows, columns = x.shape[0] // side, x.shape[1] // side
    tokens = branch.tokens.table[0].unflatten(0, branch.tokens.grid)
    within = {}
    for row in range(rows):
        for column in range(columns):
            cells = x[row * side : (row + 1) * side, column * side : (column + 1) * side].flatten(0, 1)
            seen = torch.cat([tokens[row, column][None], cells])
            q, k, v = F.linear(seen, branch.to_qkv.weight, branch.to_qkv.bias).chunk(3, dim=1)
            heads = [slice(h * width, (h + 1) * width) for h in range(branch.heads)]
            mixed = [(q[:, h] @ k[:, h].T * width**-0.5).softmax(1) @ v[:, h] for h in heads]
            within[row, column] = torch.cat(mixed, dim=1) + seen
    pointers = F.gelu(branch.token_norm[0](torch.stack([each[0] for each in within.values()])))
    q, k = F.linear(pointers, branch.to_token_qk.weight, branch.to_token_qk.bias).chunk(2, dim=1)
    out = torch.zeros_like(x)
    for i, (row, column) in enumerate(within):
        mixed = within[row, column][1:].clone()
        for h in heads:
            weights = (q[i, h] @ k[:, h].T * width**-0.5).softmax(0)
            for weight, other in zip(weights, within.values(), strict=True):
                mixed[:, h] += weight * other[1:, h]
        place = slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)
        out[place] = branch.to_out(mixed).unflatten(0, (side, side))
    return out


@torch.inference_mode()
@pytest.mark.parametrize("grid", [(3, 4), (2, 4), (1, 1)])
def test_attention_in_plain_loops(grid: tuple[int, int]) -> None:
    """Also of a smaller map, whose windows have the tokens of the same places."""
    branch = SeparableAttention(16, heads=2, window=3, grid=(3, 4))
    randomise(branch)
    x = torch.randn(2, 3 * grid[0], 3 * grid[1], 16)
    want = torch.stack([reference_attention(branch, each) for each in x])
    assert difference(branch(*branch.whole_windows(x)), want) < TOLERANCE


@torch.inference_mode()
def test_a_map_of_one_window_is_plain_attention_with_a_shortcut() -> None:
    branch = SeparableAttention(16, heads=2, window=None)
    randomise(branch)
    assert {name.split(".")[0] for name, _ in branch.named_parameters()} == {"to_qkv", "to_out"}
    x = torch.randn(2, 3, 5, 16)
    cells = x.flatten(1, 2)
    mixed = branch.kernel(*branch.project(cells)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(branch(x).flatten(1, 2), branch.to_out(mixed + cells))


# What other programs get wrong.


@torch.inference_mode()
def test_window_size_counts() -> None:
    """Windows are of the size asked for, and no other reaches beyond them before windows are mixed."""
    model = SepViT(**{**OURS, "depth": (1, 1, 1), "window_size": 4})
    assert [s.blocks[0].attention.window for s in model.stages] == [4, None, None]
    branch = model.stages[0].blocks[0].attention
    assert branch.partition.size == (4, 4)
    assert branch.tokens.grid == (2, 2)


def test_every_window_has_a_token_of_its_own() -> None:
    model = SepViT(**OURS)
    tokens = [name for name, _ in model.named_parameters() if "tokens" in name]
    branches = [model.get_submodule(name.removesuffix(".tokens.table")) for name in tokens]
    assert [tuple(b.tokens.table.shape) for b in branches] == [(1, 16, 8), (1, 4, 16), (1, 4, 16)]
    assert all(0.3 < b.tokens.table.std() < 0.7 for b in branches)
    assert all(b.token_norm[0].normalized_shape == (b.heads * b.dim_head,) for b in branches)
    assert set(tokens) < model.no_weight_decay()


def test_every_second_block_has_wide_windows_where_the_map_has_several() -> None:
    model = SepViT(**{**OURS, "image_size": (32, 64)})
    sides = [[b.attention.window for b in stage.blocks] for stage in model.stages]
    assert sides == [[2], [2, 4, 2, 4], [2, None]]
    given = SepViT(**{**OURS, "window_size": ((4,), (2, 2, 2, 2), (2, 1))})
    assert [b.attention.window for b in given.stages[1].blocks] == [2] * 4


def test_places_are_told_behind_the_first_block() -> None:
    model = SepViT(**OURS)
    for stage in model.stages:
        first, *others = stage.blocks
        assert isinstance(first.positions, PositionGenerator)
        assert not any(isinstance(m, PositionGenerator) for block in others for m in block.modules())


def test_norms_and_patches() -> None:
    model = SepViT(**OURS)
    convs = [stage.down[0].layers[0] for stage in model.stages]
    assert [(c.kernel_size, c.stride, c.padding) for c in convs] == [
        ((7, 7), (4, 4), (3, 3)),
        ((3, 3), (2, 2), (1, 1)),
        ((3, 3), (2, 2), (1, 1)),
    ]
    assert [stage.down[1].eps for stage in model.stages] == [1e-5] * 3
    block = model.stages[0].blocks[0]
    assert block.attention.token_norm[0].eps == 1e-5
    assert block.norm1.eps == block.norm2.eps == model.norm.eps == 1e-6
    assert block.attention.to_token_qk.bias is not None


@torch.inference_mode()
def test_any_size_without_learned_tokens() -> None:
    model = randomise(SepViT(**OURS, window_tokens="zeros"))
    for size in ((32, 32), (9, 50), (1, 1), (100, 20)):
        maps = model.forward_intermediates(images(*size), intermediates_only=True)
        assert [tuple(m.shape[2:]) for m in maps] == [
            tuple(-(-extent // stride) for extent in size) for stride in (4, 8, 16)
        ]
    assert not [name for name, _ in model.named_parameters() if "tokens" in name]
    assert all(hasattr(b.attention, "to_token_qk") for s in model.stages for b in s.blocks)


def test_larger_images_than_there_are_tokens_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image size must be at most \(32, 32\), got \(32, 36\)"):
        SepViT(**OURS)(images(32, 36))


@pytest.mark.parametrize("layout", ["vit_pytorch", "sepvit"])
def test_tokens_are_resized_to_other_images(layout: str) -> None:
    few = {**OURS, "depth": (1, 1, 1)}
    model = randomise(SepViT(**{**few, "window_size": ((2,), (2,), (2,))}))
    larger = SepViT(**{**few, "window_size": ((2,), (2,), (6,)), "image_size": (64, 96)}).eval()
    report = load_pretrained(larger, to_format(model, layout))
    names = [f"stages.{i}.blocks.0.attention.tokens.table" for i in range(2)]
    assert report.resized == {names[0]: ((4, 4), (8, 12)), names[1]: ((2, 2), (4, 6))}
    table = resize_table(model.get_parameter(names[0]), (4, 4), (8, 12))
    torch.testing.assert_close(larger.get_parameter(names[0]), table)
    assert larger(images(64, 96)).isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": (1, 2)}, r"dim \[8, 16, 32\], heads \(1, 2\) and depth \(1, 4, 2\) must agree in stages"),
        ({"dim": (8, 16)}, r"dim \[8, 16\], heads .* must agree in stages"),
        ({"dim_head": 4}, r"dim must be heads times dim_head, got \[8, 16, 32\], \(1, 2, 4\) and 4"),
        (
            {"window_size": ((2,), (2,), (2,))},
            r"window_size must have .*\(1, 4, 2\), got \[\[2\], \[2\], \[2\]\]",
        ),
        ({"window_tokens": "shared"}, "window_tokens must be one of learned, zeros; got 'shared'"),
        ({"window_size": 0}, r"window_size must be .*, got 0"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SepViT(**{**OURS, **wrong})
