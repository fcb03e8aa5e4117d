"""CrossFormer computes what the authors' code computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.papers.golden import as_golden, assert_goes_back, assert_golden, read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.crossformer import CrossFormer, CrossScaleEmbedding, LongShortAttention
from vit_pytorch.layers.attention import Attention
from vit_pytorch.layers.relative import DynamicBias
from vit_pytorch.layers.windows import dilated
from vit_pytorch.registry import find_entry

GOLDEN: dict[str, Any] = {
    "num_classes": 10,
    "dim": (48, 96),
    "depth": (2, 2),
    "global_window_size": (2, 1),
    "local_window_size": (4, 8),
    "image_size": 64,
    "cross_embed_kernel_sizes": ((4, 8, 16, 32), (2, 4)),
    "cross_embed_strides": (4, 2),
    "heads": (2, 4),
    "mlp_ratio": 3,
}
SIZES = ("72x72", "40x72", "96x56")


def make_golden() -> tuple[CrossFormer, dict[str, Tensor], dict[str, Tensor]]:
    """Ours with the authors' weights; these weights; and what the authors' code computed."""
    model = CrossFormer(**GOLDEN)
    return model, *as_golden(model, "crossformer")


def test_equals_the_authors() -> None:
    model, weights, tensors = make_golden()
    assert_goes_back(model, "crossformer", weights)
    assert_golden(model, tensors)


@torch.inference_mode()
@pytest.mark.parametrize("size", SIZES)
def test_logits_at_other_sizes_equal_the_authors(size: str) -> None:
    """Maps of 18 and 9 cells a side, of 10 x 18 and 5 x 9, of 24 x 14 and 12 x 7, in groups of 4 and 8."""
    model, _, _ = make_golden()
    _, _, tensors = read_golden("crossformer_sizes")
    assert difference(model(tensors[f"input.{size}"]), tensors[f"output.{size}"]) < TOLERANCE


def test_buffers_of_earlier_releases_are_left_out() -> None:
    _, weights, _ = make_golden()
    buffers = {
        "layers.0.blocks.0.attn.biases": torch.zeros(49, 2),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16),
        "layers.0.blocks.1.attn_mask": torch.zeros(9, 16, 16),
    }
    report = load_pretrained(CrossFormer(**GOLDEN), {**weights, **buffers}, strict=True)
    assert set(report.dropped) == set(buffers)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("crossformer_tiny_patch4_group7_224", 27_776_794),
        ("crossformer_small_patch4_group7_224", 30_657_394),
        ("crossformer_base_patch4_group7_224", 51_971_554),
        ("crossformer_large_patch4_group7_224", 91_971_184),
    ],
)
def test_parameter_count_is_that_of_the_authors_code(name: str, parameters: int) -> None:
    assert find_entry(name).parameters == parameters
    assert name in list_models("crossformer_*")


@torch.inference_mode()
def test_maps_and_strides() -> None:
    model = create_model("crossformer_tiny_patch4_group7_224", depth=(1, 1, 1, 1)).eval()
    maps = model.forward_intermediates(images(224, 224, batch=1), intermediates_only=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
    assert [i["reduction"] for i in model.feature_info] == [4, 8, 16, 32]


# Independent computations, and what other programs get wrong.


def attend_one_by_one(module: LongShortAttention, x: Tensor, same_group: Any, step: int = 1) -> Tensor:
    """Let each cell attend to those of its group, `step` cells apart, with the bias of each offset computed.

    Neighbours in a group are one apart for the bias, near or far.
    """
    q, k, v = module.attention.project(x.flatten(1, 2))
    height, width = x.shape[1:3]
    places = [(row, column) for row in range(height) for column in range(width)]
    mixed = torch.empty_like(q)
    for i, here in enumerate(places):
        others = [j for j, there in enumerate(places) if same_group(here, there)]
        offsets = torch.tensor([[here[0] - places[j][0], here[1] - places[j][1]] for j in others])
        bias = module.bias.embed(offsets / step)
        for layer in module.bias.layers:
            bias = layer(bias)
        scores = (q[:, :, i : i + 1] * k[:, :, others]).sum(-1) * q.shape[-1] ** -0.5 + bias.T
        mixed[:, :, i] = (scores.softmax(-1)[..., None] * v[:, :, others]).sum(2)
    return module.attention.merge(mixed).unflatten(1, (height, width))


def near(here: tuple[int, int], there: tuple[int, int]) -> bool:
    return all(a // 3 == b // 3 for a, b in zip(here, there, strict=True))


def far(here: tuple[int, int], there: tuple[int, int]) -> bool:
    """In groups of 3 x 3 with the interval 2: the same square of 6, and the same place modulo 2."""
    return all(a // 6 == b // 6 and a % 2 == b % 2 for a, b in zip(here, there, strict=True))


@torch.inference_mode()
@pytest.mark.parametrize(("layer", "same_group"), [(0, near), (1, far)])
@pytest.mark.parametrize("grid", [(6, 12), (7, 5)])
def test_who_attends_to_whom(layer: int, same_group: Any, grid: tuple[int, int]) -> None:
    """Even blocks attend to near cells, odd ones to far; padding is not seen."""
    model = randomise(CrossFormer(**{**GOLDEN, "local_window_size": 3}))
    module = model.stages[0].blocks[layer].attention
    x = torch.randn(2, *grid, 48)
    assert difference(module(x), attend_one_by_one(module, x, same_group, layer + 1)) < TOLERANCE


@torch.inference_mode()
def test_a_small_map_is_one_group() -> None:
    model = randomise(CrossFormer(**GOLDEN))
    for layer in (0, 1):
        module = model.stages[1].blocks[layer].attention
        x = torch.randn(2, 3, 9, 96)
        assert difference(module(x), attend_one_by_one(module, x, lambda *_: True)) < TOLERANCE


def test_the_bias_differs_from_head_to_head_and_has_a_sixteenth_of_the_width() -> None:
    model = randomise(CrossFormer(num_classes=5, depth=(1, 1, 1, 1), dim=(64, 128, 256, 512)))
    biases = [module for module in model.modules() if isinstance(module, DynamicBias)]
    assert [bias.embed.out_features for bias in biases] == [4, 8, 16, 32]
    assert [bias().shape for bias in biases] == [(heads, 49, 49) for heads in (2, 4, 8, 16)]
    assert not biases[0]()[0].allclose(biases[0]()[1])
    # 13 x 13 offsets, of which none passes for another.
    assert biases[0]()[0].unique().numel() > 100


def test_depth_counts_blocks_and_intervals_are_those_of_the_paper() -> None:
    model = CrossFormer(num_classes=5, depth=(2, 2, 8, 2), dim=(32, 32, 64, 64))
    blocks = [stage.blocks for stage in model.stages]
    assert [len(each) for each in blocks] == [2, 2, 8, 2]
    partitions = [each[1].attention.partition for each in blocks]
    assert partitions == [dilated((7, 7), (i, i)) for i in (8, 4, 2, 1)]


def test_norms_stand_behind_the_embedding_and_before_merging_and_at_the_end() -> None:
    model = CrossFormer(**GOLDEN)
    assert [type(part) for part in model.stages[0].down][:2] == [CrossScaleEmbedding, nn.LayerNorm]
    assert [type(part) for part in model.stages[1].down] == [nn.LayerNorm, CrossScaleEmbedding]
    assert isinstance(model.norm, nn.LayerNorm)
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}


def test_smaller_kernels_have_more_channels() -> None:
    embed = CrossScaleEmbedding(3, 64, kernel_sizes=(4, 8, 16, 32), stride=4)
    assert [conv.out_channels for conv in embed.convs] == [32, 16, 8, 8]
    assert embed(torch.randn(2, 16, 24, 3)).shape == (2, 4, 6, 64)
    x = torch.zeros(1, 32, 32, 3)
    x[:, 14:18, 14:18] = 1
    seen = (embed(x) - embed(torch.zeros_like(x))).abs().amax(dim=(0, 3)) > 0
    assert seen.all()


def test_every_block_projects_with_biases() -> None:
    attentions = [module for module in CrossFormer(**GOLDEN).modules() if isinstance(module, Attention)]
    assert len(attentions) == 4
    assert all(a.to_qkv.bias is not None and a.to_out.bias is not None for a in attentions)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": (2, 2, 2)}, r"depth must be one for each of 2 stages, got \(2, 2, 2\)"),
        ({"heads": (5, 4)}, r"dims must be multiples of heads, got \(48, 96\) and \(5, 4\)"),
        ({"heads": None}, r"dims must be multiples of 32, the head dimension, got \(48, 96\)"),
        ({"heads": (2, 4, 8)}, r"heads must be one for each of 2 stages, got \(2, 4, 8\)"),
        ({"dim": (44, 96)}, "4 kernels need a multiple of 8 channels, got 44"),
        (
            {"cross_embed_strides": (4, 3), "image_size": 60},
            r"exceed their stride by even numbers, got \(2, 4\) and 3",
        ),
        (
            {"local_window_size": (7, 7, 7)},
            "local_window_size must be one number or one for each of 2 stages",
        ),
        ({"image_size": 100}, r"image size must be a multiple of \(8, 8\), got \(100, 100\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossFormer(**{**GOLDEN, **wrong})
