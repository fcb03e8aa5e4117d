"""Decorrelation Speeds Up Vision Transformers.

K. Carrigg, R. van Gastel, M. Yeghaian, S. Dalm, F. Boughorbel, M. van Gerven 2025, arXiv:2510.14657.

Gradient descent is slow where the inputs of a layer are correlated. Each linear layer gets a square matrix R
before its weights, which learns, by a rule of its own and not by backpropagation, to decorrelate its inputs
(decorrelated backpropagation, S. Dalm et al. 2024, arXiv:2405.02385). Later it is folded into the weights.

Family: training
Differs from the paper: nothing; the variances scale rows of R, as in the equation, and columns in the
authors' code.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers.arguments import checks_arguments


class DecorLinear(nn.Linear):
    """A linear layer of decorrelated input: W (R x) + b.

    R starts as the identity. The gradient of W is that of a layer whose input is R x, and gradients pass
    through R to the input; R itself has none and learns by `update`.

    It is a subclass of `nn.Linear`, the only one of this package, because the method replaces linear layers:
    its parameters keep their names and stay the same objects, for existing state dicts and optimizers.

    Args:
        in_features: dimension of the input.
        out_features: dimension of the output.
        lr: step size of R.
        kappa: goal of R: 0 for uncorrelated channels, 1 for channels of variance 1, both in between.
        sample_frac: share of a batch's samples that R learns from, in (0, 1]; at least one sample.

    Raises:
        ValueError: if a setting is out of range.
    """

    decor: Tensor

    @checks_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        lr: float = 1e-3,
        kappa: float = 0.5,
        sample_frac: float = 1.0,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.lr = lr
        self.kappa = kappa
        self.sample_frac = sample_frac
        self.seen: Tensor | None = None
        self.register_buffer("decor", torch.eye(in_features))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        """Transform each vector on its own; in training, keep those that R learns from."""
        if self.training:
            self.seen = self._draw(x.detach())
        return F.linear(x, self.weight @ self.decor, self.bias)

    def _draw(self, x: Tensor) -> Float[Tensor, "n d"]:
        """Return all vectors of some samples, which are drawn without replacement."""
        if self.sample_frac < 1:
            count = max(1, round(len(x) * self.sample_frac))
            x = x[torch.randperm(len(x), device=x.device)[:count]]
        return x.flatten(0, -2)

    @torch.no_grad()
    def update(self) -> Tensor:
        """Take one step of R: R <- R - lr ((1 - kappa) C + kappa V) R, and forget the inputs.

        With z = R x, C is the mean of z z^T without its diagonal, and V that diagonal less 1
        (arXiv:2405.02385).

        Returns:
            The loss before the step: `((1 - kappa) |C|^2 + kappa |V|^2) / d^2`.

        Raises:
            RuntimeError: if the layer has not run in training mode since its last update.
        """
        if self.seen is None:
            raise RuntimeError(
                "R learns from a forward pass in training mode, and there was none since its last step"
            )
        z = self.seen.to(self.decor) @ self.decor.T
        self.seen = None
        moments = z.T @ z / len(z)
        excess = moments.diagonal() - 1
        weighted = (1 - self.kappa) * (moments - moments.diagonal().diag()) + self.kappa * excess.diag()
        self.decor -= self.lr * weighted @ self.decor
        apart = moments.square().sum() - moments.diagonal().square().sum()
        return ((1 - self.kappa) * apart + self.kappa * excess.square().sum()) / self.in_features**2

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "seen": None}

    def extra_repr(self) -> str:
        """Show the settings when printed."""
        return f"{super().extra_repr()}, lr={self.lr}, kappa={self.kappa}, sample_frac={self.sample_frac}"


class Decorrelation:
    """The decorrelated linear layers of a model, as `decorrelate` returns them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def layers(self) -> dict[str, DecorLinear]:
        """The layers by name."""
        return {name: part for name, part in self.model.named_modules() if isinstance(part, DecorLinear)}

    def update(self) -> Tensor:
        """Take one step of each R whose layer has run; to be called once per step of the optimizer.

        Returns:
            The mean loss of the layers, see `DecorLinear.update`.

        Raises:
            RuntimeError: if none has run in training mode since the last step.
        """
        ran = [layer for layer in self.layers.values() if layer.seen is not None]
        if not ran:
            raise RuntimeError("no decorrelated layer has run in training mode since the last update")
        return torch.stack([layer.update() for layer in ran]).mean()

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """Multiply each R into its weights; the outputs do not change.

        Returns:
            The same model, which has plain linear layers again, with the parameters that it had.
        """
        for layer in self.layers.values():
            layer.weight.copy_(layer.weight @ layer.decor)
        _swap(self.model, {id(layer): _share(layer, nn.Linear) for layer in self.layers.values()})
        return self.model


def decorrelate(
    model: nn.Module, pattern: str = ".*", *, lr: float = 1e-3, kappa: float = 0.5, sample_frac: float = 1.0
) -> Decorrelation:
    """Replace a model's linear layers by `DecorLinear`, in place; the outputs do not change at first.

    Parameters stay the same objects, so that an optimizer may exist already.

    Args:
        model: the model, or a part of it, such as its blocks.
        pattern: regular expression that the whole name of a layer matches.

    Raises:
        ValueError: if no linear layer matches, or a setting is out of range.
    """
    chosen = [
        part
        for name, part in model.named_modules()
        if type(part) is nn.Linear and re.fullmatch(pattern, name)
    ]
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no linear layer whose name matches {pattern!r}")
    settings = {"lr": lr, "kappa": kappa, "sample_frac": sample_frac}
    _swap(model, {id(part): _share(part, DecorLinear, **settings) for part in chosen})
    return Decorrelation(model)


def _share(layer: nn.Linear, kind: type[nn.Linear], **settings: Any) -> nn.Linear:
    """Build a layer of another kind that has the same parameters."""
    made = kind(layer.in_features, layer.out_features, layer.bias is not None, **settings).to(layer.weight)
    made.weight = layer.weight
    made.bias = layer.bias
    return made.train(layer.training)


def _swap(model: nn.Module, layers: dict[int, nn.Linear]) -> None:
    """Replace layers by others, wherever they are; keys are ids."""
    for part in list(model.modules()):
        for name, child in list(part.named_children()):
            if id(child) in layers:
                setattr(part, name, layers[id(child)])
