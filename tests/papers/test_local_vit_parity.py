"""LocalViT computes what its authors' program computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.contracts.test_gradients import backward
from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import load_pretrained
from vit_pytorch.layers.attention import BlockInputs
from vit_pytorch.local_vit import LocalViT, NeighbourGate
from vit_pytorch.mae import MAE
from vit_pytorch.pretrained import to_format

SMALL = {
    "image_size": (24, 40),
    "patch_size": 8,
    "num_classes": 7,
    "dim": 48,
    "depth": 2,
    "heads": 4,
    "mlp_dim": 96,
}
# The authors' numbers of what stands in the feed-forward.
ACTS = {
    1: {"act": "relu6", "gate": "none"},
    2: {"act": "hardswish", "gate": "none"},
    3: {"act": "hardswish", "gate": "se"},
    4: {"act": "hardswish", "gate": "eca"},
    5: {"act": "hardswish", "gate": "eca_hard"},
}


@torch.inference_mode()
@pytest.mark.parametrize("name", ["localvit", "localvit_eca", "localvit_relu6"])
def test_logits_and_features_equal_the_authors(name: str) -> None:
    config, weights, golden = read_golden(name)
    model = LocalViT(
        image_size=config["img_size"],
        patch_size=config["patch_size"],
        num_classes=config["num_classes"],
        dim=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_dim=int(config["embed_dim"] * config["mlp_ratio"]),
        **ACTS[config["act"]],
        reduction=config["reduction"],
    ).eval()
    report = load_pretrained(model, weights, grid="model")
    assert report.format == "LocalViT"
    assert [*report.kept, *report.dropped, *report.resized] == []
    assert difference(model(golden["input"]), golden["output"]) < TOLERANCE
    assert difference(model.forward_features(golden["input"]), golden["features"]) < TOLERANCE
    written = to_format(model, "LocalViT")
    assert written.keys() == weights.keys()
    assert all(written[key].equal(tensor) for key, tensor in weights.items())


def feedforward_by_hand(x: Tensor, weights: dict[str, Tensor], act: int) -> Tensor:
    """Compute the authors' feed-forward of a channels-first map, by its numbered layers."""

    def norm(x: Tensor, layer: int) -> Tensor:
        mean, var, gain, bias = (
            weights[f"{layer}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * gain + bias

    def activate(x: Tensor) -> Tensor:
        return x.clamp(0, 6) if act == 1 else x * (x + 3).clamp(0, 6) / 6

    y = activate(norm(F.conv2d(x, weights["0.weight"]), 1))
    y = activate(norm(F.conv2d(y, weights["3.weight"], padding=1, groups=y.shape[1]), 4))
    last = 6 if act < 3 else 7
    if act >= 3:
        means = y.mean(dim=(2, 3))
        if act == 3:
            hidden = F.linear(means, weights["6.fc.0.weight"], weights["6.fc.0.bias"]).relu()
            score = F.linear(hidden, weights["6.fc.2.weight"], weights["6.fc.2.bias"])
        else:
            kernel = weights["6.conv.weight"]
            score = F.conv1d(means[:, None], kernel, padding=kernel.shape[-1] // 2)[:, 0]
        gate = score.sigmoid() if act == 4 else (score + 3).clamp(0, 6) / 6
        y = y * gate[:, :, None, None]
    return x + norm(F.conv2d(y, weights[f"{last}.weight"]), last + 1)


@torch.inference_mode()
@pytest.mark.parametrize("act", ACTS)
def test_every_feedforward_mixes_the_patches_of_a_grid(act: int) -> None:
    """On images that are not square, too; the class token passes by, and no norm comes first."""
    model = randomise(LocalViT(**SMALL, **ACTS[act]))
    prefix = "blocks.1.conv.conv."
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in to_format(model, "LocalViT").items()
        if name.startswith(prefix)
    }
    x = torch.randn(2, 16, 48)
    for parameter in model.blocks[1].attention.to_out.parameters():
        nn.init.zeros_(parameter)
    got = model.blocks[1](x, BlockInputs((3, 5)))
    assert got[:, 0].equal(x[:, 0])
    want = feedforward_by_hand(x[:, 1:].mT.unflatten(2, (3, 5)), weights, act)
    assert difference(got[:, 1:], want.flatten(2).mT) < TOLERANCE


@pytest.mark.parametrize(("width", "kernel"), [(16, 3), (48, 3), (192, 5), (768, 5), (4096, 7)])
def test_kernel_along_the_channels_grows_with_their_number(width: int, kernel: int) -> None:
    assert NeighbourGate(width).conv.kernel_size == (kernel,)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_last_feedforward_learns_where_patches_are_classified(pool: str) -> None:
    model = randomise(LocalViT(**SMALL, pool=pool, class_token=True)).train()
    gradients = backward(model, images(24, 40))
    idle = {name for name, gradient in gradients.items() if not gradient.any()}
    last = {f"blocks.1.feedforward.{n}" for n, _ in model.blocks[1].feedforward.named_parameters()}
    assert idle == (last if pool == "cls" else set())


def test_heads_share_the_width_unless_told() -> None:
    def width(**options: int) -> int:
        return LocalViT(**SMALL, **options).blocks[0].attention.dim_head

    assert (width(), width(dim_head=5)) == (12, 5)


def test_reduction_divides_the_inner_width() -> None:
    gates = [
        module
        for module in LocalViT(**SMALL, reduction=20).modules()
        if isinstance(module, nn.Linear) and module.out_features == 4
    ]
    assert [gate.in_features for gate in gates] == [96, 96]
    with pytest.raises(ValueError, match=r"at most mlp_dim=96, got 97"):
        LocalViT(**SMALL, reduction=97)


def test_attention_alone_is_dropped() -> None:
    model = LocalViT(**SMALL, drop_path=0.2)
    assert [getattr(block.drop_path, "p", 0.0) for block in model.blocks] == [0.0, 0.2]
    # Without attention there is nothing to drop.
    block = model.blocks[1].train()
    for parameter in block.attention.to_out.parameters():
        nn.init.zeros_(parameter)
    block.drop_path.p = 0.9
    x = torch.randn(8, 16, 48)
    assert block(x, BlockInputs((3, 5))).equal(block(x, BlockInputs((3, 5))))


def test_patches_that_are_missing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"LocalViT convolves the patches .* got 3 kept ones"):
        MAE(encoder=LocalViT(**SMALL), decoder_dim=16, decoder_depth=1, decoder_heads=2)(images(24, 40))


def test_unknown_gates_are_refused() -> None:
    with pytest.raises(ValueError, match="gate must be one of se, eca, eca_hard, none; got 'other'"):
        LocalViT(**SMALL, gate="other")
