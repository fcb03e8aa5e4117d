"""XCiT computes what timm's Xcit computes, where timm itself follows the authors' code."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from timm.models.xcit import Xcit, checkpoint_filter_fn
from torch import Tensor, nn

from tests.papers.family import Family, Named
from tests.papers.reference import TOLERANCE, difference, images, randomise, shapes_only
from vit_pytorch import list_models, load_pretrained
from vit_pytorch.layers.attention import BlockInputs, CrossCovariance
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.layers.positions import FourierPositions
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry
from vit_pytorch.xcit import LocalPatchInteraction, XCiT

SMALL = {"image_size": 48, "patch_size": 8, "num_classes": 7, "dim": 48, "depth": 3, "heads": 3}
OURS = {**SMALL, "cls_depth": 2, "mlp_dim": 192}
THEIRS = {"img_size": 48, "patch_size": 8, "num_classes": 7, "embed_dim": 48, "depth": 3, "num_heads": 3}

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tokens_norm": ({}, {"tokens_norm": True}),
    "class token's norm": ({"tokens_norm": False}, {}),
    "no positions": ({"positions": "none"}, {"tokens_norm": True, "use_pos_embed": False}),
    "no qkv bias": ({"qkv_bias": False}, {"tokens_norm": True, "qkv_bias": False}),
    "not square": ({"image_size": (32, 72)}, {"tokens_norm": True, "img_size": (32, 72)}),
    "patches of 16": (
        {"patch_size": 16, "image_size": 80, "dim": 64, "heads": 4, "mlp_dim": 256},
        {"patch_size": 16, "img_size": 80, "embed_dim": 64, "num_heads": 4, "tokens_norm": True},
    ),
    "one class block": ({"cls_depth": 1}, {"tokens_norm": True, "cls_attn_layers": 1}),
    "no head": ({"num_classes": 0}, {"tokens_norm": True, "num_classes": 0}),
}


def shortened(name: str, depth: int) -> Named:
    return Named(name, {"depth": depth}, {"depth": depth})


FAMILY = Family(
    XCiT,
    Xcit,
    OURS,
    THEIRS,
    OPTIONS,
    module="xcit",
    named=[
        Named("xcit_nano_12_p16_224"),
        shortened("xcit_tiny_24_p8_224", 2),
        shortened("xcit_small_12_p16_384", 2),
        shortened("xcit_medium_24_p16_224", 1),
        shortened("xcit_large_24_p8_224", 1),
    ],
    maps=("not square",),
    norms=[(False, False), (True, True)],
    trained=("tokens_norm",),
)


@pytest.fixture
def model() -> XCiT:
    net = XCiT(**OURS)
    randomise(net)
    return net


def test_intermediates_have_no_prefix_yet(model: XCiT) -> None:
    x = images(48, 48)
    for (tokens, prefix), same in zip(
        model.forward_intermediates(x, return_prefix_tokens=True, intermediates_only=True),
        model.forward_intermediates(x, intermediates_only=True),
        strict=True,
    ):
        assert tokens.equal(same)
        assert prefix.shape == (2, 0, 48)


def test_gradients_equal_timms_in_training() -> None:
    model, reference = FAMILY.pair("tokens_norm")
    x = images(48, 48, batch=3)
    for net in (model, reference):
        net.train()(x).square().sum().backward()
    gradient = model.patch_embed.convs[0].weight.grad
    assert difference(gradient, reference.patch_embed.proj[0][0].weight.grad) < 1e-4 * gradient.abs().max()
    ours = model.blocks[0].local.norm
    theirs = reference.blocks[0].local_mp.bn
    assert difference(ours.running_var, theirs.running_var) < TOLERANCE


@torch.inference_mode()
def test_smaller_image_equals_timms() -> None:
    """Places are relative to the input's extent: an input of another size needs no other model."""
    model, reference = FAMILY.pair("tokens_norm")
    x = images(24, 40)
    assert difference(model(x), reference(x)) < TOLERANCE


