"""Decorrelation Speeds Up Vision Transformers.

K. Carrigg, R. van Gastel, M. Yeghaian, S. Dalm, F. Boughorbel, M. van Gerven 2025, arXiv:2510.14657.

Gradient descent is slow where the inputs of a layer are correlated. Each linear layer gets a square matrix R
in front of its weights, which learns by a rule of its own, beside backpropagation, to decorrelate what enters
(decorrelated backpropagation, S. Dalm et al. 2024, arXiv:2405.02385). Later it is folded into the weights.

Family: training
Differs from the paper: nothing; the variances scale rows of R, as in the equation, and columns in the
authors' code.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers_v01.linear import Linear, linear


class DecorLinear(Linear):
    """A linear layer of decorrelated input: W (R x) + b.

    R starts as the identity. The gradient of W is that of a layer whose input is R x, and gradients pass
    through R on their way down; R itself has none and learns by `update`.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: whether there is a bias.
        lr: size of R's steps.
        kappa: what R strives for: 0 for uncorrelated channels, 1 for channels of variance 1, both in between.
        sample_frac: share of a batch's samples that R learns from, in (0, 1]; at least one.

    Raises:
        ValueError: where a setting is out of range.
    """

    decor: Tensor

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
        if not (lr > 0 and 0 <= kappa <= 1 and 0 < sample_frac <= 1):
            raise ValueError(
                "lr is above 0, kappa in [0, 1] and sample_frac in (0, 1]; "
                f"got {lr}, {kappa} and {sample_frac}"
            )
        super().__init__(in_features, out_features, bias)
        self.lr = lr
        self.kappa = kappa
        self.sample_frac = sample_frac
        self.seen: Tensor | None = None
        self.register_buffer("decor", torch.eye(in_features))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        """Transform every vector by itself; in training, note those that R learns from."""
        if self.training:
            self.seen = self._draw(x.detach())
        return linear(x, self.weight @ self.decor, self.bias)

    def _draw(self, x: Tensor) -> Float[Tensor, "n d"]:
        """Give all vectors of some samples, which are drawn without replacement."""
        if self.sample_frac < 1:
            count = max(1, round(len(x) * self.sample_frac))
            x = x[torch.randperm(len(x), device=x.device)[:count]]
        return x.flatten(0, -2)

    @torch.no_grad()
    def update(self) -> Tensor:
        """Take one step of R: R <- R - lr ((1 - kappa) C + kappa V) R, and forget what was noted.

        With z = R x, C is the mean of z z^T without its diagonal, and V that diagonal less 1
        (arXiv:2405.02385).

        Returns:
            What the step makes smaller, of before it: `((1 - kappa) |C|^2 + kappa |V|^2) / d^2`.

        Raises:
            RuntimeError: where the layer has not run in training mode since its last update.
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
    """The linear layers of a model that `decorrelate` has changed.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def layers(self) -> dict[str, DecorLinear]:
        """The layers by name."""
        return {name: part for name, part in self.model.named_modules() if isinstance(part, DecorLinear)}

    def update(self) -> Tensor:
        """Take one step of every R whose layer has run; to be called once for each step of the optimizer.

        Returns:
            The mean over the layers of what `DecorLinear.update` gives.

        Raises:
            RuntimeError: where none has run in training mode since the last step.
        """
        ran = [layer for layer in self.layers.values() if layer.seen is not None]
        if not ran:
            raise RuntimeError("no decorrelated layer has run in training mode since the last update")
        return torch.stack([layer.update() for layer in ran]).mean()

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """Multiply every R into its weights; the model is then what it was, and computes the same.

        Returns:
            The same model, which has plain linear layers again, with the parameters that it had.
        """
        for layer in self.layers.values():
            layer.weight.copy_(layer.weight @ layer.decor)
        _swap(self.model, {id(layer): _share(layer, Linear) for layer in self.layers.values()})
        return self.model


def decorrelate(
    model: nn.Module,
    pattern: str = ".*",
    *,
    lr: float = 1e-3,
    kappa: float = 0.5,
    sample_frac: float = 1.0,
) -> Decorrelation:
    """Change a model's linear layers into `DecorLinear`, in place; the function stays as it is at first.

    Parameters stay the same objects, so that an optimizer may exist already. Layers whose weights are read
    without the layer being called are left as they are.

    Args:
        model: the model, or a part of it, such as the encoder.
        pattern: regular expression that the whole name of a layer matches.
        lr: see `DecorLinear`.
        kappa: see `DecorLinear`.
        sample_frac: see `DecorLinear`.

    Raises:
        ValueError: where no linear layer matches, or a setting is out of range.
    """
    silent = {
        id(getattr(part, name)) for part in model.modules() for name in getattr(part, "reads_weights", ())
    }
    chosen = [
        part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear)
        and type(part) in (nn.Linear, Linear)
        and id(part) not in silent
        and re.fullmatch(pattern, name)
    ]
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no linear layer whose name matches {pattern!r}")
    settings = {"lr": lr, "kappa": kappa, "sample_frac": sample_frac}
    _swap(model, {id(part): _share(part, DecorLinear, **settings) for part in chosen})
    return Decorrelation(model)


def _share(layer: nn.Linear, kind: type[Linear], **settings: Any) -> Linear:
    """Make a layer of another kind that has the same parameters."""
    made = kind(layer.in_features, layer.out_features, layer.bias is not None, **settings).to(layer.weight)
    made.weight = layer.weight
    made.bias = layer.bias
    return made.train(layer.training)


def _swap(model: nn.Module, layers: dict[int, Linear]) -> None:
    """Put layers in place of others, wherever these stand."""
    for part in list(model.modules()):
        for name, child in list(part.named_children()):
            if id(child) in layers:
                setattr(part, name, layers[id(child)])
