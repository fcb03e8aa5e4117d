"""Constructors given anything build a model whose logits are finite, or refuse in a sentence."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.contracts.conftest import cases
from tests.contracts.test_arguments import INSTEAD, build_changed
from tests.faults.test_fuzz_files import fuzz
from vit_pytorch.registry import ModelEntry

ENTRIES = {entry.architecture: entry for entry in reversed(cases())}
# Sizes stay small: what is large and legal is a question of memory alone.
ATOMS = st.one_of(
    st.sampled_from(INSTEAD),
    st.integers(-2, 64),
    st.floats(-1, 2),
    st.sampled_from([float("nan"), float("-inf"), 5e-324, 1e308]),
    st.text(max_size=3),
    st.binary(max_size=2),
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["kind", "theta", "std", "x"]), inner, max_size=2),
    ),
    max_leaves=4,
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[ModelEntry, dict[str, Any]]:
    """One of the architectures, and one to three arguments of it."""
    entry = draw(st.sampled_from(list(ENTRIES.values())))
    names = [name for name in signature(entry.architecture).parameters if name != "backbone"]
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    return entry, {name: draw(VALUES) for name in chosen}


@fuzz
@given(call=calls())
@torch.no_grad()
def test_constructors(call: tuple[ModelEntry, dict[str, Any]]) -> None:
    """Constructors of every architecture, with arguments of any kind.

    Here: a model whose logits are finite, or refused in a sentence
    Others: of 400 random calls a model with finite logits / an assertion or error that refuses values /
        another error, NaN or no end: the public vit-pytorch's `ViT` 53 / 126 / 221, timm's
        `VisionTransformer` 118 / 112 / 170, transformers' `ViTConfig` 48 / 333 / 19
    """
    entry, arguments = call
    model = build_changed(entry, arguments)
    if model is not None:
        assert model(torch.randn(2, model.channels, *model.image_size)).isfinite().all()