@pytest.mark.parametrize("name", list_models("xcit_*"))
def test_options_of_named_models_are_timms(name: str) -> None:
    entry = find_entry(name)
    with shapes_only():
        reference = timm.create_model(name)
    assert len(reference.blocks) == entry.config["depth"]
    assert entry.config["eta"] == (1.0 if entry.config["depth"] == 12 else 1e-5)
    assert entry.config.get("tokens_norm", True) == reference.cls_attn_blocks[0].tokens_norm


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("xcit_nano_12_p16_224", 3_053_224),
        ("xcit_tiny_12_p16_224", 6_716_272),
        ("xcit_small_12_p16_224", 26_253_304),
        ("xcit_tiny_24_p16_224", 12_116_896),
        ("xcit_small_24_p16_224", 47_671_384),
    ],
)
def test_parameter_count_is_the_published_one(name: str, parameters: int) -> None:
    assert find_entry(name).parameters == parameters


@pytest.mark.parametrize("option", ["tokens_norm", "no qkv bias"])
def test_authors_names(option: str) -> None:
    """The authors' files have one projection in class attention; timm's own reader translates them, too."""
    model, reference = FAMILY.pair(option)
    state = dict(reference.state_dict())
    bias = option == "tokens_norm"
    for layer in range(2):
        for p in ("weight", "bias") if bias else ("weight",):
            parts = [state.pop(f"cls_attn_blocks.{layer}.attn.{x}.{p}") for x in "qkv"]
            state[f"cls_attn_blocks.{layer}.attn.qkv.{p}"] = torch.cat(parts)
    state = {name.replace("pos_embed.", "pos_embeder."): tensor for name, tensor in state.items()}
    again = XCiT(**OURS, qkv_bias=bias)
    assert load_pretrained(again, state).format == "xcit"
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in again.state_dict().items())
    written = to_format(again, "xcit")
    assert written.keys() == state.keys()
    assert all(written[name].equal(tensor) for name, tensor in state.items())
    reference.load_state_dict(checkpoint_filter_fn(written, reference), strict=True)


def test_authors_projection_of_a_wrong_shape_is_refused(model: XCiT) -> None:
    state = to_format(model, "xcit")
    name = "cls_attn_blocks.0.attn.qkv.weight"
    state[name] = state[name][:-3]
    with pytest.raises(ValueError, match=r"class_blocks\.0\.attention\.to_q\.weight expects"):
        load_pretrained(model, state)


def test_groups_by_depth_are_timms() -> None:
    def layers(net: nn.Module) -> list[tuple[int, int]]:
        groups = group_parameters(net, net.group_matcher())
        sizes = dict(net.named_parameters())
        return sorted((i, sizes[name].numel()) for i, names in groups.items() for name in names)

    model, reference = FAMILY.pair("no qkv bias")
    ours, theirs = layers(model), layers(reference)
    # Keys and values are one parameter here, two in timm.
    assert sum(size for _, size in ours) == sum(size for _, size in theirs)
    assert {i: sum(s for j, s in ours if i == j) for i, _ in ours} == {
        i: sum(s for j, s in theirs if i == j) for i, _ in theirs
    }


# What other programs get wrong.


def test_one_eta_for_all_layers() -> None:
    deep = XCiT(**{**OURS, "depth": 24}, eta=1e-5)
    found = {name: p for name, p in deep.named_parameters() if name.endswith("gamma")}
    assert len(found) == 3 * 24 + 2 * 2
    assert all((gamma == 1e-5).all() for gamma in found.values())


def test_cross_covariance_in_plain_loops() -> None:
    """Channels attend to channels; the temperature multiplies as it is and starts at 1."""
    kernel = CrossCovariance(2)
    assert kernel.temperature.eq(1).all()
    nn.init.uniform_(kernel.temperature, 0.5, 3.0)
    q, k, v = torch.randn(3, 1, 2, 5, 4).unbind(0)
    found = kernel(q, k, v)
    for head in range(2):
        for i in range(4):
            scores = torch.tensor(
                [
                    F.cosine_similarity(q[0, head, :, i], k[0, head, :, j], dim=0).item()
                    * kernel.temperature[head].item()
                    for j in range(4)
                ]
            )
            want = sum(w * v[0, head, :, j] for j, w in enumerate(scores.softmax(0)))
            torch.testing.assert_close(found[0, head, :, i], want)


def test_cross_covariance_does_not_depend_on_the_order_of_tokens() -> None:
    kernel = CrossCovariance(2)
    q, k, v = torch.randn(3, 1, 2, 6, 4).unbind(0)
    order = torch.randperm(6)
    torch.testing.assert_close(kernel(*(x[:, :, order] for x in (q, k, v))), kernel(q, k, v)[:, :, order])


