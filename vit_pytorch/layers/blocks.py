"""The transformer's loop: residual branches, blocks of them, and a stack of blocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.linear import Linear
from vit_pytorch.layers.options import check_choice

# PyTorch 2.6 compiles recomputed batch norms so that a batch counts twice in their statistics; 2.14 does not.
# Versions in between are unknown, so that blocks with batch norms keep their activations there.
COMPILED_RECOMPUTATION_COUNTS = torch.__version__ < "2.14"


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that CLIP uses."""

    def forward(self, x: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Apply the activation to every element."""
        # By one kernel that keeps one tensor for the backward pass, where the formula keeps two.
        return F.silu(1.702 * x) / 1.702


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quickgelu": QuickGELU,
    "hardswish": nn.Hardswish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
}


def activation(name: str) -> nn.Module:
    """Make an activation by its name in `ACTIVATIONS`."""
    check_choice("act", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


class FeedForward(nn.Module):
    """Two linear layers with an activation between them (Vaswani et al. 2017, section 3.3).

    Args:
        dim: width of a token.
        hidden_dim: width between the layers.
        dropout: dropout after the activation and on the output.
        act: name of the activation.
    """

    def __init__(self, dim: int, hidden_dim: int, *, dropout: float = 0.0, act: str = "gelu") -> None:
        super().__init__()
        self.to_hidden = Linear(dim, hidden_dim)
        self.act = activation(act)
        self.to_out = Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)
        init_xavier(self.to_hidden)
        init_xavier(self.to_out)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Transform every token by itself."""
        return self.dropout(self.to_out(self.dropout(self.act(self.to_hidden(x)))))


class LayerScale(nn.Module):
    """Multiply each channel by a learned factor (Touvron et al. 2021, arXiv:2103.17239, section 2.2).

    Args:
        dim: width of a token.
        init: what every factor starts at.
    """

    def __init__(self, dim: int, init: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Scale the channels."""
        return x * self.gamma


class DropPath(nn.Module):
    """Drop a residual branch for whole samples in training (stochastic depth, arXiv:1603.09382).

    What is kept is scaled by 1 / (1 - p), so that the expectation does not change.

    Args:
        p: probability with which a sample loses the branch, in [0, 1).
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"the probability to drop a path is in [0, 1), got {p}")
        self.p = p

    def forward(self, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Drop samples at random; the identity in eval."""
        if not self.training or self.p == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * (keep / (1 - self.p))

    def extra_repr(self) -> str:
        """Show the settings when printed."""
        return f"p={self.p}"


def drop_path_rate(drop_path: float, layer: int, depth: int) -> float:
    """Give a layer's probability to drop a branch, which rises linearly from 0 to that of the last layer."""
    return drop_path * layer / max(depth - 1, 1)


def make_tail(dim: int, *, layer_scale: float | None = None, drop_path: float = 0.0) -> list[nn.Module]:
    """Make what stands between a branch and its sum.

    Args:
        dim: width of a token.
        layer_scale: what LayerScale's factors start at; None for no LayerScale.
        drop_path: probability to drop the branch; 0 for no DropPath.
    """
    scale = [] if layer_scale is None else [LayerScale(dim, layer_scale)]
    return [*scale, *([DropPath(drop_path)] if drop_path else [])]


class Residual(nn.Module):
    """x + tail(branch(norm(x))).

    Args:
        branch: what the block computes.
        norm: applied to what enters the branch, not to the residual stream.
        tail: what stands between the branch and the sum: LayerScale, DropPath, or nothing.
    """

    def __init__(self, branch: nn.Module, norm: nn.Module, tail: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.norm = norm
        self.branch = branch
        self.tail = nn.Sequential(*tail)

    def update(self, x: Float[Tensor, ...], *context: Any) -> Float[Tensor, ...]:
        """Give what the branch adds to its input; the branch is handed the context, too."""
        return self.tail(self.branch(self.norm(x), *context))

    def forward(self, x: Float[Tensor, "*s"], *context: Any) -> Float[Tensor, "*s"]:
        """Add the branch to its input."""
        return x + self.update(x, *context)


class ClassResidual(Residual):
    """The residual of the class token alone, whose branch reads all tokens."""

    def forward(self, x: Float[Tensor, "b n d"], *context: Any) -> Float[Tensor, "b 1 d"]:
        """Give the class token, which is the first, with the branch added."""
        return x[:, :1] + self.update(x, *context)


class Block(nn.Module):
    """A transformer block: attention, then a feed-forward, each in a residual.

    Args:
        attention: mixes tokens.
        feedforward: transforms every token by itself.
    """

    def __init__(self, attention: nn.Module, feedforward: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.feedforward = feedforward

    def forward(self, x: Float[Tensor, "*s"], *context: Any) -> Float[Tensor, "*s"]:
        """Apply both residual branches, to tokens or to a map whose channels are last.

        Args:
            x: tokens, or a map.
            context: what attention is handed beside them.
        """
        return self.feedforward(self.attention(x, *context))


class Encoder(nn.Module):
    """A stack of blocks, each of which takes what the one before it gives: tokens, or a tuple of such.

    Args:
        block: makes the block of a layer from its index, so that any schedule over depth is its own.
        depth: number of blocks.
    """

    def __init__(self, block: Callable[[int], nn.Module], *, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(layer) for layer in range(depth))
        self.grad_checkpointing = False

    def steps(self, x: Any, *context: Any) -> Iterator[Any]:
        """Give the tokens after every block in turn; each block is handed the context, too."""
        for block in self.blocks:
            x = self.run(block, x, *context)
            yield x

    def run(self, block: Callable[..., Any], *inputs: Any) -> Any:
        """Apply one block, whose activations are recomputed in the backward pass where told."""
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        if isinstance(block, nn.Module) and not torch.compiler.is_compiling():
            return checkpoint(block, *inputs, use_reentrant=False, context_fn=partial(_contexts, block))
        if COMPILED_RECOMPUTATION_COUNTS and isinstance(block, nn.Module) and _has_batchnorm(block):
            return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=False)

    def forward(self, x: Any, *context: Any) -> Any:
        """Apply all blocks."""
        for tokens in self.steps(x, *context):
            x = tokens
        return x

    def intermediates(
        self, x: Any, layers: Collection[int], *context: Any, stop_early: bool = False
    ) -> tuple[Any, list[Any]]:
        """Give the last tokens and those after the blocks asked for, in the order of depth.

        Args:
            x: tokens that enter the first block.
            layers: indices of blocks.
            context: what every block is handed beside the tokens.
            stop_early: leave out the blocks after the last one asked for.
        """
        taken = []
        for layer, tokens in enumerate(self.steps(x, *context)):
            x = tokens
            if layer in layers:
                taken.append(x)
            if stop_early and len(taken) == len(layers):
                break
        return x, taken


def _has_batchnorm(block: nn.Module) -> bool:
    """Return whether a block has batch norms."""
    return any(isinstance(part, _BatchNorm) for part in block.modules())


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Give what surrounds a block's forward pass and its recomputation, which no statistics learn from."""
    return nullcontext(), frozen_batchnorm_stats(block)


@contextmanager
def frozen_batchnorm_stats(module: nn.Module) -> Iterator[None]:
    """Let batch norms update copies of their running statistics meanwhile, so that a batch counts once."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({k: None if v is None else v.clone() for k, v in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
