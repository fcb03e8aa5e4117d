"""MetaFormer computes what timm's and transformers' compute; its parts against plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import metaformer as theirs
from torch import nn
from transformers import PoolFormerConfig, PoolFormerForImageClassification

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import (
    TOLERANCE,
    difference,
    images,
    randomise,
)
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.layers.blocks import DropPath, FeedForward
from vit_pytorch.layers.conv import MapGroupNorm
from vit_pytorch.metaformer import MetaFormer, SeparableConv
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry
from vit_pytorch.training.optim import parameter_groups

NAMES = [name for name in list_models() if find_entry(name).architecture is MetaFormer]
KINDS = ("poolformer_s12", "poolformerv2_s12", "convformer_s18", "caformer_s18")
# Maps of 16, 8, 4 and 2 cells.
DIMS, DEPTHS = (16, 24, 32, 64), (1, 2, 2, 1)
OURS: dict[str, Any] = {"image_size": 64, "num_classes": 7, "dim": DIMS, "depth": DEPTHS}
THEIRS: dict[str, Any] = {"num_classes": 7, "dims": DIMS, "depths": DEPTHS}


def timm_settings(name: str) -> dict[str, Any]:
    """Give what timm's function of a name passes to the class, which takes it only once."""
    settings: dict[str, Any] = {}

    def keep(variant: str, pretrained: bool = False, **kwargs: Any) -> None:
        settings.update(kwargs)

    create, theirs._create_metaformer = theirs._create_metaformer, keep
    try:
        getattr(theirs, name)()
    finally:
        theirs._create_metaformer = create
    return settings


def settings(
    name: str, ours: dict[str, Any], theirs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give what a named model sets beside its sizes, and changes to that, in our words and in timm's."""
    config, options = find_entry(name).config, timm_settings(name)
    return (
        {key: config[key] for key in config if key not in OURS} | ours,
        {key: options[key] for key in options if key not in THEIRS} | theirs,
    )


# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{name: settings(name, {}, {}) for name in KINDS},
    "not square": settings("caformer_s18", {"image_size": (64, 96)}, {}),
    "odd maps": settings("caformer_s18", {"image_size": (50, 37)}, {}),
    "odd maps of pooling": settings("poolformer_s12", {"image_size": (50, 37)}, {}),
    "the least image": settings("convformer_s18", {"image_size": 3}, {}),
    "scales everywhere": settings(
        "caformer_s18",
        {"residual_scale": (0.5,) * 4, "layer_scale": 0.1},
        {"res_scale_init_values": [0.5] * 4, "layer_scale_init_values": 0.1},
    ),
    "no scales, linear head": settings(
        "convformer_s18",
        {"residual_scale": None, "head_ratio": None},
        {"res_scale_init_values": None, "use_mlp_head": False},
    ),
    "biases, without norms between": settings(
        "convformer_s18",
        {"bias": True, "down_norm": False, "act": "gelu"},
        {"mlp_bias": True, "downsample_norm": None, "mlp_act": nn.GELU, "norm_layers": theirs.LayerNorm2d},
    ),
}

FAMILY = Family(
    MetaFormer,
    theirs.MetaFormer,
    OURS,
    THEIRS,
    OPTIONS,
    module="metaformer",
    named=[Named(name, size=(160, 128)) for name in KINDS],
    maps=("odd maps",),
    # timm has no groups for it, and cuts the list of its weights into twelves.
    layers=False,
    trained=KINDS,
)


def test_matrices_decay_alone() -> None:
    model, _ = FAMILY.build("scales everywhere")
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert all((decay[id(p)] > 0) == (p.ndim > 1) for p in model.parameters())


def test_nothing_is_trivial() -> None:
    """The weights of these tests have factors and shifts that act."""
    _, reference = FAMILY.build("scales everywhere")
    for part in ("layer_scale1.scale", "res_scale2.scale", "mlp.act.scale", "mlp.act.bias"):
        value = reference.state_dict()[f"stages.1.blocks.1.{part}"]
        assert (value - 1).abs().max() > 0.01
        assert value.abs().min() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("name", KINDS)
