"""T2T-ViT computes what the authors' code computed, and its parts what the paper says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.layers.positions import SinCosPositions
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry
from vit_pytorch.t2t import RandomFeatures, SoftSplit, T2TViT

TYPES = ["transformer", "performer"]
SMALL = {"dim": 48, "image_size": 64, "depth": 2, "heads": 3, "mlp_dim": 96, "num_classes": 7}
# All parameters of the official models, with 1000 classes; fixed tables count there.
OFFICIAL = {
    "t2t_vit_7": 4_310_222,
    "t2t_vit_10": 5_889_230,
    "t2t_vit_12": 6_941_902,
    "t2t_vit_14": 21_545_550,
    "t2t_vit_19": 39_177_422,
    "t2t_vit_24": 64_105_934,
    "t2t_vit_t_14": 21_541_070,
    "t2t_vit_t_19": 39_172_942,
    "t2t_vit_t_24": 64_101_454,
    "t2t_vit_14_resnext": 21_545_550,
    "t2t_vit_14_wide": 25_156_302,
}


class Stored:
    """What the authors' code computed with random weights."""

    def __init__(self, tokens_type: str) -> None:
        self.facts, self.state, self.tensors = read_golden(f"t2t_vit_{tokens_type}")

    def build(self, **overrides: Any) -> T2TViT:
        facts = self.facts
        arguments = {
            "dim": facts["embed_dim"],
            "image_size": facts["img_size"],
            "depth": facts["depth"],
            "heads": facts["num_heads"],
            "mlp_dim": int(facts["embed_dim"] * facts["mlp_ratio"]),
            "num_classes": facts["num_classes"],
            "token_dim": facts["token_dim"],
            "tokens_type": facts["tokens_type"],
            "dim_head": facts["embed_dim"] // facts["num_heads"],
            "qk_scale": facts["qk_scale"],
        }
        return T2TViT(**{**arguments, **overrides}).eval()


@pytest.fixture(params=TYPES)
def stored(request: pytest.FixtureRequest) -> Stored:
    return Stored(request.param)


@torch.inference_mode()
def test_logits_equal_the_official_ones(stored: Stored) -> None:
    model = stored.build()
    report = load_pretrained(model, stored.state, strict=True)
    assert (report.dropped, report.kept) == ((), ())
    features = model.forward_features(stored.tensors["input"])
    assert difference(features[:, 0], stored.tensors["features"]) < TOLERANCE
    assert difference(model(stored.tensors["input"]), stored.tensors["output"]) < TOLERANCE


def test_weights_go_back_to_the_official_format(stored: Stored) -> None:
    model = stored.build()
    load_pretrained(model, stored.state)
    written = to_format(model, f"T2T-ViT {stored.facts['tokens_type']}")
    assert written.keys() == stored.state.keys()
    assert all(torch.equal(written[name], stored.state[name]) for name in written)


def test_a_parallel_run_is_read(stored: Stored) -> None:
    model = stored.build()
    load_pretrained(model, {f"module.{name}": tensor for name, tensor in stored.state.items()}, strict=True)
    torch.testing.assert_close(model.head.weight, stored.state["head.weight"])


def test_the_other_kind_of_tokens_is_refused(stored: Stored) -> None:
    (other,) = set(TYPES) - {stored.facts["tokens_type"]}
    with pytest.raises(ValueError, match="does not fit T2TViT"):
        load_pretrained(stored.build(tokens_type=other), stored.state)


def test_backbone_scale_is_the_heads_or_told() -> None:
    stored = Stored("performer")
    model = stored.build(qk_scale=None)
    load_pretrained(model, stored.state)
    with torch.inference_mode():
        assert (model(stored.tensors["input"]) - stored.tensors["output"]).abs().max() > 0.1
        model.blocks[0].attention.kernel.scale = None
        same = stored.build(qk_scale=16**-0.5)
        load_pretrained(same, stored.state)
        assert difference(model(stored.tensors["input"]), same(stored.tensors["input"])) < TOLERANCE


