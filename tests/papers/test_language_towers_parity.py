"""Vision towers of language models compute what timm's and transformers' compute: Qwen3-VL, DeepSeek-V4."""

import pytest
import timm
import torch
from timm.models import deepseek_vit
from transformers import Qwen3VLVisionConfig, Qwen3VLVisionModel

from tests.papers.reference import TOLERANCE, check_parity, check_steps, difference, images, randomise
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.layers.rotary import HalvedRotary
from vit_pytorch.pretrained import to_format

NAMES = ["qwen3_vit_88m", "deepseek_vit_412m"]
PATCH = {"qwen3_vit_88m": 16, "deepseek_vit_412m": 14}
OURS = {"dim": 48, "heads": 4, "dim_head": 12, "depth": 2, "num_classes": 7}


def build(name, **options):
    """Our model, small, of a grid of 5 x 5."""
    mlp_dim = 192 if "qwen" in name else 132
    sizes = {**OURS, "mlp_dim": mlp_dim, "image_size": 5 * PATCH[name.removesuffix("_enc")]}
    return create_model(name, **{**sizes, **options}).eval()


def reference(name, **options):
    """timm's, with random weights."""
    grid = {"pos_embed_grid_size": 5} if "qwen" in name else {}
    sizes = {"embed_dim": 48, "num_heads": 4, "depth": 2, **grid}
    return randomise(timm.create_model(name, **{"num_classes": 7, **sizes, **options}))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(5, 5), (4, 7)])
def test_logits_gradients_and_decay(name, size):
    """Of the model's own grid, and of another one."""
    check_parity(build(name), reference(name), images(*(cells * PATCH[name] for cells in size)))


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(5, 5), (3, 4), (9, 6), (2, 11)])
def test_images_of_any_size(name, size):
    model, other = build(name), reference(name)
    load_pretrained(model, other.state_dict(), strict=True)
    x = images(*(cells * PATCH[name] for cells in size))
    assert difference(model(x), other(x)) < TOLERANCE
    assert difference(model.forward_features(x), other.forward_features(x).flatten(1, 2)) < TOLERANCE
    _, ours = model.forward_intermediates(x)
    _, theirs = other.forward_intermediates(x)
    assert all(difference(one, two) < TOLERANCE for one, two in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_ten_steps(name):
    model, other = build(name), reference(name)
    load_pretrained(model, other.state_dict())
    x = images(*(cells * PATCH[name] for cells in (3, 5)), batch=4)
    check_steps(model.double(), other.double(), x.double())


@torch.no_grad()
def test_another_input_size_for_good():
    """The table becomes what it is stretched to for an image of that size."""
    other = reference(NAMES[0])
    model = build(NAMES[0], image_size=(48, 112))
    report = load_pretrained(model, other.state_dict())
    assert report.resized == {"positions.table": ((5, 5), (3, 7))}
    x = images(48, 112)
    assert difference(model(x), other(x)) < TOLERANCE
    again = build(NAMES[0])
    load_pretrained(again, other.state_dict())
    again.set_input_size((48, 112))
    assert difference(again(x), other(x)) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize(("name", "projector"), [(NAMES[0], "merge"), (NAMES[1], "align")])
def test_encoders_of_timm(name, projector):
    """What projects to the language model's width is left out; a classifier behind it is not taken for one
    of the tower."""
    other = reference(f"{name}_enc", out_features=24)
    model = build(name, num_classes=0)
    report = load_pretrained(model, other.state_dict())
    assert report.format == "timm encoder"
    assert all(left.startswith(("merger.", "aligner.")) for left in report.dropped)
    x = images(3 * PATCH[name], 4 * PATCH[name])
    features = other.forward_features(images(6 * PATCH[name], 6 * PATCH[name]))
    assert (
        difference(model.forward_features(images(6 * PATCH[name], 6 * PATCH[name])), features.flatten(1, 2))
        < TOLERANCE
    )
    classifier = reference(f"{name}_{projector}", out_features=48)
    fresh = build(name)
    before = fresh.head.weight.clone()
    with pytest.warns(UserWarning, match=r"head.weight, head.bias are not from"):
        load_pretrained(fresh, classifier.state_dict())
    assert fresh.head.weight.equal(before)
    assert fresh(x).isfinite().all()


@torch.no_grad()
def test_qwen3_of_transformers():
    """Tokens of one image, which stand in groups of 2 x 2 there; its frame is given twice."""
    config = Qwen3VLVisionConfig(
        depth=2,
        hidden_size=48,
        intermediate_size=192,
        num_heads=4,
        out_hidden_size=24,
        num_position_embeddings=25,
        deepstack_visual_indexes=[0],
    )
    other = randomise(Qwen3VLVisionModel(config))
    model = build(NAMES[0], num_classes=0)
    beside = {"model.language_model.norm.weight": torch.ones(3)}
    state = {f"model.visual.{name}": tensor for name, tensor in other.state_dict().items()} | beside
    report = load_pretrained(model, state)
    assert report.format == "transformers Qwen3-VL"
    for rows, columns in ((4, 6), (8, 2)):
        x = images(16 * rows, 16 * columns, batch=1)
        cells = x[0].unflatten(2, (columns // 2, 2, 16)).unflatten(1, (rows // 2, 2, 16))
        # groups, cells in them, channels, rows, columns
        patches = cells.permute(1, 4, 2, 5, 0, 3, 6).flatten(0, 3)
        frames = patches[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1)
        tokens = other(frames, grid_thw=torch.tensor([[1, rows, columns]])).last_hidden_state
        features = model.forward_features(x)[0].unflatten(0, (rows // 2, 2, columns // 2, 2))
        assert difference(features.transpose(1, 2).flatten(0, 3), tokens) < TOLERANCE
    again = build(NAMES[0], num_classes=0)
    load_pretrained(again, to_format(model, "transformers Qwen3-VL"))
    assert again(x).equal(model(x))


@torch.no_grad()
def test_deepseek_of_the_authors():
    """timm's reader of the authors' files reads what is written; loading does, too."""
    model = randomise(build(NAMES[1], num_classes=0))
    written = to_format(model, "DeepSeek-V4")
    # the language model's, of the same names as a classifier's
    written |= {
        "norm.weight": torch.ones(3),
        "head.weight": torch.ones(3, 3),
        "aligner.w1.weight": torch.ones(1),
    }
    again = build(NAMES[1], num_classes=0)
    assert load_pretrained(again, written).format == "DeepSeek-V4"
    other = reference(NAMES[1], num_classes=0)
    read = deepseek_vit.checkpoint_filter_fn_classifier(written, other)
    other.load_state_dict(read)
    x = images(42, 70)
    assert difference(again(x), other(x)) < TOLERANCE
    assert again(x).equal(model(x))


@pytest.mark.parametrize("name", NAMES)
def test_rotations_that_no_tensor_tells(name):
    """Weights are not taken by a model that does not rotate as theirs does."""
    state = reference(name).state_dict()
    learned = [{"kind": "learned", "dynamic_img_size": "corners"}] if "qwen" in name else []
    for inside in ("rope", "rope_normalized"):
        with pytest.raises(ValueError, match="no tensor tells: build ViT with positions='rope_halves'"):
            load_pretrained(build(name, positions=[*learned, inside]), state)
    with pytest.raises(ValueError, match=r"frequencies of base 10000, .*; the model's have 100\.0"):
        load_pretrained(build(name, positions=[*learned, HalvedRotary(theta=100.0)]), state)
