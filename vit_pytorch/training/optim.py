"""Optimizers and schedules: which parameter decays, how fast each layer learns, and when."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer

from vit_pytorch.training.muon import Muon, hidden_matrices

_SAME_AS_BEFORE = 99999


@runtime_checkable
class HasNoWeightDecay(Protocol):
    """A model that names parameters which weight decay must leave alone, such as tokens and positions."""

    def no_weight_decay(self) -> set[str]:
        """Full names of the parameters."""


@runtime_checkable
class HasGroupMatcher(Protocol):
    """A model that says which of its parameters belong to which layer, in timm's notation."""

    def group_matcher(self, coarse: bool = False) -> Mapping[str, Any]:
        """Regular expressions by group, from the input to the output."""


@runtime_checkable
class HasUnitWeights(Protocol):
    """A model whose weights are put back on a sphere behind every step of the optimizer."""

    def normalize_weights(self) -> None:
        """Scale the weights' vectors to length 1."""


def check_decay(name: str, decay: float, lr: float) -> None:
    """Check that a weight decay is not negative, and leaves something of the weights at each step.

    Raises:
        ValueError: It is, or takes all of them: a step multiplies weights by 1 - lr * decay.
    """
    if not 0 <= decay * lr < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1 / lr = {1 / lr:g}, got {decay}")


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights are updated.

    Args:
        name: ``adamw``, ``sgd`` (with Nesterov momentum) or ``muon``, which orthogonalises the steps of
            matrices and leaves the rest to AdamW; see :class:`~vit_pytorch.training.muon.Muon`.
        lr: Learning rate at the end of warm-up, at most 100.
        weight_decay: Decoupled decay for AdamW and Muon, L2 for SGD, below 1 / lr. Norms, biases, tokens and
            positions have none.
        betas: AdamW's decay rates of the first and second moment.
        eps: AdamW's term against division by zero, in (0, 1].
        momentum: Momentum of SGD and Muon; 0.9 and 0.95 if left out.
        layer_decay: Factor in (0, 1] from one layer to the one below it, applied to the learning rate.
    """

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float | None = None
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.lr <= 100:
            raise ValueError(f"lr must be in (0, 100], got {self.lr}")
        check_decay("weight_decay", self.weight_decay, self.lr)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        if not 0 < self.eps <= 1:
            raise ValueError(f"eps must be in (0, 1], got {self.eps}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], got {self.layer_decay}")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves: a linear warm-up, then half a cosine down to `min_lr`.

    Args:
        warmup_epochs: Length of the warm-up, in epochs; fractions count.
        min_lr: Learning rate at the end, for parameters whose rate no layer decay scales.
    """

    warmup_epochs: float = 5.0
    min_lr: float = 1e-5

    def __post_init__(self) -> None:
        if not self.warmup_epochs >= 0:
            raise ValueError(f"warmup_epochs must not be negative, got {self.warmup_epochs}")
        if not self.min_lr >= 0:
            raise ValueError(f"min_lr must not be negative, got {self.min_lr}")


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float | None = None,
    matrices: Set[str] | None = None,
) -> list[dict[str, Any]]:
    """Sort a model's trainable parameters into groups for an optimizer.

    Norms, biases and every other parameter with at most one dimension have no weight decay, nor have those
    that ``no_weight_decay()`` of the model, or of a model inside it, names. Parameters that a layer lists in
    ``decayed`` have it all the same: the gains of :class:`~vit_pytorch.layers.norm.ZeroCenteredLayerNorm`.
    With `layer_decay`, each layer of the model's ``group_matcher()`` gets
    ``lr * layer_decay ** (number of layers above it)``.

    Args:
        model: The model.
        lr: Learning rate of the uppermost layer.
        weight_decay: Weight decay of matrices and convolution kernels.
        layer_decay: Factor from one layer to the one below.
        matrices: Names of parameters that get groups of their own, marked by ``matrices``.

    Returns:
        Groups with ``params``, ``lr`` and ``weight_decay``, and ``matrices`` if given; each trainable
        parameter is in exactly one.

    Raises:
        ValueError: If nothing is trainable, or if the model has no ``group_matcher`` for a `layer_decay`.
    """
    exempt = {
        f"{part}.{name}" if part else name
        for part, module in model.named_modules()
        if isinstance(module, HasNoWeightDecay)
        for name in module.no_weight_decay()
    }
    decayed = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in getattr(module, "decayed", ())
    }
    scales = layer_scales(model, layer_decay) if layer_decay is not None else {}
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = name in decayed or (parameter.ndim > 1 and name not in exempt)
            is_matrix = matrices is not None and name in matrices
            groups[scales.get(name, 1.0), decays, is_matrix].append(parameter)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameter")
    return [
        {
            "params": parameters,
            "lr": lr * scale,
            "weight_decay": weight_decay if decays else 0.0,
            **({} if matrices is None else {"matrices": is_matrix}),
        }
        for (scale, decays, is_matrix), parameters in groups.items()
    ]


def layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Factor of each parameter's learning rate under layer-wise decay (Clark et al. 2020; Bao et al. 2021).

    Layers are numbered from the input; what no pattern of the model's ``group_matcher`` matches, such as the
    head, is the uppermost layer with factor 1.

    Raises:
        ValueError: If the model has no ``group_matcher``, or one that captures anything but numbers.
    """
    if not isinstance(model, HasGroupMatcher):
        raise ValueError(
            f"layer-wise decay needs a model with group_matcher(), {type(model).__name__} has none"
        )
    patterns: list[tuple[re.Pattern[str], tuple[float, ...], tuple[float, ...]]] = []
    for ordinal, spec in enumerate(model.group_matcher(coarse=False).values()):
        for pattern, suffix in [(spec, None)] if isinstance(spec, str) else spec:
            patterns.append((re.compile(pattern), (ordinal,), tuple(suffix or ())))

    keys: dict[str, tuple[float, ...]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        keys[name] = (math.inf,)
        for regex, prefix, suffix in patterns:
            if match := regex.match(name):
                captured = [group for group in match.groups() if group is not None]
                if not all(group.isdecimal() for group in captured):
                    raise ValueError(
                        f"group_matcher() captures numbers of layers, but {regex.pattern!r} captures "
                        f"{captured} in {name!r}"
                    )
                keys[name] = prefix + tuple(map(float, captured)) + suffix
                break
    layers: dict[tuple[float, ...], int] = {}
    layer = -1
    for key in sorted(set(keys.values())):
        if layer < 0 or key[-1] != _SAME_AS_BEFORE:
            layer += 1
        layers[key] = layer
    return {name: layer_decay ** (layer - layers[key]) for name, key in keys.items()}


def make_optimizer(model: nn.Module, config: OptimizerConfig, *, scaled: bool = False) -> Optimizer:
    """Build the optimizer that a configuration describes over a model's parameter groups.

    AdamW takes one fused step over all parameters where PyTorch can do that. Behind each step, the weights of
    a model that has `normalize_weights` are put back on their sphere.

    Args:
        model: Whose parameters are trained.
        config: How.
        scaled: Whether a gradient scaler is at work (fp16): a fused step would undo the scaling by itself,
            after the gradients were clipped.
    """
    groups = parameter_groups(
        model,
        lr=config.lr,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        matrices=hidden_matrices(model) if config.name == "muon" else None,
    )
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = not scaled and all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    given = {} if config.momentum is None else {"momentum": config.momentum}
    optimizer: Optimizer
    if config.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
    elif config.name == "muon":
        optimizer = Muon(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused, **given)
    elif config.name == "sgd":
        momentum = given.get("momentum", 0.9)
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=momentum > 0)
    else:
        raise ValueError(f"optimizer must be 'adamw', 'sgd' or 'muon', got {config.name!r}")
    optimizer.register_load_state_dict_pre_hook(_check_shapes)
    if isinstance(model, HasUnitWeights):
        normalize_after_steps(optimizer, model)
    return optimizer


def normalize_after_steps(optimizer: Optimizer, model: HasUnitWeights) -> None:
    """Put a model's weights back on their sphere after each step of an optimizer."""
    optimizer.register_step_post_hook(lambda *_: model.normalize_weights())


def _check_shapes(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Check that the state of each parameter has its shape: fused kernels read past the end of a smaller one.

    States are numbered, so that those of a model whose parameters stand in another order would go astray.

    Raises:
        ValueError: if one has another shape.
    """
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, number in zip(group["params"], saved["params"], strict=True):
            for name, value in state["state"].get(number, {}).items():
                plain = type(value) is torch.Tensor and type(parameter.data) is torch.Tensor
                if plain and value.ndim and value.shape != parameter.shape:
                    raise ValueError(
                        f"the optimizer's {name} of parameter {number} must have shape "
                        f"{tuple(parameter.shape)}, got {tuple(value.shape)}: it belongs to another model"
                    )


@dataclass(frozen=True)
class WarmupCosine:
    """Course of the learning rate over a training, a function of the step alone.

    Args:
        lr: full learning rate
        min_lr: learning rate at the end of the cosine
        warmup: steps of linear warm-up; the last of them has the full rate
        total: steps of the whole training

    Raises:
        ValueError: if the warm-up is longer than the training, or `min_lr` exceeds `lr`
    """

    lr: float
    min_lr: float
    warmup: int
    total: int

    def __post_init__(self) -> None:
        if self.warmup > self.total:
            raise ValueError(
                f"the warm-up of {self.warmup} steps is longer than the training of {self.total} steps"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr must not exceed lr = {self.lr}, got {self.min_lr}")

    def __call__(self, step: int) -> float:
        """Return the factor of every group's learning rate at a step, from 0.

        It is `(step + 1) / warmup` during warm-up, then `floor + (1 - floor) * (1 + cos(pi * done)) / 2`
        with `floor = min_lr / lr`.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        floor = self.min_lr / self.lr
        return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
