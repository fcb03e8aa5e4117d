"""Constructors given anything build a model whose logits are finite, or refuse in a sentence."""

from __future__ import annotations

import warnings
from contextlib import suppress
from inspect import signature
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.contracts.conftest import cases
from tests.contracts.test_arguments import INSTEAD, build_changed
from tests.faults.test_fuzz_files import fuzz
from tests.papers.test_public_systems import SYSTEMS, System, classified
from vit_pytorch.registry import ModelEntry

# of each architecture; those of which there are no named models come from their own tests
KINDS: dict[type, ModelEntry | System] = {entry.architecture: entry for entry in reversed(cases())}
KINDS |= {type(found.build()): found for found in SYSTEMS.values()}
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
def calls(draw: st.DrawFn) -> tuple[type, dict[str, Any]]:
    """One of the architectures, and one to three arguments of it."""
    kind = draw(st.sampled_from(list(KINDS)))
    given = signature(kind).parameters.values()
    names = [each.name for each in given if each.name != "backbone" and each.kind is not each.VAR_KEYWORD]
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    return kind, {name: draw(VALUES) for name in chosen}


def build(kind: ModelEntry | System, arguments: dict[str, Any]) -> Any:
    """Build a small model with some arguments changed; None if it is refused."""
    if isinstance(kind, ModelEntry):
        return build_changed(kind, arguments)
    with suppress(ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind.build(**arguments).eval()
    return None


@fuzz
@given(call=calls())
@torch.no_grad()
def test_constructors(call: tuple[type, dict[str, Any]]) -> None:
    """Constructors of every architecture, with arguments of any kind.

    Here: a model whose logits are finite, or refused in a sentence
    Others: of 400 random calls a model with finite logits / an assertion or error that refuses values /
        another error, NaN or no end: the public vit-pytorch's `ViT` 53 / 126 / 221, timm's
        `VisionTransformer` 118 / 112 / 170, transformers' `ViTConfig` 48 / 333 / 19
    """
    kind, arguments = call
    model = build(KINDS[kind], arguments)
    if model is not None:
        output = model(torch.randn(2, model.channels, *model.image_size))
        found = KINDS[kind]
        assert (output if isinstance(found, ModelEntry) else classified(found, output)).isfinite().all()
