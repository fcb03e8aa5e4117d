"""Constructors given anything build a model whose logits are finite, or refuse in a sentence."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from inspect import signature
from typing import Any

import numpy as np
import pytest
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


METHODS: dict[str, tuple[int, Callable[..., Any]]] = {
    "reset_classifier": (2, lambda model, *args: model.reset_classifier(*args)),
    "set_input_size": (1, lambda model, *args: model.set_input_size(*args)),
    "forward_intermediates": (1, lambda model, *args: model.forward_intermediates(images_for(model), *args)),
    "get_intermediate_layers": (
        1,
        lambda model, *args: model.get_intermediate_layers(images_for(model), *args),
    ),
    "prune_intermediate_layers": (1, lambda model, *args: model.prune_intermediate_layers(*args)),
    "forward": (1, lambda model, *args: model(*args)),
}
# what comes from NumPy and PyTorch, and looks like a number or an image
ALMOST = [
    *(np.int64(4), np.float32(0.1), np.bool_(True), np.array(4), np.array([8, 8]), Fraction(1, 2)),
    *(torch.tensor(4), torch.tensor([8, 8]), torch.zeros(1, 3, 8, 8).to_sparse(), np.zeros((1, 3, 8, 8))),
]


def images_for(model: Any) -> torch.Tensor:
    return torch.randn(2, model.channels, *model.image_size)


@pytest.mark.filterwarnings("ignore")
@fuzz
@given(
    entry=st.sampled_from(cases()),
    name=st.sampled_from(list(METHODS)),
    values=st.lists(st.one_of(VALUES, st.sampled_from(ALMOST)), min_size=2, max_size=2),
)
@torch.no_grad()
def test_methods(entry: ModelEntry, name: str, values: list[Any]) -> None:
    """Another classifier, input size, layers or input of any model, given anything.

    Here: done, and the logits are finite; or refused in a sentence, and the model is as it was
    Others: timm's `VisionTransformer` takes -1 classes for none and an input size of 0; 0.5 classes, a word
        for the layers and a NumPy array as images end in a `TypeError`
    """
    model = build_changed(entry, {})
    assert model is not None
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    count, call = METHODS[name]
    try:
        call(model, *values[:count])
    except ValueError:
        after = model.state_dict()
        assert list(after) == list(state)
        assert all(torch.equal(after[key], tensor) for key, tensor in state.items())
    output = model(images_for(model))
    assert all(part.isfinite().all() for part in (output if isinstance(output, (list, tuple)) else [output]))