def test_local_interaction_is_convolution_gelu_norm_convolution() -> None:
    local = LocalPatchInteraction(6, 3)
    randomise(local)
    x = torch.randn(2, 20, 6)
    map_ = x.transpose(1, 2).reshape(2, 6, 4, 5)
    map_ = F.gelu(F.conv2d(map_, local.conv_in.weight, local.conv_in.bias, padding=1, groups=6))
    bn = local.norm
    map_ = F.batch_norm(map_, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    map_ = F.conv2d(map_, local.conv_out.weight, local.conv_out.bias, padding=1, groups=6)
    torch.testing.assert_close(local(x, (4, 5)), map_.flatten(2).transpose(1, 2))


def test_class_attention_sees_normed_patches_and_changes_them(model: XCiT) -> None:
    block = model.class_blocks[0]
    seen: list[Tensor] = []
    block.attention.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs))
    x = torch.randn(2, 10, 48)
    out = block(x)
    assert seen[0].equal(block.norm1(x)[:, :1])
    assert seen[1].equal(block.norm1(x))
    patches = x + block.scale1(block.norm1(x))
    torch.testing.assert_close(out[:, 1:], 2 * block.norm2(patches)[:, 1:])


def test_the_final_norm_comes_after_class_attention(model: XCiT) -> None:
    tokens = model.embed(images(48, 48))
    for block in model.blocks:
        tokens = block(tokens, BlockInputs((6, 6)))
    tokens = model.prefix(tokens)
    for block in model.class_blocks:
        tokens = block(tokens)
    assert model.forward_features(images(48, 48)).equal(model.norm(tokens))
    assert model.encode(model.embed(images(48, 48))).equal(model.norm(tokens))


def test_layer_dropout_drops_samples_in_training_only() -> None:
    model = XCiT(**OURS, layer_dropout=0.5)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, DropPath)}
    assert rates == {f"blocks.{i}.drop_path": 0.5 for i in range(3)}
    x = images(48, 48)
    torch.manual_seed(0)
    assert not model.train()(x).equal(model(x))
    assert model.eval()(x).equal(model(x))


def test_local_patch_kernel_size() -> None:
    model = XCiT(**OURS, local_patch_kernel_size=5)
    assert model.blocks[0].local.conv_in.weight.shape == (48, 1, 5, 5)
    assert model(images(48, 48)).shape == (2, 7)
    with pytest.raises(ValueError, match="must be odd, got 4"):
        XCiT(**OURS, local_patch_kernel_size=4)


@pytest.mark.parametrize(
    "options",
    [
        {"stem": "linear", "patch_size": 12},
        {"positions": "learned"},
        {"positions": "none", "qkv_bias": False},
        {"dim_head": 10},
    ],
    ids=str,
)
def test_options_train_and_save(options: dict[str, Any], tmp_path: Any) -> None:
    model = XCiT(**{**OURS, **options})
    x = images(48, 48, batch=3)
    (model(x) * torch.linspace(-1, 1, 21).view(3, 7)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    model.eval().save_pretrained(tmp_path)
    assert XCiT.from_pretrained(tmp_path)(x).equal(model(x))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 5}, "dim must be a multiple of heads, got dim=48 and heads=5"),
        ({"stem": "resnet"}, "stem must be one of conv, linear; got 'resnet'"),
        ({"positions": "rotary"}, "positions must be one of fourier, learned, none; got 'rotary'"),
        ({"patch_size": 12}, "power of two"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XCiT(**{**OURS, **wrong})


def test_other_poolings_are_refused(model: XCiT) -> None:
    model.reset_classifier(5, "token")
    with pytest.raises(ValueError, match="pooling cannot be 'mean'"):
        model.reset_classifier(5, "avg")


def test_positions_do_not_depend_on_the_largest_size() -> None:
    small, large = FourierPositions((4, 5), 24), FourierPositions((8, 9), 24)
    large.load_state_dict(small.state_dict())
    assert small.table_for((4, 5)).equal(large.table_for((4, 5)))
    tokens = torch.randn(2, 20, 24)
    assert large(tokens, grid=(4, 5)).equal(tokens + small.table_for((4, 5)))


def test_checkpoint_loads_at_another_resolution() -> None:
    model, _ = FAMILY.pair("tokens_norm")
    larger = XCiT(**{**OURS, "image_size": 96}).eval()
    report = load_pretrained(larger, model.state_dict())
    assert not report.resized
    assert larger(images(48, 48)).equal(model(images(48, 48)))
