"""What parity tests share: random weights that hide nothing, and the comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from tests.tolerances import PARITY
from vit_pytorch.pretrained import load_pretrained, to_format
from vit_pytorch.training.optim import parameter_groups

__all__ = [
    "TOLERANCE",
    "TOLERANCES",
    "check_gradients",
    "check_layer_decay",
    "check_steps",
    "difference",
    "images",
    "randomise",
    "settle",
    "shapes_only",
]

TOLERANCE = PARITY
TOLERANCES = {torch.float32: PARITY, torch.float64: 1e-10}
# what gives a tensor values, in place
FILLS = {
    *(Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.clamp_),
    *(Tensor.mul_, Tensor.add_, Tensor.fill_, Tensor.zero_),
}


class WithoutValues(TorchFunctionMode):
    """Initialisation does nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in FILLS:
            return args[0]
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Context manager: build models on the device "meta", where initialisation takes most of the time."""
    with torch.device("meta"), WithoutValues():
        yield


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and statistic so that none is trivially zero or one; put the model in eval."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = name.endswith(("norm.weight", "lambda1", ".scale")) or "gamma" in name
            norm = parameter.ndim == 1 and name.endswith("weight")
            if name.endswith("logit_scale"):
                # the logarithm of a factor on cosines
                parameter.uniform_(1.5, 3.0, generator=generator)
            elif scale or norm:
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


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Give the largest difference, of outputs that are not trivial."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05
    return (ours - theirs).abs().max().item()


def written(model: nn.Module, values: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Give values by our names of parameters under the names of a format, which the model takes."""
    for name, parameter in model.named_parameters():
        parameter.data.copy_(values[name])
    return to_format(model, layout)


def check_gradients(model: nn.Module, reference: nn.Module, x: Tensor, layout: str) -> None:
    """Check that two models of equal weights have equal gradients; changes ours."""
    for net in (model, reference):
        net(x).square().sum().backward()
    ours = written(model, {name: p.grad for name, p in model.named_parameters()}, layout)
    for name, parameter in reference.named_parameters():
        # The gradient of what adds the same to all scores of a query is rounding alone.
        close = 1e-5 * parameter.grad.abs().max() + 1e-6
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=close)


def check_steps(
    model: nn.Module, reference: nn.Module, x: Tensor, *, rtol: float | None = None, atol: float | None = None
) -> None:
    """Check ten steps of AdamW in training mode of two models of equal weights: losses; changes both.

    Args:
        x: four images.
        rtol: relative tolerance of the losses; default that of their precision.
        atol: absolute tolerance, likewise.
    """
    labels = torch.tensor([0, 3, 5, 6])
    losses = []
    for net in (model, reference):
        net.train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, foreach=False)
        found = []
        for _ in range(10):
            loss = F.cross_entropy(net(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
        losses.append(torch.stack(found))
    torch.testing.assert_close(losses[0], losses[1], rtol=rtol, atol=atol)
    assert losses[0][-1] < losses[0][0]


def check_layer_decay(model: nn.Module, reference: nn.Module, layout: str) -> None:
    """Check rates and weight decay of all parameters, each parameter replaced by them; changes ours."""
    ours: dict[int, tuple[float, float]] = {
        id(p): (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.7)
        for p in group["params"]
    }
    spared = getattr(reference, "no_weight_decay", set)()
    groups = param_groups_layer_decay(
        reference, weight_decay=0.1, layer_decay=0.7, no_weight_decay_list=spared
    )
    theirs: dict[int, tuple[float, float]] = {
        id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    for place in range(2):
        values = {n: torch.full_like(p, ours[id(p)][place]) for n, p in model.named_parameters()}
        translated = written(model, values, layout)
        for name, parameter in reference.named_parameters():
            expected = torch.full_like(parameter, theirs[id(parameter)][place])
            torch.testing.assert_close(
                translated[name], expected, msg=lambda text, name=name: f"{name}: {text}"
            )


def check_parity(
    model: nn.Module,
    reference: nn.Module,
    x: Tensor,
    *,
    grid: Literal["model"] | None = None,
    layers: bool = True,
) -> None:
    """Check a model with its reference's weights: logits, weights written back, gradients and layer decay.

    Changes the weights of ours.

    Args:
        grid: see `load_pretrained`.
        layers: whether the reference sorts its parameters by depth.
    """
    report = load_pretrained(model, reference.state_dict(), grid=grid)
    with torch.no_grad():
        assert difference(model(x), reference(x)) < TOLERANCES[x.dtype]
    back, state = to_format(model, report.format), reference.state_dict()
    assert back.keys() == state.keys()
    assert all(back[key].equal(state[key]) for key in state)
    # Some gradients are so small that single precision rounds them.
    check_gradients(model.double(), reference.double(), x.double(), report.format)
    if layers:
        check_layer_decay(model, reference, report.format)
    for net in (model, reference):
        net.to(x.dtype)
