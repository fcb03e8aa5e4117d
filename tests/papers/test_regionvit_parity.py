"""RegionViT computes what the authors' code computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.papers.golden import as_golden, assert_goes_back, assert_golden, read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.pretrained import to_format
from vit_pytorch.regionvit import Regions, RegionViT, missing_pixels
from vit_pytorch.registry import find_entry

GOLDEN: dict[str, Any] = {
    "dim": (12, 24, 48, 96),
    "depth": (1, 2, 2, 2),
    "window_size": 3,
    "num_classes": 10,
    "tokenize_local_3_conv": True,
    "use_peg": True,
    "image_size": 96,
    "heads": (2, 4, 8, 16),
    "mlp_ratio": 3,
}
ONE_CONV = {**GOLDEN, "tokenize_local_3_conv": False, "use_peg": False}


def make_golden(**options: Any) -> tuple[RegionViT, dict[str, Tensor], dict[str, Tensor]]:
    """Ours with the authors' weights; these weights; and what the authors' code computed."""
    model = RegionViT(**{**GOLDEN, **options})
    return model, *as_golden(model, "regionvit")


def make_one_conv() -> tuple[RegionViT, dict[str, Tensor]]:
    _, weights, _ = read_golden("regionvit")
    _, _, tensors = read_golden("regionvit_sizes")
    weights = {name: t for name, t in weights.items() if "patch_embed" not in name and "peg" not in name}
    weights |= {
        name.removeprefix("one_conv/"): tensor
        for name, tensor in tensors.items()
        if name.startswith("one_conv/")
    }
    model = RegionViT(**ONE_CONV)
    load_pretrained(model, weights, strict=True)
    return model.eval(), weights


def test_equals_the_authors() -> None:
    """Narrowing is in their files twice; the table of offsets is a cyclic shift of ours, turned round."""
    model, weights, tensors = make_golden()
    assert_goes_back(model, "regionvit", weights)
    assert_golden(model, tensors)


@torch.inference_mode()
@pytest.mark.parametrize("size", ["80x52", "33x96", "60x61"])
def test_logits_at_other_sizes_equal_the_authors(size: str) -> None:
    """Regions filled up along both axes, or one alone, by cells that the last region sees in part."""
    model, _, _ = make_golden()
    _, _, tensors = read_golden("regionvit_sizes")
    assert difference(model(tensors[f"input.{size}"]), tensors[f"output.{size}"]) < TOLERANCE


@torch.inference_mode()
def test_one_convolution_equals_the_authors() -> None:
    model, weights = make_one_conv()
    _, _, tensors = read_golden("regionvit_sizes")
    output = model(tensors["one_conv.input.37x50"])
    assert difference(output, tensors["one_conv.output.37x50"]) < TOLERANCE
    assert_goes_back(model, "regionvit", weights)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("regionvit_tiny_224", 13_842_676),
        ("regionvit_small_224", 30_586_618),
        ("regionvit_medium_224", 41_215_906),
        ("regionvit_base_224", 72_747_232),
        ("regionvit_small_w14_224", 31_354_714),
        ("regionvit_small_w14_peg_224", 31_367_674),
        ("regionvit_base_w14_224", 73_825_120),
        ("regionvit_base_w14_peg_224", 73_842_400),
    ],
)
def test_parameter_count_is_that_of_the_authors_code(name: str, parameters: int) -> None:
    assert find_entry(name).parameters == parameters
    assert name in list_models("regionvit_*")


@torch.inference_mode()
def test_maps_regions_and_strides() -> None:
    model = create_model("regionvit_tiny_224", depth=(1, 1, 1, 1)).eval()
    found = model.forward_intermediates(
        images(224, 224, batch=1), return_prefix_tokens=True, intermediates_only=True
    )
    assert [tuple(m.shape[1:]) for m, _ in found] == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
    assert [tuple(regional.shape[1:]) for _, regional in found] == [(64, 64), (16, 128), (4, 256), (1, 512)]
    assert [i["reduction"] for i in model.feature_info] == [4, 8, 16, 32]
    assert model.num_prefix_tokens == 1
    assert create_model("regionvit_tiny_224", depth=(1, 1, 1, 1), image_size=448).num_prefix_tokens == 4


@torch.inference_mode()
@pytest.mark.parametrize("size", [(96, 96), (60, 61), (40, 150)])
def test_features_are_regions_and_their_cells(size: tuple[int, int]) -> None:
    """The mean is over the regions' tokens at every size; cells that fill regions up are zeros."""
    model, _, _ = make_golden()
    x = images(*size)
    (local, regional), features = (
        model.forward_intermediates(x, 1, return_prefix_tokens=True, norm=True, intermediates_only=True)[0],
        model.forward_features(x),
    )
    count = regional.shape[1]
    assert features.shape[1] == count * (1 + 3 * 3)
    assert features[:, :count].equal(regional)
    cells = features[:, count:]
    assert cells[cells.any(dim=-1)].equal(local.permute(0, 2, 3, 1).flatten(0, 2))
    # Another view of the same numbers: the mean may be summed in another order.
    assert difference(model.pool_features(features), regional.mean(dim=1)) < TOLERANCE


