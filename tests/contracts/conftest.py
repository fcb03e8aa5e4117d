"""The models that the contracts run over: tiny ones of every setting in the registry, and further options.

A contract is a test function here that takes `entry` or `model`; its name without `test_` is what
`ModelEntry.exceptions` calls it. An exception that is called as several names begin (`recorder`, for
`recorder_maps` and its like) is one from all of them. A model that is excepted must fail, or the exception is
out of date.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.slow import REPRESENTATIVE
from vit_pytorch import list_models
from vit_pytorch.base import VisionModel
from vit_pytorch.registry import ModelEntry, find_entry
from vit_pytorch.registry.entry import NO_BATCH

OPTIONS = {
    "conv_registers": {
        "stem": "conv",
        "pool": "mean",
        "class_token": True,
        "num_registers": 3,
        "positions": {"kind": "learned", "class_token": False},
        "head": {"kind": "linear", "norm": True},
        "layer_scale": 1e-5,
    },
    "map_qk_norm": {"pool": "map", "qk_norm": True, "qkv_bias": False, "stem": "dual_norm", "act": "silu"},
    "relative_both_pools": {
        "positions": "relative",
        "pool": "cls+mean",
        "num_registers": 2,
        "attention": {"kind": "multi_head", "scale": 0.4},
        "image_size": (32, 48),
    },
    # The last layer's bias counts where patches are pooled.
    "relative_by_layer": {
        "positions": "learned_2d+relative_by_layer",
        "pool": "mean",
        "class_token": True,
    },
    "mixed_patch_dropout": {
        "positions": "sincos+rope_mixed",
        "patch_dropout": 0.25,
        "num_registers": 4,
        "qk_norm": True,
    },
    "prenorm_no_positions": {
        "positions": "none",
        "stem": {"kind": "linear", "pre_norm": True},
        "head": {"kind": "linear", "hidden_dim": 20, "zero_init": True},
        "act": "quickgelu",
        "image_size": (32, 48),
        "out_bias": False,
    },
    "values_hyper_connections": {
        "value_residual": "gated",
        "hyper_connections": 2,
        "norm": "zero_centered",
        "positions": "rope",
    },
}


EXCEPTIONS: dict[str, dict[str, str]] = {
    "relative_both_pools": NO_BATCH,
    "relative_by_layer": NO_BATCH,
    "map_qk_norm": NO_BATCH,
    "mixed_patch_dropout": {
        **NO_BATCH,
        "feature_extractor_of_torchvision": "torchvision warns that the graph in training drops patches",
    },
    "values_hyper_connections": {
        "gradients_per_sample": "connections own parameters beside modules that own some",
        "grad_cam": "the output of a block is several streams",
    },
}


@cache
def cases() -> list[ModelEntry]:
    """Choose tiny models that have, together, every setting that models of their architecture have.

    Those of `make test` and the further options come first, then each time the model that adds most.
    """
    plain = find_entry("vit_tiny_patch16_224")
    entries = [find_entry(name) for name in list_models()]
    found = [entry for entry in entries if entry.name in REPRESENTATIVE]
    found += [
        replace(plain, name=name, tiny={**plain.tiny, **tiny}, exceptions=EXCEPTIONS.get(name, {}))
        for name, tiny in OPTIONS.items()
    ]
    settings = {entry.name: settings_of(entry) for entry in (*entries, *found)}
    seen = set().union(*(settings[entry.name] for entry in found))
    while True:
        most = max(entries, key=lambda entry: len(settings[entry.name] - seen))
        if settings[most.name] <= seen:
            return found
        found.append(most)
        seen |= settings[most.name]


def settings_of(entry: ModelEntry) -> set[tuple[type, str, str]]:
    """Return the settings of a tiny model; all numbers but zero are one."""
    config = {**entry.config, **entry.tiny}
    return {
        (entry.architecture, name, json.dumps(without_numbers(value), sort_keys=True))
        for name, value in config.items()
    }


def without_numbers(value: Any) -> Any:
    """Return a setting with all numbers but zero alike."""
    if isinstance(value, Mapping):
        return {key: without_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_numbers(item) for item in value]
    return bool(value) if type(value) in (int, float) else value


def excepts(exception: str, contract: str) -> bool:
    """Return whether an exception is one from a contract: by its name, or by how that begins."""
    return f"{contract}_".startswith(f"{exception}_")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "entry" not in metafunc.fixturenames:
        return
    contract = metafunc.function.__name__.removeprefix("test_")
    params = []
    for entry in cases():
        reason = next((why for name, why in entry.exceptions.items() if excepts(name, contract)), None)
        marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
        params.append(pytest.param(entry, id=entry.name, marks=marks))
    metafunc.parametrize("entry", params, scope="module")


@torch.no_grad()
def randomize_(model: nn.Module) -> nn.Module:
    """Move every parameter and statistic off the values at which it would not be noticed: zeros and ones."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def build(entry: ModelEntry) -> Callable[..., VisionModel]:
    """Build the tiny model, with some arguments changed, with random parameters, in eval."""
    return lambda **overrides: randomize_(entry.build(**{**entry.tiny, **overrides})).eval()


@pytest.fixture
def model(build: Callable[..., VisionModel]) -> VisionModel:
    return build()


@pytest.fixture
def images(model: VisionModel) -> Tensor:
    """Three images of the largest size that the model takes."""
    return torch.randn(3, model.channels, *model.image_size)
