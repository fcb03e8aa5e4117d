"""References: random weights that hide nothing, inputs, and what other programs have computed already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and statistic so that none is trivially zero or one; put the model in eval."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = name.endswith(("norm.weight", "lambda1")) or "gamma" in name
            norm = parameter.ndim == 1 and name.endswith("weight")
            if scale or norm:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif parameter.ndim == 1:
                parameter.normal_(0, 0.1, generator=generator)
            elif parameter.ndim == 3 or "pos" in name or ("token" in name and parameter.ndim < 4):
                parameter.normal_(0, 0.2, generator=generator)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def settle(model: nn.Module, x: Tensor) -> nn.Module:
    """Give batch norms the statistics of a batch, as trained models have them, and put the model in eval.

    With random statistics maps grow from block to block, and rounding with them.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def images(*size: int, batch: int = 2, seed: int = 1) -> Tensor:
    """Draw pictures of three channels."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def read_golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Give a reference's arguments, its weights, and the other tensors, such as input and output."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    weights = {key.removeprefix("weights/"): t for key, t in tensors.items() if key.startswith("weights/")}
    return config, weights, {key: t for key, t in tensors.items() if not key.startswith("weights/")}
