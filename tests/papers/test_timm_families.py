"""Families of timm's: logits, features, weights both ways, gradients, layer decay, training steps, names."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import timm
import torch

from tests.papers.family import Family, Named
from tests.papers.reference import TOLERANCES, check_parity, check_steps, difference
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.registry import find_entry

FILES = Path(__file__).parent.glob("test_*_parity.py")
MODULES = [import_module(f"tests.papers.{path.stem}") for path in FILES]
FAMILIES: list[Family] = sorted(
    (value for module in MODULES for value in vars(module).values() if isinstance(value, Family)), key=str
)


def rows(field: str) -> pytest.MarkDecorator:
    """Parametrize by the family, and by what stands in this field of it."""
    cases = [(family, case) for family in FAMILIES for case in getattr(family, field)]
    return pytest.mark.parametrize(
        ("family", "case"), cases, ids=[f"{family}-{case}" for family, case in cases]
    )


@rows("options")
def test_small_models(family: Family, case: str) -> None:
    """Logits, weights written back, gradients, layer-wise rates and weight decay."""
    model, reference = family.build(case)
    x = family.images(model.image_size)
    check_parity(model, reference, x, grid="model", layers=family.layers)


@torch.inference_mode()
@rows("maps")
def test_intermediate_features(family: Family, case: str) -> None:
    model, reference = family.pair(case)
    x = family.images(model.image_size)
    for indices in (None, 1, [0, -1]):
        for norm, their_norm in family.norms:
            _, ours = model.forward_intermediates(x, indices=indices, norm=norm)
            _, theirs = reference.forward_intermediates(x, indices=indices, norm=their_norm)
            assert len(ours) == len(theirs)
            for one, other in zip(ours, theirs, strict=True):
                # Those that are not normed may grow.
                assert difference(one, other) < TOLERANCES[family.dtype] * max(1, other.abs().max())
    assert [(i["num_chs"], i["reduction"]) for i in model.feature_info] == [
        (i["num_chs"], i["reduction"]) for i in reference.feature_info
    ]


@rows("trained")
def test_ten_steps(family: Family, case: str) -> None:
    """By AdamW, in training mode, in double precision."""
    model, reference = family.pair(case)
    check_steps(model.double(), reference.double(), family.images(model.image_size, batch=4).double())


@torch.inference_mode()
@rows("named")
def test_named_models(family: Family, case: Named) -> None:
    model, reference = create_model(case.name, **case.ours), timm.create_model(case.name, **case.theirs)
    family.ready(model, reference)
    load_pretrained(model, reference.state_dict(), strict=True)
    x = family.images(case.size or model.image_size, batch=1)
    want = reference(x)
    assert difference(model(x), want) < TOLERANCES[family.dtype] * max(1, want.abs().max())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.module], ids=str)
def test_all_of_timms_models_are_named(family: Family) -> None:
    assert family.module is not None
    ours = {name for name in list_models() if find_entry(name).architecture is family.model}
    assert {*timm.list_models(module=family.module), *family.others} == ours


def test_rows_are_found() -> None:
    assert len(FAMILIES) > 20