def test_the_head_is_dropped_and_replaced_as_timms(name: str) -> None:
    """Without classes the output is the normed mean of cells, not the hidden layer of the classifier."""
    model, reference = FAMILY.build(name)
    load_pretrained(model, reference.state_dict())
    x = images(64, 64)
    ours, wanted = (net.forward_head(net.forward_features(x), pre_logits=True) for net in (model, reference))
    assert difference(ours, wanted) < TOLERANCE
    for net in (model, reference):
        net.reset_classifier(0)
    assert difference(model(x), reference(x)) < TOLERANCE
    assert model.num_features == reference.num_features == DIMS[-1]
    kind = nn.Linear if name.startswith("pool") else FeedForward
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    assert type(model.head) is kind


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_named_models_equal_timms(name: str) -> None:
    """With one block in each stage; configurations of all, and of the preparation of images."""
    entry = find_entry(name)
    options = timm_settings(name)
    assert tuple(options["depths"]) == entry.config["depth"]
    reference = randomise(theirs.MetaFormer(**{**options, "depths": (1, 1, 1, 1), "num_classes": 10}))
    model = create_model(name, depth=(1, 1, 1, 1), num_classes=10).eval()
    load_pretrained(model, reference.state_dict(), strict=True)
    x = images(64, 96, batch=1)
    assert difference(model(x), reference(x)) < TOLERANCE
    scales = options.get("layer_scale_init_values")
    assert model.config.get("layer_scale") == scales


@torch.inference_mode()
def test_other_classes_keep_the_hidden_layer() -> None:
    """As in timm, only the layer of the logits is new for other classes."""
    _, reference = FAMILY.build("convformer_s18")
    model = create_model("convformer_s18", image_size=64, dim=DIMS, depth=DEPTHS, num_classes=5).eval()
    assert model.default_cfg["classifier"] == ("head.to_out",)
    with pytest.warns(UserWarning, match=r"head\.to_out\.weight, head\.to_out\.bias are not from"):
        report = load_pretrained(model, reference.state_dict())
    assert report.kept == ("head.to_out.weight", "head.to_out.bias")
    hidden = dict(model.head.named_parameters())
    for ours, wanted in (("to_hidden", "fc1"), ("sub_norm", "norm")):
        for kind in ("weight", "bias"):
            assert hidden[f"{ours}.{kind}"].equal(reference.state_dict()[f"head.fc.{wanted}.{kind}"])


def first_poolformer(**options: Any) -> MetaFormer:
    """Build a small PoolFormer with the paper's final norm."""
    sizes = {**OURS, "map_norm": True, **options}
    model = create_model("poolformer_s12", **sizes).eval()
    assert isinstance(model, MetaFormer)
    return model


@torch.inference_mode()
def test_weights_of_transformers(tmp_path: Path) -> None:
    """Its final norm is of the last map, as the paper's."""
    config = PoolFormerConfig(hidden_sizes=DIMS, depths=DEPTHS, num_labels=7)
    reference = randomise(PoolFormerForImageClassification(config))
    model = first_poolformer()
    state = reference.state_dict()
    assert load_pretrained(model, state).format == "transformers"
    x = images(50, 37)
    assert difference(model(x), reference(x).logits) < TOLERANCE
    written = to_format(model, "transformers")
    assert written.keys() == state.keys()
    assert all(written[name].equal(state[name]) for name in state)
    with pytest.raises(ValueError, match="does not fit"):
        load_pretrained(first_poolformer(map_norm=False), state)
    reference.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pool_size is 3, the model's 5"):
        load_pretrained(first_poolformer(pool_size=5), tmp_path)


@torch.inference_mode()
@pytest.mark.parametrize("name", KINDS)
def test_weights_of_the_authors(name: str) -> None:
    """timm's reader of the authors' files reads what is written; loading does, too."""
    first = name == "poolformer_s12"
    layout = "poolformer" if first else "metaformer"
    model = first_poolformer() if first else FAMILY.build(name)[0]
    randomise(model)
    reference = FAMILY.build(name)[1]
    written = to_format(model, layout)
    reference.load_state_dict(theirs.checkpoint_filter_fn(dict(written), reference))
    again = first_poolformer() if first else FAMILY.build(name)[0]
    report = load_pretrained(again, written)
    assert (report.format, report.kept) == (layout, ())
    x = images(64, 64)
    assert again(x).equal(model(x))
    if first:
        # timm gives it another final norm.
        features = reference.forward_features(x).permute(0, 2, 3, 1)
        assert difference(model.forward_features(x), model.norm(features).permute(0, 3, 1, 2)) < TOLERANCE
    else:
        assert difference(model(x), reference(x)) < TOLERANCE


