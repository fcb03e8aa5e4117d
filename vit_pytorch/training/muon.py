"""Muon: steps in which all directions of a weight matrix are equally long (Jordan et al. 2024)."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, overload, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer

# of the quintic iteration, chosen by its author to grow small singular values fast
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# root mean square of AdamW's updates, which Muon's are brought to (Liu et al. 2025, section 2.2)
ADAMW_RMS = 0.2


def orthogonalize(matrix: Tensor) -> Tensor:
    r"""Bring the singular values of a matrix near 1 by five quintic Newton-Schulz iterations.

    They are computed in bfloat16, of which the result has the precision: singular values come to lie between
    about 0.7 and 1.2. With :math:`M = U S V^T` it stands for :math:`U V^T`.

    Args:
        matrix: Of shape :math:`(n, m)`.

    Returns:
        The same shape, in bfloat16.
    """
    first, second, third = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix).bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.addmm(gram, gram, gram, beta=second, alpha=third)
        x = torch.addmm(x, polynomial, x, beta=first)
    return x.mT if tall else x


@runtime_checkable
class HasClassifier(Protocol):
    """A model that says which of its layers computes the logits."""

    def get_classifier(self) -> nn.Module:
        """The layer."""


class Muon(Optimizer):
    r"""Momentum, orthogonalised, for the matrices between layers; AdamW for everything else.

    For a matrix :math:`W \in \mathbb{R}^{n \times m}` with gradient :math:`G`, a step is

    .. math::
        B \leftarrow \mu B + (1 - \mu) G, \quad
        W \leftarrow (1 - \eta \lambda) W - 0.2\, \eta \sqrt{\max(n, m)}\; UV^T
        \quad\text{with}\quad USV^T = (1 - \mu) G + \mu B .

    The factor gives its updates the root mean square of AdamW's, so that both parts share one learning rate
    and one weight decay. Kernels of convolutions are taken as matrices of their output channels.
    "Muon: An optimizer for hidden layers in neural networks" (Jordan et al. 2024); the factor is that of
    "Muon is scalable for LLM training" (arXiv:2502.16982), section 2.2.

    Args:
        groups: Groups of parameters with ``matrices``: whether Muon steps them, or AdamW.
        lr: Learning rate of groups that have none of their own.
        momentum: :math:`\mu`, in [0, 1).
        betas: AdamW's decay rates of the first and second moment.
        eps: AdamW's term against division by zero.
        fused: Whether AdamW takes one fused step over all its parameters.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool = False,
    ) -> None:
        groups = list(groups)
        self._adamw = AdamW([{"params": [nn.Parameter(torch.zeros(1))]}], lr=lr, fused=fused)
        super().__init__(groups, {**self._adamw.defaults, "lr": lr, "betas": betas, "eps": eps})
        for group in self.param_groups:
            if group["matrices"]:
                group["momentum"] = momentum

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["matrices"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_matrix(parameter, parameter.grad, group)
        # one state and one list of groups, which loading replaces
        self._adamw.param_groups = [group for group in self.param_groups if not group["matrices"]]
        self._adamw.state = self.state
        self._adamw.step()
        return loss

    def _step_matrix(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(buffer, group["momentum"])
        whole = update.full_tensor() if isinstance(update, DTensor) else update
        matrix = whole.flatten(1)
        direction = orthogonalize(matrix).to(parameter.dtype).view_as(whole)
        if isinstance(update, DTensor):
            direction = distribute_tensor(direction, update.device_mesh, update.placements)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"] * ADAMW_RMS * max(matrix.shape) ** 0.5)


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the weights that Muon steps: those of linear layers and convolutions, but for classifiers.

    Depthwise and grouped convolutions, whose kernels are many small matrices, are not among them, nor are
    embeddings, tokens, and positions.

    Args:
        model: The model, or a learning method around one.
    """
    classifiers = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, HasClassifier)
        for parameter in module.get_classifier().parameters()
    }
    return {
        f"{path}.weight" if path else "weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and getattr(module, "groups", 1) == 1
        and id(module.weight) not in classifiers
    }
