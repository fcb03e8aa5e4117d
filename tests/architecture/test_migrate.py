"""Every row of the tables in `docs/migrate.md` runs, and computes what it says it does."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, randomise
from vit_pytorch import ViT, create_model, create_transform, list_models, load_pretrained
from vit_pytorch.layers.positions import Learned
from vit_pytorch.layers.tokens import Head

PAGE = (Path(__file__).parents[2] / "docs" / "migrate.md").read_text(encoding="utf-8")
NAME = "vit_tiny_patch16_224"
SIZES = {
    "image_size": 64,
    "patch_size": 8,
    "num_classes": 10,
    "dim": 48,
    "depth": 2,
    "heads": 3,
    "mlp_dim": 96,
}


def rows(*header: str) -> list[list[str]]:
    """Give the cells of the table under a header, without the backticks of code."""
    head = re.escape(f"| {' | '.join(header)} |\n|{'---|' * len(header)}\n")
    table = re.search(rf"^{head}((?:\|.*\|\n)+)", PAGE, re.M)
    assert table is not None, header
    return [[cell.strip().strip("`") for cell in line[1:-1].split("|")] for line in table[1].splitlines()]


WEIGHTS = rows("module", "class", "arguments in addition to yours", "stored outputs")
CALLS = rows("module", "call")
TIMM = rows("what", "timm", "here")


@pytest.mark.filterwarnings("ignore:.*patches are few")
@pytest.mark.parametrize("row", WEIGHTS, ids=lambda row: row[0])
@torch.inference_mode()
def test_weights_of_the_public_package(row: list[str]) -> None:
    module, name, options, golden = row
    config, state, tensors = read_golden(golden)
    options = eval(f"dict({options})")
    model = getattr(import_module(f"vit_pytorch.{module}"), name)(**config, **options).eval()
    load_pretrained(model, state, grid="model")
    images = tensors.get("input", [value for key, value in sorted(tensors.items()) if key[:6] == "input/"])
    assert difference(model(images), tensors["output"]) < TOLERANCE


@pytest.mark.parametrize(("module", "call"), CALLS, ids=[module for module, _ in CALLS])
@torch.inference_mode()
def test_calls_of_the_public_package(module: str, call: str) -> None:
    torch.manual_seed(0)
    name = call.partition("(")[0]
    model = ViT(**SIZES).eval()
    scope = {name: getattr(import_module(f"vit_pytorch.{module}"), name), "sizes": SIZES, "torch": torch}
    built = eval(call, {**scope, "model": model}).eval()
    if "model" in call:
        images = torch.randn(2, 3, 64, 64)
        output = built(images)
    else:
        images = torch.randn(2, *built.default_cfg["input_size"])
        output = built(images)
        assert output.shape == (2, 10)
    for part in output if isinstance(output, tuple) else (output,):
        assert part.isfinite().all()


@pytest.fixture(scope="module")
def scopes() -> tuple[dict[str, Any], dict[str, Any]]:
    theirs = randomise(timm.create_model(NAME))
    ours = create_model(NAME).eval()
    load_pretrained(ours, theirs.state_dict())
    generator = torch.Generator().manual_seed(1)
    both = {
        "images": torch.randn(2, 3, 224, 224, generator=generator),
        "NAME": NAME,
        "param_groups_layer_decay": param_groups_layer_decay,
    }
    here = {"create_model": create_model, "list_models": list_models, "create_transform": create_transform}
    return (
        {**both, "timm": timm, "model": theirs},
        {**both, **here, "model": ours, "Learned": Learned, "Head": Head},
    )


@pytest.mark.parametrize(("what", "theirs", "ours"), TIMM, ids=[row[0] for row in TIMM])
@torch.no_grad()
def test_calls_of_timm(
    what: str, theirs: str, ours: str, scopes: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    torch.manual_seed(0)
    expected, found = eval(theirs, scopes[0]), eval(ours, scopes[1])
    if isinstance(expected, nn.Module):
        assert_same_function(found, expected, sizes=[(64, 96)] if what == "any image size" else [])
    elif isinstance(expected, Tensor):
        assert difference(found, expected) < TOLERANCE
    elif what == "maps of layers":
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert difference(one, other) < TOLERANCE
    elif what == "names":
        assert set(found) & set(expected)
    elif what == "preparation":
        photo = Image.fromarray(load_sample_image("flower.jpg"))
        # levels of 255, in units of the standard deviation
        assert (found(photo) - expected(photo)).abs().max() < 2.5 / 255 / 0.5
    else:
        assert found == expected


def assert_same_function(ours: nn.Module, theirs: nn.Module, *, sizes: list[tuple[int, int]]) -> None:
    """Hold logits against timm's in evaluation, with its weights, on images of its size and of others."""
    randomise(theirs)
    load_pretrained(ours.eval(), theirs.state_dict())
    for size in (ours.image_size, *sizes):
        generator = torch.Generator().manual_seed(2)
        images = torch.randn(1, ours.channels, *size, generator=generator)
        assert difference(ours(images), theirs(images)) < TOLERANCE


def test_every_architecture_of_timm_that_is_here_is_listed() -> None:
    (row,) = (line for line in PAGE.splitlines() if line.startswith("| classes `VisionTransformer`"))
    listed = set(re.findall(r"`(\w+)`", row))
    modules = {timm.model_entrypoint(name).__module__ for name in list_models() if timm.is_model(name)}
    assert not [module for module in modules if listed.isdisjoint(vars(import_module(module)))]