def test_names_that_are_other_layers_elsewhere_are_refused() -> None:
    """EfficientFormer has timm's names of attention, too, where this model of it takes means."""
    _, reference = FAMILY.build("caformer_s18")
    model = create_model("efficientformer_l1", image_size=64, dim=DIMS, depth=DEPTHS, num_classes=7)
    with pytest.raises(
        ValueError, match=r"token_mixer\.qkv\.weight of shape .*: the model has no such layer"
    ):
        load_pretrained(model, reference.state_dict())


@torch.inference_mode()
def test_norm_of_a_map_in_plain_arithmetic() -> None:
    """One mean and one variance for all cells and channels, a gain for each channel."""
    norm = randomise(MapGroupNorm(6, eps=1e-3, bias=False))
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    for found, one in zip(norm(x), x, strict=True):
        want = (one - one.mean()) / (one.var(correction=0) + 1e-3).sqrt() * norm.weight
        torch.testing.assert_close(found, want)


@torch.inference_mode()
def test_separable_convolution_in_plain_loops() -> None:
    """W2 DW(StarReLU(W1 x)), each channel convolved with cells of zero around the map."""
    mixer = randomise(SeparableConv(4, 6, 3, dropout=0.0))
    x = torch.randn(1, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    hidden = x[0] @ mixer.to_hidden.weight.T
    hidden = mixer.act.scale * hidden.clamp(min=0) ** 2 + mixer.act.bias
    kernel = mixer.conv.layers[0].weight[:, 0]
    mixed = torch.zeros(3, 5, 6)
    for row in range(3):
        for column in range(5):
            for y in range(max(row - 1, 0), min(row + 2, 3)):
                for z in range(max(column - 1, 0), min(column + 2, 5)):
                    mixed[row, column] += hidden[y, z] * kernel[:, y - row + 1, z - column + 1]
    torch.testing.assert_close(mixer(x)[0], mixed @ mixer.to_out.weight.T)


def test_cells_see_the_whole_map_where_there_is_attention() -> None:
    model = randomise(create_model("caformer_s18", **OURS))
    convolving, attending = (stage.blocks[0] for stage in (model.stages[0], model.stages[2]))
    for block, width, seen in ((convolving, 16, False), (attending, 32, True)):
        x = torch.randn(1, 9, 9, width, generator=torch.Generator().manual_seed(0))
        moved = x.clone()
        moved[0, 8, 8] *= -1
        assert torch.allclose(block(x)[0, 0, 0], block(moved)[0, 0, 0]) != seen


def test_stochastic_depth_rises_to_the_last_block() -> None:
    model = create_model("caformer_s18", dim=DIMS, depth=DEPTHS, drop_path=0.5)
    rates = [[part.p for part in stage.modules() if isinstance(part, DropPath)] for stage in model.stages]
    assert rates == [[], pytest.approx([0.1, 0.2]), pytest.approx([0.3, 0.4]), pytest.approx([0.5])]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": (1, 1)}, "must be one for each stage"),
        ({"residual_scale": (1.0,)}, "must be one for each stage"),
        ({"mixers": ("conv", "conv", "conv", "random")}, "one of pool, conv, attention; got 'random'"),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"mixers": ("pool",) * 4, "pool_size": 2}, "pool_size must be odd, got 2"),
        ({"dim": (16, 24, 33, 64)}, "dim must be a multiple of"),
        ({"image_size": 2}, r"at least \(3, 3\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaFormer(**{"num_classes": 7, "dim": DIMS, "depth": DEPTHS, **wrong})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "image_size": 32,
        "dim": (32, 64),
        "depth": (1, 2),
        "mixers": ("conv", "attention"),
        "residual_scale": (None, 1.0),
    }
    model = create_model("caformer_s18", channels=1, num_classes=10, **sizes)
    assert accuracy_on_digits(model, size=32, epochs=10, goal=0.95) > 0.95
