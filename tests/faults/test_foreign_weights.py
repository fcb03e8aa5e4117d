"""Weights of other programs load as what they are, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vit_pytorch.pretrained.load import load_pretrained
from vit_pytorch.vit import ViT

State = dict[str, Tensor]


def make() -> ViT:
    torch.manual_seed(0)
    return ViT(image_size=32, patch_size=4, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=32)


@pytest.fixture
def state() -> State:
    return {name: torch.randn_like(tensor) for name, tensor in make().state_dict().items()}


def one(change: Callable[[Tensor], Any]) -> Callable[[State], dict[Any, Any]]:
    """Change one of the matrices."""
    name = "blocks.1.feedforward.to_out.weight"
    return lambda state: {**state, name: change(state[name])}


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            one(Tensor.to_sparse),
            r"must be dense tensors, they are not in blocks\.1\.feedforward\.to_out\.weight",
        ),
        (one(Tensor.to_sparse_csr), "must be dense tensors"),
        (one(lambda tensor: torch.nested.nested_tensor([tensor])), "must be dense tensors"),
        (one(lambda tensor: tensor.to("meta")), r"must have values, there are none .* in blocks\.1"),
        (one(lambda tensor: tensor.to(torch.complex64)), r"got .*to_out\.weight \(torch\.complex64\)"),
        (one(lambda tensor: tensor[:0]), "missing .*blocks.1.feedforward.to_out.weight"),
        (lambda state: {**state, 3: torch.ones(2)}, "names must be strings, got 3"),
        (lambda state: {**state, "scaler": torch.tensor(65536.0)}, r"left over \(1\): scaler"),
        (lambda state: {"model": state, "ema": state}, "several state dicts, pass key= one of model, ema"),
        (lambda state: 3, "a checkpoint is a path, .* got 3"),
    ],
)
def test_state_dicts_that_hold_something_else(
    change: Callable[[State], Any], message: str, state: State
) -> None:
    """Sparse, nested, complex and empty tensors, such without values, and names that are none, among weights.

    Here: refused by name, and no weight of the model has changed
    Others: timm's `load_checkpoint` takes complex weights, and of a model and its average the average,
        without a word; sparse, empty and valueless ones end in a `RuntimeError` after 31 of 32 weights were
        replaced
    """
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_pretrained(model, change(state))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float32, 1e300), (torch.float16, 7e4), (torch.bfloat16, 3.4e38)]
)
def test_weights_beyond_the_range_of_the_model(dtype: torch.dtype, value: float, state: State) -> None:
    """Weights in double precision that are infinite in the model's, as 1e300 in float32 and 70000 in float16.

    Here: refused, with the weight and its size
    Others: timm's `load_checkpoint`, and PyTorch's `load_state_dict`: infinite weights without a word
    """
    model = make().to(dtype)
    state = {name: tensor.double() for name, tensor in state.items()}
    state["head.weight"][0, 0] = -value
    with pytest.raises(ValueError, match=rf"range of the model's {dtype}, .*head\.weight reaches "):
        load_pretrained(model, state)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("blocks.0.", "blocks.0._orig_mod."),
        lambda name: f"_fsdp_wrapped_module.{name.replace('blocks.1.', 'blocks.1._fsdp_wrapped_module.')}",
        lambda name: name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."),
    ],
)
def test_names_of_wrappers(rename: Callable[[str], str], state: State) -> None:
    """Names that `torch.compile` of single blocks, FSDP and activation checkpointing put between others.

    Here: loaded; refused where weights stand there both with and without them
    Others: timm's `load_checkpoint` takes `_orig_mod.` in front of all names; between them it ends in a
        `RuntimeError` after 20 of 32 weights were replaced
    """
    model = make()
    load_pretrained(model, {rename(name): tensor for name, tensor in state.items()})
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    twice = {**state, "blocks.0._orig_mod.norm1.weight": torch.zeros(16)}
    with pytest.raises(ValueError, match="holds weights twice"):
        load_pretrained(model, twice)


@pytest.mark.parametrize(
    ("part", "count"),
    [
        ("", r"31 of its 32"),
        ("head.", r"2 of its 32"),
        ("blocks.1.", r"12 of its 32"),
        ("patch_embed.proj.weight", "1 of its 32"),
    ],
)
def test_a_prefix_before_some_of_the_names(part: str, count: str, state: State) -> None:
    """Names of which only a part begins with `module.`, as where two programs have written a file.

    Here: refused, with the prefix and how many names begin with it
    """
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mixed = {
        f"module.{name}" if name.startswith(part) and name != "norm.bias" else name: tensor
        for name, tensor in state.items()
    }
    with pytest.raises(ValueError, match=rf"it fits without 'module\.', with which {count} names begin"):
        load_pretrained(model, mixed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