def test_another_window_takes_the_weights_of_this_one() -> None:
    model, weights, _ = make_golden()
    larger, own = (RegionViT(**{**GOLDEN, "window_size": 6}) for _ in range(2))
    with pytest.raises(ValueError, match="strictly"):
        load_pretrained(larger, weights, strict=True)
    report = load_pretrained(larger, weights)
    assert set(report.resized.values()) == {((3, 3), (6, 6))}
    assert len(report.resized) == 7
    load_pretrained(own, model.state_dict())
    assert all(larger.state_dict()[name].equal(tensor) for name, tensor in own.state_dict().items())
    ours, theirs = (
        m.stages[1].blocks[0].bias.table.unflatten(0, (-1, n)) for m, n in ((model, 5), (own, 11))
    )
    torch.testing.assert_close(theirs[5, 5], ours[2, 2])
    want = nn.functional.interpolate(weights["cls_token.proj.weight"], (24, 24), mode="bicubic")
    assert own.stem.regional.layers[0].weight.equal(want)


@pytest.mark.parametrize("window", [2, 3, 4, 7])
def test_offsets_of_the_authors_table(window: int) -> None:
    """Theirs looks (key - query + half a window) up, where what is negative counts from the end."""
    model = RegionViT(**{**GOLDEN, "window_size": window, "image_size": 32})
    side = 2 * window - 1
    theirs = to_format(model, "regionvit")["layers.1.block.1.attn.rel_pos"].unflatten(1, (side, side))
    bias = model.stages[1].blocks[0].bias()[:, 1:, 1:]
    for query in range(window**2):
        for key in range(window**2):
            row, column = key // window - query // window, key % window - query % window
            want = theirs[:, row + window // 2, column + window // 2]
            assert bias[:, query, key].equal(want)


# Independent computations, and what other programs get wrong.


@torch.inference_mode()
def test_a_block_region_by_region() -> None:
    """Regions hear of each other first, then each of its own cells; weights are shared, norms are not."""
    model, _, _ = make_golden()
    block = model.stages[1].blocks[1]
    attention, window = block.attention, 3
    local, regional = torch.randn(2, 6, 9, 24), torch.randn(2, 2, 3, 24)
    regions = Regions((6, 9), (2, 3), window)
    got = regions.split(block(regions.join(local, regional), regions, None))
    tokens = regional.flatten(1, 2)
    tokens = tokens + attention(block.regional_norm(tokens))
    for row in range(2):
        for column in range(3):
            down, right = window * row, window * column
            cells = local[:, down : down + window, right : right + window].flatten(1, 2)
            x = torch.cat([tokens[:, 3 * row + column, None], cells], dim=1)
            q, k, v = attention.project(block.norm1(x))
            scores = q @ k.mT * q.shape[-1] ** -0.5
            for i in range(9):
                for j in range(9):
                    offset = 5 * (i // 3 - j // 3 + 2) + i % 3 - j % 3 + 2
                    scores[:, :, 1 + i, 1 + j] += block.bias.table[offset]
            x = x + attention.merge(scores.softmax(-1) @ v)
            x = x + block.feedforward(block.norm2(x))
            assert difference(got[1][:, row, column], x[:, 0]) < TOLERANCE
            square = got[0][:, down : down + window, right : right + window]
            assert difference(square.flatten(1, 2), x[:, 1:]) < TOLERANCE


def test_heads_are_of_32_channels_and_tables_belong_to_blocks() -> None:
    model = create_model("regionvit_tiny_224")
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert [b.attention.heads for b in blocks] == [2, 2, 4, 4, *[8] * 8, 16, 16]
    assert {b.attention.dim_head for b in blocks} == {32}
    assert len({id(b.bias.table) for b in blocks}) == len(blocks) == 14
    assert all(b.bias.table.shape[0] == 13 * 13 for b in blocks)
    assert all(b.norm1 is not b.regional_norm for b in blocks)


def test_narrowing_is_one_depthwise_convolution_for_both_maps() -> None:
    model = RegionViT(**GOLDEN)
    names = {name: tuple(p.shape) for name, p in model.stages[1].down.named_parameters()}
    assert names == {
        "norm.weight": (12,),
        "norm.bias": (12,),
        "conv.layers.0.weight": (24, 1, 3, 3),
        "conv.layers.0.bias": (24,),
    }
    assert isinstance(model.stages[0].down, nn.Identity)
    x = torch.randn(1, 4, 6, 12)
    assert model.stages[1].down(x).shape == (1, 2, 3, 24)


def test_embeddings() -> None:
    three, one = RegionViT(**GOLDEN).stem.local, RegionViT(**ONE_CONV).stem.local
    widths = [m.out_channels for m in three.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [3, 6, 12]
    assert [m.kernel_size for m in one.modules() if isinstance(m, nn.Conv2d)] == [(8, 8)]
    assert three(torch.randn(1, 30, 17, 3)).shape[1:3] == (8, 5)
    assert one(torch.randn(1, 30, 18, 3)).shape[1:3] == (8, 5)


def test_positions_are_told_behind_the_first_block_of_each_stage() -> None:
    model = RegionViT(**GOLDEN)
    told = [[b.positions is not None for b in stage.blocks] for stage in model.stages]
    assert told == [[True], *[[True, False]] * 3]
    assert all(stage.blocks[0].positions.conv.bias is None for stage in model.stages)
    assert not any("positions" in name for name in RegionViT(**ONE_CONV).state_dict())


@torch.inference_mode()
def test_every_region_sees_the_whole_image() -> None:
    model = randomise(RegionViT(**{**GOLDEN, "depth": (1, 1, 1, 1)}))
    x = images(96, 96, batch=1)
    other = x.clone()
    other[..., -1, -1] += 1
    (_, before), (_, after) = (
        model.forward_intermediates(each, [0], return_prefix_tokens=True, intermediates_only=True)[0]
        for each in (x, other)
    )
    assert ((before - after).abs().amax(dim=-1) > 0).all()


def test_what_an_image_lacks() -> None:
    """A multiple along one axis alone is filled up by a whole square along it, as by the authors' code."""
    assert missing_pixels((24, 48), 12) == [0, 0]
    assert missing_pixels((25, 47), 12) == [11, 1]
    assert missing_pixels((24, 47), 12) == [12, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": (2, 2)}, r"depth must be one for each of 4 stages, got \(2, 2\)"),
        ({"dim": (12, 24, 36, 96)}, r"a multiple of that of the stage before, got \(12, 24, 36, 96\)"),
        ({"heads": None}, r"dims must be multiples of 32, the head dimension, got \(12, 24, 48, 96\)"),
        ({"dim": (14, 28, 56, 112), "heads": (2, 4, 8, 16)}, "a multiple of 4 channels, got 14"),
        ({"mlp_ratio": (2, 2)}, r"mlp_ratio must be one number or one for each of 4 stages, got \(2, 2\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionViT(**{**GOLDEN, **wrong})


def test_an_image_of_one_pixel_is_too_small_for_one_convolution() -> None:
    with pytest.raises(ValueError, match=r"at least \(2, 2\), got image size \(1, 8\)"):
        RegionViT(**ONE_CONV)(images(1, 8))
    assert RegionViT(**GOLDEN)(images(1, 8)).shape == (2, 10)
