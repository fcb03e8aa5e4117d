"""EfficientFormer computes what timm's computes; its parts against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import efficientformer as theirs

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import (
    TOLERANCE,
    difference,
    images,
    randomise,
)
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.efficientformer import EfficientFormer
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.layers.conv import MeanOfNeighbours
from vit_pytorch.layers.tokens import OneTokenHead, TwoHeads
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry

# Maps of 16, 8 and 4 cells.
OURS: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (8, 16, 24),
    "depth": (1, 2, 3),
    "attention_depth": 2,
    "distilled": True,
}
THEIRS: dict[str, Any] = {"num_classes": 7, "embed_dims": (8, 16, 24), "depths": (1, 2, 3), "num_vit": 2}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {}),
    "odd maps": ({"image_size": (50, 37)}, {}),
    "one block attends": ({"attention_depth": 1}, {"num_vit": 1}),
    "all of the last stage attend": ({"attention_depth": 3}, {"num_vit": 3}),
    "feed-forward and pool": ({"mlp_ratio": 2.5, "pool_size": 5}, {"mlp_ratios": 2.5, "pool_size": 5}),
}


def on_our_grid(model: EfficientFormer, reference: nn.Module) -> None:
    """Give timm's attention, which is always for maps of 7 x 7 cells, the grid of ours."""
    grid = tuple(-(-side // model.strides[-1]) for side in model.image_size)
    for block in reference.stages[-1].blocks:
        if isinstance(block, theirs.MetaBlock1d):
            block.token_mixer = theirs.Attention(block.token_mixer.proj.out_features, resolution=grid)


def shortened(name: str) -> Named:
    """Leave as many blocks as attend in the last stage and one more, and one in each other."""
    depth = (1, 1, 1, find_entry(name).config["attention_depth"] + 1)
    return Named(name, {"depth": depth}, {"depths": depth})


FAMILY = Family(
    EfficientFormer,
    theirs.EfficientFormer,
    OURS,
    THEIRS,
    OPTIONS,
    module="efficientformer",
    named=[*map(shortened, list_models("efficientformer_*")), Named("efficientformer_l1")],
    maps=("not square",),
    trained=("plain", "all of the last stage attend"),
    prepare=on_our_grid,
)


@torch.inference_mode()
@pytest.mark.parametrize("attention_depth", [1, 3])
def test_weights_of_the_authors(attention_depth: int) -> None:
    """timm's reader of the authors' files reads what is written; loading does, too."""
    model, reference = FAMILY.build(
        "one block attends" if attention_depth == 1 else "all of the last stage attend"
    )
    randomise(model, seed=3)
    written = to_format(model, "EfficientFormer")
    reference.load_state_dict(theirs.checkpoint_filter_fn(dict(written), reference))
    again = EfficientFormer(**{**OURS, "attention_depth": attention_depth}).eval()
    report = load_pretrained(again, written, grid="model")
    assert (report.format, report.kept, report.resized) == ("EfficientFormer", (), {})
    x = images(64, 64)
    assert again(x).equal(model(x))
    assert difference(model(x), reference(x)) < TOLERANCE


@pytest.mark.parametrize("change", [{"attention_depth": 1}, {"attention_depth": 3}, {"depth": (1, 1, 3)}])
def test_weights_of_another_depth_are_refused(change: dict[str, Any]) -> None:
    """Blocks that attend have weights of other names, and stand elsewhere in timm's files."""
    model, reference = EfficientFormer(**{**OURS, **change}), FAMILY.build("plain")[1]
    with pytest.raises(ValueError, match="does not fit"):
        load_pretrained(model, reference.state_dict(), grid="model")


@torch.inference_mode()
def test_one_classifier_of_two() -> None:
    """A model without the second classifier takes the weights of the first; the head may be gone, too."""
    _, reference = FAMILY.build("plain")
    model = EfficientFormer(**{**OURS, "distilled": False}).eval()
    state = {n: p for n, p in reference.state_dict().items() if not n.startswith("head_dist")}
    assert load_pretrained(model, state, grid="model").kept == ()
    x = images(64, 64)
    assert difference(model(x), reference.head(reference.forward_features(x).mean(1))) < TOLERANCE
    assert to_format(model, "timm").keys() == state.keys()


@torch.inference_mode()
def test_logits_are_the_mean_of_two_classifiers() -> None:
    model, reference = FAMILY.build("plain")
    load_pretrained(model, reference.state_dict(), grid="model")
    x = images(64, 64)
    assert isinstance(model.head, OneTokenHead)
    assert isinstance(model.head, TwoHeads)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    ours = model.head.separate(pooled)
    want = (reference.head(pooled), reference.head_dist(pooled))
    assert all(difference(one, other) < TOLERANCE for one, other in zip(ours, want, strict=True))
    assert not torch.allclose(*ours)
    assert difference(model(x), (want[0] + want[1]) / 2) < TOLERANCE


@torch.inference_mode()
def test_smaller_images_have_the_biases_of_their_offsets() -> None:
    """A model of that size, with a corner of the tables, computes the same."""
    model = randomise(EfficientFormer(**OURS))
    small = EfficientFormer(**{**OURS, "image_size": (32, 64)}).eval()
    state = model.state_dict()
    for name in [name for name in state if name.endswith("bias.table")]:
        state[name] = state[name].unflatten(1, (4, 4))[:, :2].flatten(1)
    small.load_state_dict(state)
    x = images(32, 64)
    assert difference(model(x), small(x)) < TOLERANCE
    with pytest.raises(ValueError, match=r"image size must be at most \(64, 64\), got \(64, 96\)"):
        model(images(64, 96))


@torch.inference_mode()
def test_mean_of_neighbours_in_plain_loops() -> None:
    """Cells outside the map do not count."""
    x = torch.randn(1, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    found = MeanOfNeighbours(3)(x)
    for row in range(4):
        for column in range(5):
            near = x[0, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            torch.testing.assert_close(found[0, row, column], near.mean(dim=(0, 1)) - x[0, row, column])


@torch.inference_mode()
def test_attention_in_plain_loops() -> None:
    """Scores are scaled by the dimension of keys, and the bias is that of the absolute offset."""
    model = randomise(EfficientFormer(**{**OURS, "heads": 2, "dim_key": 4, "dim_value": 6}))
    attention = model.stages[-1].blocks[-1].attention
    x = torch.randn(1, 3, 4, 24, generator=torch.Generator().manual_seed(0))
    q, k, v = attention.project(x)
    assert [part.shape[-1] for part in (q, k, v)] == [4, 4, 6]
    table = attention.bias.table.unflatten(1, (4, 4))
    mixed = torch.zeros(12, 2, 6)
    for i in range(12):
        for head in range(2):
            biases = [table[head, abs(i // 4 - j // 4), abs(i % 4 - j % 4)] for j in range(12)]
            weights = (k[0, head] @ q[0, head, i] / 2 + torch.stack(biases)).softmax(dim=0)
            mixed[i, head] = weights @ v[0, head]
    want = attention.to_out(mixed.flatten(1)).view(1, 3, 4, 24)
    torch.testing.assert_close(attention(x), want, rtol=1e-5, atol=1e-5)


def test_far_cells_see_each_other_in_the_last_blocks_only() -> None:
    model = randomise(EfficientFormer(**OURS))
    first, *attending = model.stages[-1].blocks
    assert not hasattr(first.attention, "bias")
    x = torch.randn(1, 4, 4, 24, generator=torch.Generator().manual_seed(0))
    moved = x.clone()
    moved[0, 3, 3] *= -1
    assert first(x)[0, 0].equal(first(moved)[0, 0])
    assert all(not torch.allclose(block(x)[0, 0, 0], block(moved)[0, 0, 0]) for block in attending)


def test_stochastic_depth_rises_to_the_last_block() -> None:
    model = EfficientFormer(**OURS, drop_path=0.5)
    rates = [[part.p for part in stage.modules() if isinstance(part, DropPath)] for stage in model.stages]
    assert rates == [[], pytest.approx([0.1, 0.2]), pytest.approx([0.3, 0.4, 0.5])]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": (1, 1)}, r"one for each stage, got \(8, 16, 24\) and \(1, 1\)"),
        ({"attention_depth": 4}, "at most the blocks of the last stage, got 4 and 3"),
        ({"dim": (9, 16, 24)}, "dim of the first stage must be even, got 9"),
        ({"pool_size": 2}, "pool_size must be odd, got 2"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EfficientFormer(**{**OURS, **wrong})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes = {
        "image_size": 32,
        "dim": (32, 64),
        "depth": (2, 3),
        "attention_depth": 2,
        "heads": 4,
        "dim_key": 16,
    }
    model = create_model("efficientformer_l1", channels=1, num_classes=10, **sizes)
    assert accuracy_on_digits(model, size=32, epochs=10, goal=0.95) > 0.95
