"""DeepViT computes what the authors' code computed, and its parts what the paper says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import ViT, create_model, list_models, load_pretrained
from vit_pytorch.deepvit import DeepViT, ReAttention
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry

SMALL = {
    "image_size": 32,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 36,
    "depth": 3,
    "heads": 4,
    "mlp_dim": 72,
    "dim_head": 9,
}
OFFICIAL = {
    "deepvit_S": 27_312_632,
    "deepvit_L": 58_883_708,
    "deepvit_L_384": 59_043_308,
    "deepvit_patch16_224_re_attn_16b": 24_426_664,
    "deepvit_patch16_224_re_attn_24b": 36_261_448,
    "deepvit_patch16_224_re_attn_32b": 48_096_232,
}


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    """What the authors' code computed with random weights."""
    return read_golden("deepvit")[2]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return read_golden("deepvit")[1]


def build(**overrides: Any) -> DeepViT:
    facts, _, _ = read_golden("deepvit")
    dim_head = facts["embed_dim"] // facts["num_heads"]
    transforms = facts["apply_transform"]
    assert transforms == sorted(transforms)
    arguments = {
        "image_size": facts["img_size"],
        "patch_size": facts["patch_size"],
        "num_classes": facts["num_classes"],
        "dim": facts["embed_dim"],
        "depth": len(facts["depth"]),
        "heads": facts["num_heads"],
        "mlp_dim": facts["embed_dim"] * facts["mlp_ratio"],
        "dim_head": dim_head,
        "reattn_layers": sum(transforms),
        "reattn_scale": dim_head**-0.5 if facts["transform_scale"] else 1.0,
        "scale_adjustment": facts["scale_adjustment"],
        "stem": "conv" if facts["use_cnn_embed"] else "linear",
    }
    return DeepViT(**{**arguments, **overrides}).eval()


@torch.inference_mode()
def test_logits_equal_the_official_ones(stored: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    model = build()
    report = load_pretrained(model, state, strict=True)
    assert (report.dropped, report.kept) == ((), ())
    features = model.forward_features(stored["input"])
    assert difference(features[:, 0], stored["features"]) < TOLERANCE
    assert difference(model(stored["input"]), stored["output"]) < TOLERANCE


def test_weights_go_back_to_the_official_format(state: dict[str, Tensor]) -> None:
    model = build()
    load_pretrained(model, state)
    written = to_format(model, "DeepViT")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)


def test_linear_stem_goes_to_the_official_format_and_back() -> None:
    model = randomise(DeepViT(**SMALL))
    written = to_format(model, "DeepViT")
    assert written["patch_embed.proj.weight"].shape == (36, 3, 8, 8)
    again = DeepViT(**SMALL).eval()
    load_pretrained(again, {f"module.{name}": tensor for name, tensor in written.items()}, strict=True)
    x = images(32, 32)
    assert again(x).equal(model(x))


def test_positions_of_another_size_are_interpolated(state: dict[str, Tensor]) -> None:
    model = build(image_size=(32, 48))
    report = load_pretrained(model, state)
    assert report.resized == {"positions.table": ((4, 4), (4, 6))}
    assert model(images(16, 40)).shape == (2, 10)


@pytest.mark.parametrize("name", list_models("deepvit_*"))
def test_parameter_count_is_the_official_one(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == OFFICIAL[name] == find_entry(name).parameters


def test_every_official_model_is_there() -> None:
    assert set(list_models("deepvit_*")) == OFFICIAL.keys()


@pytest.mark.parametrize(("name", "last"), [("deepvit_S", 5), ("deepvit_L", 12)])
def test_the_last_layers_re_attend(name: str, last: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    kinds = [isinstance(block.attention.kernel, ReAttention) for block in model.blocks]
    assert kinds == [False] * (len(kinds) - last) + [True] * last
    gains = {block.attention.kernel.gain for block in model.blocks[-last:]}
    assert gains == {33**-0.5 if name == "deepvit_S" else 1.0}


def test_all_layers_re_attend_unless_told() -> None:
    blocks = DeepViT(**SMALL).blocks
    assert all(isinstance(block.attention.kernel, ReAttention) for block in blocks)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_re_attention_equals_loops(training: bool) -> None:
    """Heads mix with a bias; a head's maps are normalised over samples, queries and keys, not over heads."""
    kernel = randomise(ReAttention(3, gain=0.7))
    kernel.norm.running_mean.normal_()
    kernel.norm.running_var.uniform_(0.5, 1.5)
    mean, variance = kernel.norm.running_mean.clone(), kernel.norm.running_var.clone()
    q, k, v = torch.randn(3, 2, 3, 5, 4)
    mixed = kernel.train(training)(q, k, v)

    maps = torch.empty(2, 3, 5, 5)
    for b in range(2):
        for h in range(3):
            for i in range(5):
                scores = torch.stack([q[b, h, i] @ k[b, h, j] / 2 for j in range(5)])
                maps[b, h, i] = scores.exp() / scores.exp().sum()
    theta, bias = kernel.mix.weight, kernel.mix.bias
    wanted = torch.empty(2, 3, 5, 4)
    for h in range(3):
        one = sum(theta[h, g] * maps[:, g] for g in range(3)) + bias[h]
        if training:
            mean[h], variance[h] = one.mean(), one.var(unbiased=False)
        one = (one - mean[h]) / (variance[h] + 1e-5).sqrt() * kernel.norm.weight[h] + kernel.norm.bias[h]
        for b in range(2):
            wanted[b, h] = 0.7 * one[b] @ v[b, h]
    assert difference(mixed, wanted) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_residuals_are_adjusted_in_every_block(scale: float) -> None:
    """x + branch(norm(s x)) / s; the epsilon is large enough to see what it is added to."""
    model = randomise(DeepViT(**SMALL, scale_adjustment=scale, reattn_layers=1, norm_eps=0.1))
    x = torch.randn(2, 5, 36)
    for block in model.blocks:
        wanted = x
        for norm, branch in ((block.norm1, block.attention), (block.norm2, block.feedforward)):
            normed = F.layer_norm(wanted * scale, (36,), norm.weight, norm.bias, 0.1)
            wanted = wanted + branch(normed) / scale
        assert difference(block(x), wanted) < TOLERANCE


@torch.inference_mode()
def test_without_re_attention_it_is_the_plain_model() -> None:
    """No norms around the patch projection, biases everywhere, epsilon 1e-6, as the plain ViT."""
    sizes = {**SMALL, "image_size": 48}
    model = randomise(DeepViT(**sizes, reattn_layers=0))
    plain = ViT(**sizes).eval()
    plain.load_state_dict(model.state_dict(), strict=True)
    x = images(48, 48)
    assert difference(model(x), plain(x)) < TOLERANCE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reattn_layers": 4}, r"reattn_layers must be in \[0, 3\], got 4"),
        ({"reattn_layers": -1}, r"reattn_layers must be .*, got -1"),
        ({"scale_adjustment": 0.0}, r"scale_adjustment must be .*, got 0\.0"),
        ({"stem": "cnn"}, "stem must be one of linear, conv; got 'cnn'"),
        ({"pool": "map"}, "pool must be one of cls, mean; got 'map'"),
        ({"stem": "conv", "patch_size": 1}, r"needs an even patch, got \(1, 1\)"),
    ],
)
def test_wrong_options(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepViT(**{**SMALL, **change})