@pytest.mark.parametrize("name", list_models("t2t_vit_*"))
def test_parameter_count_is_the_official_one(name: str) -> None:
    """The official code counts its fixed tables: positions, and the performers' directions."""
    with torch.device("meta"):
        model = create_model(name)
    fixed = sum(buffer.numel() for buffer in model.buffers())
    trained = sum(parameter.numel() for parameter in model.parameters())
    assert trained == find_entry(name).parameters
    assert trained + fixed == OFFICIAL[name]
    assert fixed == 197 * model.num_features + (0 if "_t_" in name else 2 * 32 * 64)


def test_every_official_model_is_there() -> None:
    assert set(list_models("t2t_vit_*")) == OFFICIAL.keys()


@pytest.mark.parametrize(("kernel", "stride"), [(7, 4), (3, 2), (3, 1), (4, 2), (2, 2), (5, 3)])
def test_soft_split_is_an_unfolding(kernel: int, stride: int) -> None:
    split = SoftSplit(kernel, stride)
    x = torch.randn(2, 5, 12, 24)
    windows = split.unfold(x.permute(0, 2, 3, 1))
    assert windows.shape == (2, 12 // stride, 24 // stride, 5 * kernel**2)
    whole = F.unfold(F.pad(x, 4 * (split.padding,)), kernel, stride=stride).transpose(1, 2)
    assert windows.flatten(1, 2).equal(whole)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 3), (2, 1), (3, 0)])
def test_soft_split_refuses_windows_that_do_not_cover(kernel: int, stride: int) -> None:
    with pytest.raises(ValueError, match=f"got kernel {kernel} and stride {stride}"):
        SoftSplit(kernel, stride)


def official_tokens(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The token transformers on maps that need not be square, from official weights, step by step."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    for layer, (kernel, stride, padding) in enumerate([(7, 4, 2), (3, 2, 1)], start=1):
        rows, columns = x.shape[2] // stride, x.shape[3] // stride
        x = F.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2)
        block = f"tokens_to_token.attention{layer}"
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=-1)
        weights = (q @ k.transpose(1, 2) / math.sqrt(x.shape[-1])).softmax(dim=-1)
        x = v + linear(weights @ v, f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        x = x.transpose(1, 2).unflatten(2, (rows, columns))
    return linear(F.unfold(x, 3, stride=2, padding=1).transpose(1, 2), "tokens_to_token.project")


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 64), (64, 96), (32, 48)])
def test_tokens_of_rectangles(size: tuple[int, int]) -> None:
    stored = Stored("transformer")
    model = stored.build(image_size=(64, 96))
    load_pretrained(model, stored.state)
    x = images(*size)
    tokens = model.patch_embed(x)
    assert tokens.shape[1] == size[0] // 16 * (size[1] // 16)
    assert difference(tokens, official_tokens(stored.state, x)) < TOLERANCE


def test_tokens_are_narrow() -> None:
    model = create_model("t2t_vit_t_14")
    assert [tuple(block.to_qkv.weight.shape) for block in model.patch_embed.blocks] == [
        (192, 147),
        (192, 576),
    ]
    assert [block.kernel.scale for block in model.patch_embed.blocks] == [147**-0.5, 576**-0.5]
    assert model.patch_embed.blocks[0].to_qkv.bias is None
    assert model.blocks[0].attention.to_qkv.bias is None


