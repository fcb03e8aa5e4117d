"""The jumbo ViT computes what its authors' program computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import load_pretrained
from vit_pytorch.jumbo_vit import JumboViT
from vit_pytorch.layers.attention import BlockInputs
from vit_pytorch.pretrained import to_format

SMALL = {
    "image_size": (24, 40),
    "patch_size": 8,
    "num_classes": 7,
    "dim": 32,
    "depth": 2,
    "heads": 4,
    "mlp_dim": 48,
}


@torch.inference_mode()
def test_logits_equal_the_authors() -> None:
    config, weights, golden = read_golden("jumbo_vit")
    dim = config["embed_dim"]
    model = JumboViT(
        image_size=config["img_size"],
        patch_size=config["patch_size"],
        num_classes=config["num_classes"],
        dim=dim,
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_dim=int(dim * config["mlp_ratio"]),
        jumbo_pieces=config["J"],
    ).eval()
    report = load_pretrained(model, weights, grid="model")
    assert report.format == "jumbo"
    assert [*report.kept, *report.resized] == []
    assert report.dropped == ("cls_token",)
    assert difference(model(golden["input"]), golden["output"]) < TOLERANCE
    written = to_format(model, "jumbo")
    assert written.keys() == weights.keys() - {"cls_token"}
    assert all(written[key].equal(weights[key]) for key in written)
    # The class token that the authors' code carries and never uses.
    theirs = sum(tensor.numel() for tensor in weights.values())
    assert theirs - sum(parameter.numel() for parameter in model.parameters()) == dim


@torch.inference_mode()
def test_pieces_are_one_token_between_attentions() -> None:
    model = randomise(JumboViT(**SMALL, jumbo_pieces=5, jumbo_mult=3))
    shared, block = model.jumbo_feedforward, model.blocks[1]
    assert shared.to_hidden.weight.shape == (3 * 5 * 32, 5 * 32)
    x = torch.randn(2, 5 + 15, 32)
    mixed = x + block.attention(F.layer_norm(x, (32,), *_affine(block.norm1)))
    want = []
    for tokens in mixed:
        wide = torch.cat(list(tokens[:5]))
        wide = wide + shared(F.layer_norm(wide, (160,), *_affine(block.jumbo_norm)))
        patches = tokens[5:]
        narrow = F.layer_norm(patches, (32,), *_affine(block.norm2))
        want.append(torch.cat([torch.stack(wide.split(32)), patches + block.feedforward(narrow)]))
    assert difference(block(x, BlockInputs(shared=shared)), torch.stack(want)) < TOLERANCE


def _affine(norm: torch.nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    return norm.weight, norm.bias


@torch.inference_mode()
def test_every_block_has_the_same_wide_feedforward_and_its_own_norm() -> None:
    model = randomise(JumboViT(**SMALL))
    names = [name for name, parameter in model.named_parameters() if parameter.shape == (6 * 32,)]
    norms = [f"blocks.{layer}.jumbo_norm.{part}" for layer in range(2) for part in ("weight", "bias")]
    assert names == [*norms, "jumbo_feedforward.to_out.bias"]
    seen = []
    model.jumbo_feedforward.register_forward_hook(lambda *arguments: seen.append(arguments[1][0].shape))
    model(images(24, 40))
    assert seen == [(2, 192)] * 2


@torch.inference_mode()
def test_pooled_are_the_pieces_and_the_mean_of_the_patches() -> None:
    model = randomise(JumboViT(**SMALL, jumbo_pieces=2))
    features = model.forward_features(images(24, 40))
    pooled = model.forward_head(features, pre_logits=True)
    want = torch.cat([features[:, 0], features[:, 1], features[:, 2:].mean(dim=1)], dim=1)
    assert pooled.equal(want)
    assert model.head_hidden_size == 3 * 32


@torch.inference_mode()
def test_pieces_have_no_positions() -> None:
    model = randomise(JumboViT(**SMALL, jumbo_pieces=2))
    assert model.positions.table.shape == (1, 15, 32)
    assert model.embed(images(24, 40))[0, :2].equal(model.prefix.registers[0])


def test_other_poolings_are_refused() -> None:
    with pytest.raises(ValueError, match="pooling cannot change from 'jumbo' to 'mean'"):
        JumboViT(**SMALL).reset_classifier(7, global_pool="avg")


@pytest.mark.parametrize("option", ["jumbo_pieces", "jumbo_mult"])
def test_token_of_no_width_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be an integer in .*, got 0"):
        JumboViT(**SMALL, **{option: 0})
