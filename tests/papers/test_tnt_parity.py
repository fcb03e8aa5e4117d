"""TNT computes what timm's computes; words are told in plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import tnt as timm_tnt

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.pretrained import to_format
from vit_pytorch.tnt import TNT

OURS: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 48,
    "depth": 2,
    "heads": 3,
    "mlp_dim": 96,
    "inner_dim": 12,
    "inner_heads": 2,
    "inner_mlp_dim": 48,
}
THEIRS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "num_classes": 7,
    "embed_dim": 48,
    "depth": 2,
    "num_heads_outer": 3,
    "mlp_ratio": 2,
    "inner_dim": 12,
    "num_heads_inner": 2,
}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "timm's first": ({"variant": "timm"}, {"legacy": True}),
    "patches that are not square": (
        {"image_size": (32, 64), "patch_size": (8, 16)},
        {"img_size": (32, 64), "patch_size": (8, 16)},
    ),
    "words of 2 pixels, biases": ({"word_size": 2, "qkv_bias": True}, {"first_stride": 2, "qkv_bias": True}),
}
FAMILY = Family(
    TNT,
    timm_tnt.TNT,
    OURS,
    THEIRS,
    OPTIONS,
    module="tnt",
    named=[Named(name, {"depth": 2}, {"depth": 2}) for name in list_models("tnt_*")],
    trained=("plain",),
)


@torch.inference_mode()
@pytest.mark.parametrize("variant", ["authors", "timm"])
def test_images_that_are_not_square(variant: str) -> None:
    """Logits, and intermediate features in both forms."""
    reference = randomise(timm_tnt.TNT(**{**THEIRS, "img_size": (32, 48)}, legacy=variant == "timm"))
    model = TNT(**{**OURS, "image_size": (32, 48)}, variant=variant).eval()
    load_pretrained(model, reference.state_dict(), grid="model")
    x = images(32, 48)
    assert difference(model(x), reference(x)) < TOLERANCE
    forms: list[dict[str, Any]] = [{"output_fmt": "NLC", "norm": True}, {"indices": [0, -1], "norm": False}]
    for arguments in forms:
        last, ours = model.forward_intermediates(x, **arguments)
        expected, theirs = reference.forward_intermediates(x, **arguments)
        assert difference(last, expected) < TOLERANCE
        assert len(ours) == len(theirs) == 2
        assert all(difference(a, b) < TOLERANCE for a, b in zip(ours, theirs, strict=True))


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("size", [48, 64])
def test_positions_of_sentences_are_resized_as_in_timm(size: int) -> None:
    """Those of words stay, as many as there are in a patch."""
    _, reference = FAMILY.build("plain")
    larger = timm_tnt.TNT(**{**THEIRS, "img_size": size}).eval()
    larger.load_state_dict(timm_tnt.checkpoint_filter_fn(reference.state_dict(), larger))
    model = TNT(**{**OURS, "image_size": size}).eval()
    report = load_pretrained(model, reference.state_dict())
    assert report.resized == {"positions.table": ((4, 4), (size // 8, size // 8))}
    x = images(size, size)
    assert difference(model(x), larger(x)) < TOLERANCE


@torch.inference_mode()
def test_weights_of_the_authors() -> None:
    """timm's reader of the authors' files reads what is written; loading does, too."""
    model = TNT(**OURS)
    randomise(model)
    written = {**to_format(model, "tnt"), "outer_tokens": torch.zeros(1, 16, 48)}
    reference = timm_tnt.TNT(**THEIRS).eval()
    reference.load_state_dict(timm_tnt.checkpoint_filter_fn(dict(written), reference))
    again = TNT(**OURS).eval()
    assert load_pretrained(again, written).format == "tnt"
    x = images(32, 32)
    assert again(x).equal(model(x))
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("variant", ["authors", "timm"])
def test_words_in_plain_loops(variant: str) -> None:
    """Of a patch by itself, or of the whole image; at the borders of either there are zeros."""
    model = randomise(TNT(**OURS, variant=variant))
    conv, table = model.words.conv, model.words.positions
    x = images(32, 32, batch=1)[0]
    found = model.words(x[None])
    for patch in range(16):
        top, left = patch // 4 * 8, patch % 4 * 8
        for word in range(4):
            row, column = top + word // 2 * 4, left + word % 2 * 4
            want = conv.bias + table[0, word]
            for down in range(-3, 4):
                for right in range(-3, 4):
                    y, z = row + down, column + right
                    inside = top <= y < top + 8 and left <= z < left + 8
                    if inside if variant == "authors" else 0 <= y < 32 and 0 <= z < 32:
                        want = want + conv.weight[:, :, down + 3, right + 3] @ x[:, y, z]
            torch.testing.assert_close(found[patch, word], want, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_words_of_a_patch_reach_its_sentence_first() -> None:
    """In a block, words see those of their own sentence only; the sentences see each other afterwards."""
    model = randomise(TNT(**OURS))
    sentences, words = model.embed(images(32, 32))
    moved = words.clone()
    moved[0] = -moved[0]
    block = model.blocks[0]
    assert block.inner(moved)[1:].equal(block.inner(words)[1:])
    added, changed = (block.add(block.inner(w).unflatten(0, (2, -1))) for w in (words, moved))
    assert added[0, 1:].equal(changed[0, 1:])
    assert difference(added[0, :1], changed[0, :1]) > 0.01
    far = block(sentences, words)[0], block(sentences, moved)[0]
    assert not torch.allclose(far[0][0, -1], far[1][0, -1])
    assert far[0][1].equal(far[1][1])


def test_both_transformers_drop_alike() -> None:
    model = TNT(**{**OURS, "depth": 3}, drop_path=0.2)
    rates = [[part.p for part in block.modules() if isinstance(part, DropPath)] for block in model.blocks]
    assert rates == [[], [pytest.approx(0.1)] * 2, [pytest.approx(0.2)] * 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"word_size": 3}, r"patch size must be a multiple of word_size, got \(8, 8\) and 3"),
        ({"variant": "legacy"}, "variant must be one of authors, timm; got 'legacy'"),
        ({"inner_heads": 5}, "dim must be a multiple of heads, got dim=12 and heads=5"),
        ({"image_size": 36}, r"image size must be a multiple of patch size \(8, 8\), got \(36, 36\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TNT(**{**OURS, **wrong})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 24, "patch_size": 8, "word_size": 4, "dim": 64, "depth": 2, "heads": 4}
    inner = {"mlp_dim": 128, "inner_dim": 16, "inner_heads": 2, "inner_mlp_dim": 32}
    model = create_model("tnt_s_patch16_224", channels=1, num_classes=10, **sizes, **inner)
    assert accuracy_on_digits(model, size=24, epochs=8, goal=0.9) > 0.9
