"""What loading is measured with: a checkpoint, our model, and what the reference computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from references import images, randomise, read_golden
from safetensors.torch import load_file
from torch import Tensor, nn

from vit_pytorch.create import architectures, create_model
from vit_pytorch.pretrained import load_pretrained, to_format
from vit_pytorch.pretrained.rules import Reference
from vit_pytorch.pretrained.source import Checkpoint

Build = Callable[[], nn.Module]
VIT = {"image_size": 48, "patch_size": 8, "num_classes": 7, "dim": 48, "depth": 2, "heads": 3}
VIT_OURS = {**VIT, "dim_head": 16, "mlp_dim": 192}
VIT_TIMM = {"img_size": 48, "patch_size": 8, "num_classes": 7, "embed_dim": 48, "depth": 2, "num_heads": 3}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A checkpoint, the model of ours that takes it, and what the reference computes with it.

    Args:
        format: the format that the checkpoint must be recognised as.
        reference: the program and its model.
        build: makes ours.
        checkpoint: the reference's weights.
        inputs: what both are given.
        outputs: what the reference gives for it.
        call: what is asked of ours; its logits, as a rule.
        other: the reference itself, where it can be run.
        call_other: what is asked of it.
    """

    format: str
    reference: str
    build: Build
    checkpoint: Checkpoint
    inputs: Any
    outputs: Tensor
    call: Callable[[Any, Any], Tensor] = lambda model, inputs: model(inputs)
    other: nn.Module | None = None
    call_other: Callable[[Any, Any], Tensor] = lambda other, inputs: logits_of(other(inputs))


def logits_of(output: Any) -> Tensor:
    """Return the logits, which transformers' models wrap."""
    return getattr(output, "logits", output)


def ours(architecture: str, /, **arguments: Any) -> Build:
    """Name one of our models by its class."""
    return partial(architectures()[architecture], **arguments)


def named(name: str, **overrides: Any) -> Build:
    """Name one of our models by its name."""
    return partial(create_model, name, **overrides)


def theirs(module: str, name: str, *args: Any, **arguments: Any) -> nn.Module:
    """Build another program's model with random weights."""
    torch.manual_seed(0)
    return randomise(getattr(import_module(module), name)(*args, **arguments))


def config_of(name: str, /, **arguments: Any) -> Any:
    """Make a configuration of transformers."""
    return getattr(import_module("transformers"), name)(**arguments)


def against(format: str, reference: str, build: Build, other: nn.Module, *size: int, **call: Any) -> Case:
    """Compare with a model in memory; of transformers' output the logits are taken."""
    inputs = images(*size)
    return Case(
        format=format,
        reference=reference,
        build=build,
        checkpoint=other.state_dict(),
        inputs=inputs,
        outputs=logits_of(other(inputs)),
        other=other,
    )


def saved(format: str, reference: str, build: Build, other: Any, size: int) -> Case:
    """Compare with a model of transformers, whose files have other names than the model itself."""
    with TemporaryDirectory() as folder:
        other.save_pretrained(folder)
        written = load_file(Path(folder) / "model.safetensors")
    return replace(against(format, reference, build, other, size, size), checkpoint=written)


def beside(architecture: str, reference: Reference) -> Case:
    """Compare with the model of another library that stands beside a table."""
    build = ours(architecture, **reference.ours)
    module, _, name = reference.name.rpartition(".")
    other = theirs(module, name, **reference.theirs)
    label = f"{module.partition('.')[0]} `{name}`"
    return against(reference.format, label, build, other, *build().image_size)  # type: ignore[misc]


def golden(format: str, reference: str, name: str, build: Callable[[dict[str, Any]], Build]) -> Case:
    """Compare with what a program computed that is not installed."""
    config, weights, tensors = read_golden(name)
    return Case(
        format=format,
        reference=reference,
        build=build(config),
        checkpoint=weights,
        inputs=tensors["input"],
        outputs=tensors["output"],
    )


def random_model(build: Build) -> nn.Module:
    torch.manual_seed(0)
    model = build()
    randomise(model)
    return model


def through_timms_reader(format: str, reference: str, build: Build, other: nn.Module, size: int) -> Case:
    """Compare with timm's model, whose own reader translates the authors' names."""
    written = to_format(random_model(build), format)
    read = import_module(type(other).__module__).checkpoint_filter_fn(dict(written), other)
    other.load_state_dict(read, strict=True)
    return replace(against(format, reference, build, other, size, size), checkpoint=written)


def renamed(format: str, reference: str, build: Build, other: nn.Module, size: int) -> Case:
    """Compare with timm's model, whose weights are written under the authors' names."""
    model = build()
    load_pretrained(model, other.state_dict())
    return replace(against(format, reference, build, other, size, size), checkpoint=to_format(model, format))
