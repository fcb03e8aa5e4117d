"""CCT computes what its authors' program computes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import cct, create_model, load_pretrained
from vit_pytorch.cct import CCT, ConvTokenizer, SequencePool, Window
from vit_pytorch.pretrained import to_format

FORMAT = "Compact-Transformers"
SMALL = {
    "img_size": 32,
    "embedding_dim": 48,
    "n_conv_layers": 2,
    "kernel_size": 3,
    "stride": 1,
    "padding": 1,
    "num_layers": 3,
    "num_heads": 3,
    "mlp_ratio": 2.0,
    "num_classes": 7,
}


def build(**changes: object) -> CCT:
    model = CCT(**{**SMALL, **changes})
    randomise(model)
    return model


def sine_table(tokens: int, dim: int) -> Tensor:
    """The authors' formula, an entry at a time."""
    table = torch.empty(1, tokens, dim)
    for place in range(tokens):
        for i in range(dim):
            angle = place / 10_000 ** (2 * (i // 2) / dim)
            table[0, place, i] = math.cos(angle) if i % 2 else math.sin(angle)
    return table


@torch.inference_mode()
def test_logits_equal_the_authors() -> None:
    config, weights, golden = read_golden("cct")
    config.update(channels=config.pop("n_input_channels"), drop_path=config.pop("stochastic_depth"))
    config.update(attn_dropout=config.pop("attention_dropout"))
    model = CCT(**config).eval()
    report = load_pretrained(model, weights)
    assert report.format == FORMAT
    assert [*report.kept, *report.dropped, *report.resized] == []
    features = model.forward_features(golden["input"])
    assert difference(model.forward_head(features, pre_logits=True), golden["features"]) < TOLERANCE
    assert difference(model(golden["input"]), golden["output"]) < TOLERANCE
    written = to_format(model, FORMAT)
    assert written.keys() == weights.keys()
    assert all(written[name].equal(tensor) for name, tensor in weights.items())


@torch.inference_mode()
def test_sine_positions_are_the_authors_and_stay_fixed() -> None:
    model = build(positional_embedding="sine")
    torch.testing.assert_close(model.positions.table_for((8, 8)), sine_table(64, 48), rtol=0, atol=1e-5)
    assert "positions.table" not in dict(model.named_parameters())
    learned = build(positional_embedding="learnable")
    learned.load_state_dict(model.state_dict(), strict=False)
    learned.positions.table.copy_(sine_table(64, 48))
    x = images(32, 32)
    assert difference(model(x), learned(x)) < TOLERANCE


def test_checkpoint_with_sine_positions_loads_and_goes_back() -> None:
    model, again = build(positional_embedding="sine"), CCT(**SMALL, positional_embedding="sine").eval()
    state = to_format(model, FORMAT)
    state["classifier.positional_emb"] = sine_table(64, 48)
    assert not load_pretrained(again, state).dropped
    x = images(32, 32)
    assert again(x).equal(model(x))
    state["classifier.positional_emb"] = torch.randn(1, 64, 48)
    with pytest.raises(ValueError, match="not the model's fixed sine and cosine table"):
        load_pretrained(again, state)


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["learnable", "sine", "none"])
@pytest.mark.parametrize("size", [(32, 20), (13, 30), (1, 1)])
def test_smaller_input_has_the_positions_of_its_places(positions: str, size: tuple[int, int]) -> None:
    model = build(positional_embedding=positions)
    grid = model.patch_embed.convs[0].weight.new_zeros(1, 3, *size)
    rows, columns = (-(-extent // 4) for extent in size)
    assert model.grid.fit(size) == (rows, columns)
    assert model.patch_embed(grid).shape == (1, rows * columns, 48)
    learned = build(img_size=size, positional_embedding="learnable")
    learned.load_state_dict({**model.state_dict(), "positions.table": learned.positions.table})
    table = torch.zeros(1, 64, 48) if model.positions is None else model.positions.table_for((8, 8))
    learned.positions.table.copy_(table.unflatten(1, (8, 8))[:, :rows, :columns].flatten(1, 2))
    x = images(*size)
    assert (model(x) - learned(x)).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({}, (10, 8)),
        ({"stride": 2, "pooling_stride": 1}, (10, 8)),
        ({"kernel_size": 5, "padding": 0, "pooling_kernel_size": 2, "pooling_padding": 0}, (6, 4)),
        ({"n_conv_layers": 3, "kernel_size": 7, "padding": 3}, (5, 4)),
        ({"n_conv_layers": 1, "kernel_size": 4, "stride": 3, "padding": 0}, (6, 5)),
    ],
)
def test_grid_is_what_the_convolutions_leave(options: dict[str, int], grid: tuple[int, int]) -> None:
    model = build(img_size=(38, 30), **options)
    assert model.grid.shape == grid
    assert model.forward_features(images(38, 30)).shape == (2, grid[0] * grid[1], 48)


def test_image_that_leaves_no_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image size \(4, 9\) leaves no token"):
        build(img_size=(4, 9), kernel_size=5, padding=0)
    model = build(kernel_size=5, padding=0)
    with pytest.raises(ValueError, match=r"image size \(32, 8\) leaves no token"):
        model(images(32, 8))


def test_cells_of_an_image_are_cut_where_they_divide_it() -> None:
    model = build()
    assert model.patchify(images(32, 24)).shape == (2, 48, 48)
    with pytest.raises(ValueError, match="must be a multiple"):
        model.patchify(images(32, 23))


@torch.inference_mode()
def test_sequence_pooling_is_a_weighted_mean() -> None:
    pool = SequencePool(5)
    randomise(pool)
    x = torch.randn(2, 6, 5)
    for sample, pooled in zip(x, pool(x), strict=True):
        scores = [math.exp(torch.dot(token, pool.score.weight[0]).item()) for token in sample]
        want = sum(score / sum(scores) * token for score, token in zip(scores, sample, strict=True))
        torch.testing.assert_close(pooled, want)


def test_only_the_scores_bias_has_no_gradient() -> None:
    model = build().train()
    model(images(32, 32)).square().sum().backward()
    size = {name: parameter.grad.abs().max().item() for name, parameter in model.named_parameters()}
    assert [name for name in size if size[name] <= 1e-6 * max(size.values())] == ["sequence_pool.score.bias"]


@torch.inference_mode()
def test_tokenizer_takes_videos() -> None:
    """A window of one frame sees each frame as the tokenizer of images does."""
    flat = ConvTokenizer(
        3, 8, layers=2, conv=Window((3, 3), (1, 1), (1, 1)), pool=Window((3, 3), (2, 2), (1, 1))
    )
    deep = ConvTokenizer(
        3,
        8,
        layers=2,
        conv=Window((1, 3, 3), (1, 1, 1), (0, 1, 1)),
        pool=Window((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    )
    deep.load_state_dict({name: weight.unsqueeze(2) for name, weight in flat.state_dict().items()})
    video = torch.randn(2, 3, 4, 12, 20)
    frames = [flat(frame) for frame in video.unbind(2)]
    torch.testing.assert_close(deep(video), torch.cat(frames, dim=1))


def test_stochastic_depth_rises_linearly_to_a_tenth() -> None:
    blocks = cct.cct_7(img_size=32).blocks
    for layer, block in enumerate(blocks):
        assert getattr(block.drop_path, "p", 0) == pytest.approx(0.1 * layer / 6)
        assert block.attention.kernel.dropout == 0.1


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (5, 1, 2), (7, 2, 3), (1, 1, 1)])
def test_stride_and_padding_follow_from_the_kernel(kernel: int, stride: int, padding: int) -> None:
    conv = cct.cct_2(img_size=32, kernel_size=kernel).patch_embed.convs[0]
    assert (conv.stride, conv.padding) == ((stride, stride), (padding, padding))
    assert cct.cct_2(img_size=32, kernel_size=kernel, stride=4).patch_embed.convs[0].stride == (4, 4)


@pytest.mark.parametrize("layers", [2, 4, 6, 7, 8, 14, 16])
def test_sizes(layers: int) -> None:
    with torch.device("meta"):
        model = getattr(cct, f"cct_{layers}")(img_size=32, n_conv_layers=2)
    assert len(model.blocks) == layers
    assert model.positions.table.requires_grad
    assert [conv.out_channels for conv in model.patch_embed.convs] == [64, model.num_features]
    assert model.blocks[0].attention.to_qkv.bias is None


def test_named_models_positions() -> None:
    """The authors' function for this name builds a learned table in spite of it."""
    model = create_model("cct_7_3x1_32_sine")
    assert model.config["positional_embedding"] == "sine"
    assert "positions.table" not in model.state_dict()


def test_wrong_options_are_refused() -> None:
    for options, words in (
        ({"num_heads": 5}, "multiple of heads, got dim=48 and heads=5"),
        ({"positional_embedding": "sincos"}, "learnable, sine, none; got 'sincos'"),
        ({"n_conv_layers": 0}, r"n_conv_layers must be .*, got 0"),
        ({"stride": 0}, r"stride must be .*, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            build(**options)


def test_pooling_cannot_change() -> None:
    with pytest.raises(ValueError, match="pooling cannot change from 'seq' to 'mean'"):
        build().reset_classifier(3, global_pool="avg")