@torch.inference_mode()
def test_first_residual_of_a_token_block_adds_the_values() -> None:
    """Without branches a block passes its values on: no residual of what enters, no norm behind."""
    block = randomise(T2TViT(**SMALL, token_dim=16)).patch_embed.blocks[0]
    for linear in (block.to_out, block.feedforward.to_out):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    x = torch.randn(2, 9, 147)
    values = F.linear(block.norm1(x), block.to_qkv.weight[-16:])
    assert difference(block(x), values) < TOLERANCE


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_positions_are_those_of_the_sequence(grid: tuple[int, int]) -> None:
    table = SinCosPositions(grid, 12, prefix=1, sequence=True).table
    for place in range(1 + math.prod(grid)):
        for i in range(6):
            angle = place / 10_000 ** (2 * i / 12)
            assert table[0, place, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[0, place, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_positions_are_fixed_and_a_smaller_input_keeps_its_places() -> None:
    model = T2TViT(**SMALL)
    assert "positions.table" not in dict(model.named_parameters())
    assert model.no_weight_decay() == {"prefix.class_token"}
    nn.init.zeros_(model.prefix.class_token)
    nn.init.zeros_(model.patch_embed.proj.weight)
    table = SinCosPositions((4, 4), 48, prefix=1, sequence=True).table[0]
    tokens = model.embed(images(32, 48))[0]
    places = [0, *(1 + 4 * row + column for row in range(2) for column in range(3))]
    assert torch.equal(tokens, table[places])


def test_a_checkpoint_of_another_size_loads(stored: Stored) -> None:
    model = stored.build(image_size=96)
    report = load_pretrained(model, stored.state)
    assert not report.resized
    assert model(images(96, 96)).shape == (2, 10)


def test_other_positions_are_refused(stored: Stored) -> None:
    for row in (0, 5):
        state = dict(stored.state)
        state["pos_embed"] = state["pos_embed"].clone()
        state["pos_embed"][:, row] += 0.01
        with pytest.raises(ValueError, match="not the model's fixed sine and cosine table"):
            load_pretrained(stored.build(), state)


def test_performer_equals_loops() -> None:
    kernel = RandomFeatures(6, 3)
    q, k, v = (0.5 * torch.randn(1, 1, 5, 6) for _ in range(3))
    mixed = kernel(q, k, v)

    def features(x: Tensor) -> list[float]:
        length = sum(entry**2 for entry in x.tolist())
        rows = kernel.directions.tolist()
        dots = [sum(a * b for a, b in zip(row, x.tolist(), strict=True)) for row in rows]
        return [math.exp(dot - length / 2) / math.sqrt(3) for dot in dots]

    for i in range(5):
        weights = [
            sum(a * b for a, b in zip(features(q[0, 0, i]), features(k[0, 0, j]), strict=True))
            for j in range(5)
        ]
        for column in range(6):
            total = sum(weight * v[0, 0, j, column].item() for j, weight in enumerate(weights))
            assert mixed[0, 0, i, column].item() == pytest.approx(total / (sum(weights) + 1e-8), abs=1e-5)


def test_many_features_approximate_softmax() -> None:
    q, k = 0.2 * torch.randn(2, 1, 1, 20, 8)
    wanted = (q @ k.mT).softmax(dim=-1)
    weights = RandomFeatures(8, 10_000)(q, k, torch.eye(20)[None, None])
    assert (weights - wanted).abs().max() < 0.2 * (wanted - 1 / 20).abs().max()


def test_directions_are_orthogonal_and_saved() -> None:
    model = T2TViT(**SMALL, token_dim=16, tokens_type="performer")
    directions = model.state_dict()["patch_embed.blocks.1.kernel.directions"]
    torch.testing.assert_close(directions @ directions.mT, 8 * torch.eye(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 72}, "must be a multiple of patch size"),
        ({"tokens_type": "linear"}, "tokens_type must be one of transformer, performer; got 'linear'"),
        ({"pool": "map"}, "pool must be one of cls, mean; got 'map'"),
        ({"t2t_layers": ()}, r"t2t_layers must be .*, got \(\)"),
        ({"tokens_type": "performer", "kernel_ratio": 0.01}, "at least 1 random feature, got 0"),
    ],
)
def test_wrong_options(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        T2TViT(**{**SMALL, **change})


def test_token_dropout_is_off_in_eval() -> None:
    model = T2TViT(**SMALL, token_dim=16, token_dropout=0.5)
    x = images(64, 64)
    assert not model(x).equal(model(x))
    model.eval()
    assert model(x).equal(model(x))
