"""The transformer block and its parts; and what surrounds forward functions: checkpointing, tracing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, FusedAttention, jit_is_tracing
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.options import check_choice

Forward = TypeVar("Forward", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")
# PyTorch does not declare that it exports it.
TRACER_WARNING: type[Warning] = torch.jit.TracerWarning  # type: ignore[attr-defined]
# PyTorch 2.6 compiles recomputed batch norms so that a batch counts twice in their statistics; 2.14 does not.
# Versions in between are unknown, so that layers with batch norms keep their activations there.
COMPILED_RECOMPUTATION_COUNTS = torch.__version__ < "2.14"


def is_tracing(*values: object) -> bool:
    """Return whether a graph is being traced, by FX of these values, by `torch.jit.trace` or by a compiler.

    Checks of shapes and types are skipped then: they would become part of the graph, or end the trace.
    """
    return torch.compiler.is_compiling() or jit_is_tracing() or any(isinstance(v, Proxy) for v in values)


def static_size(size: Sequence[int]) -> tuple[int, ...]:
    """Return a size as numbers; a graph of `torch.jit.trace` serves the size of its example."""
    if not jit_is_tracing():
        return tuple(size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TRACER_WARNING)
        return tuple(int(extent) for extent in size)


def fx_leaf(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that reads sizes, so that FX's symbolic tracing records its call and not its body.

    `torch.fx.wrap` does the same for the module in which it stands alone; this one acts wherever the function
    is imported. Sizes stay dynamic in the graph. `torch.jit.trace` is not to warn of what the function
    decides by the sizes of maps: its graph serves one size, and batches of any.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if jit_is_tracing():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TRACER_WARNING)
                return function(*args, **kwargs)
        proxy = next((value for value in (*args, *kwargs.values()) if isinstance(value, Proxy)), None)
        if proxy is None:
            return function(*args, **kwargs)
        # A proxy stands for what the function will return.
        return proxy.tracer.create_proxy("call_function", call, args, kwargs)  # type: ignore[return-value]

    return call


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that CLIP uses."""

    def forward(self, x: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Apply the activation to every element."""
        # One kernel that keeps one tensor for the backward pass, where the formula keeps two.
        return F.silu(1.702 * x) / 1.702


class SquaredReLU(nn.Module):
    """relu(x)^2 (Primer, D. So et al. 2021, arXiv:2109.08668)."""

    def forward(self, x: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Apply the activation to every element."""
        return F.relu(x).square()


class StarReLU(SquaredReLU):
    """s relu(x)^2 + b, both learned (MetaFormer baselines, arXiv:2210.13452)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Apply the activation to every element."""
        return self.scale * super().forward(x) + self.bias


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quickgelu": QuickGELU,
    "hardswish": nn.Hardswish,
    "relu": nn.ReLU,
    "relu2": SquaredReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "star_relu": StarReLU,
}


def activation(name: str) -> nn.Module:
    """Build an activation by its name in `ACTIVATIONS`."""
    check_choice("act", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


class SwiGLU(nn.Module):
    """The second half of the channels, gated by SiLU of the first (Shazeer 2020, arXiv:2002.05202)."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b h"]:
        """Halve the channels."""
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class GeGLU(nn.Module):
    """The first half of the channels, gated by GELU of the second (Shazeer 2020, arXiv:2002.05202)."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b h"]:
        """Halve the channels."""
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)


GATED: dict[str, Callable[[], nn.Module]] = {"swiglu": SwiGLU, "geglu": GeGLU}


class FeedForward(nn.Module):
    """Two linear layers with an activation between them (Vaswani et al. 2017, section 3.3).

    Args:
        hidden_dim: channels that the second layer takes; the first gives twice as many for `GATED` units.
        act: a name of `ACTIVATIONS`, or one of `GATED`: "swiglu" (`SwiGLU`) or "geglu" (`GeGLU`).
        sub_norm: builds the norm before the second layer; default none.
        bias: use biases.
        out_dim: dimension of the output; default `dim`.
    """

    @checks_arguments
    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        dropout: float = 0.0,
        act: str = "gelu",
        sub_norm: Callable[[int], nn.Module] | None = None,
        bias: bool = True,
        out_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("act", act, (*ACTIVATIONS, *GATED))
        parts = 2 if act in GATED else 1
        self.to_hidden = nn.Linear(dim, parts * hidden_dim, bias=bias)
        self.act = GATED[act]() if act in GATED else activation(act)
        self.sub_norm = nn.Identity() if sub_norm is None else sub_norm(hidden_dim)
        self.to_out = nn.Linear(hidden_dim, dim if out_dim is None else out_dim, bias=bias)
        self.dropout = nn.Dropout(dropout)
        init_xavier(self.to_hidden, parts)
        init_xavier(self.to_out)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        """Transform each token on its own."""
        return self.dropout(self.to_out(self.sub_norm(self.dropout(self.act(self.to_hidden(x))))))


class LayerScale(nn.Module):
    """Multiply each channel by a learned factor (Touvron et al. 2021, arXiv:2103.17239, section 2.2)."""

    def __init__(self, dim: int, init: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init)))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Scale the channels."""
        return x * self.gamma


def make_scale(dim: int, init: float | None) -> nn.Module:
    """Build a `LayerScale`, or the identity if `init` is None."""
    return nn.Identity() if init is None else LayerScale(dim, init)


def tanh_layer(dim: int, out_dim: int) -> nn.Sequential:
    """Build the hidden layer of a classifier (ViT, arXiv:2010.11929, section 3.1)."""
    linear = nn.Linear(dim, out_dim)
    init_xavier(linear)
    return nn.Sequential(linear, nn.Tanh())


class DropPath(nn.Module):
    """Drop a residual branch for whole samples in training (stochastic depth, arXiv:1603.09382).

    What is kept is scaled by 1 / (1 - p), so that the expectation does not change.

    Args:
        p: probability of dropping the branch of a sample, in [0, 1).

    Raises:
        ValueError: if `p` is out of range.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {p}")
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
    """Return the probability of dropping a branch of a layer; it rises linearly from 0."""
    return drop_path * layer / max(depth - 1, 1)


def drop_path_rates(drop_path: float, depth: Sequence[int]) -> list[list[float]]:
    """Return the rates of the blocks of each stage; they rise from 0 to that of the last block of all.

    Args:
        drop_path: the last block's.
    """
    rates = (drop_path_rate(drop_path, index, sum(depth)) for index in range(sum(depth)))
    return [[next(rates) for _ in range(blocks)] for blocks in depth]


def layer(forward: Forward) -> Forward:
    """Decorate the `forward` of a layer, a block or a stage.

    Two things are done for it that are no part of its function: `set_grad_checkpointing` has its activations
    recomputed in the backward pass instead of kept, and `collect_outputs` collects what it returns.
    """

    @wraps(forward)
    def run(self: nn.Module, *inputs: Any) -> Any:
        if not (getattr(self, "grad_checkpointing", False) and torch.is_grad_enabled()):
            output = forward(self, *inputs)
        elif not torch.compiler.is_compiling():
            contexts = partial(_contexts, self)
            output = checkpoint(forward.__get__(self), *inputs, use_reentrant=False, context_fn=contexts)
        elif COMPILED_RECOMPUTATION_COUNTS and any(isinstance(part, _BatchNorm) for part in self.modules()):
            output = forward(self, *inputs)
        else:
            output = checkpoint(forward.__get__(self), *inputs, use_reentrant=False)
        outputs = getattr(self, "outputs", None)
        if outputs is not None:
            outputs.append(output)
            if len(outputs) == self.enough and not torch.compiler.is_compiling():
                raise Enough
        return output

    run.is_layer = True  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]


def layers_of(module: nn.Module) -> list[nn.Module]:
    """Return the modules inside a module whose `forward` is decorated as a `layer`."""
    return [part for part in module.modules() if getattr(type(part).forward, "is_layer", False)]


def set_grad_checkpointing(module: nn.Module, enable: bool = True) -> None:
    """Recompute the activations of all layers in the backward pass instead of keeping them.

    Raises:
        ValueError: if the module has no layers.
    """
    layers = layers_of(module)
    if not layers:
        raise ValueError(f"{type(module).__name__} has no layers whose activations can be recomputed")
    for part in layers:
        # A stage of blocks leaves it to them.
        part.grad_checkpointing = enable and len(layers_of(part)) == 1  # type: ignore[assignment]


class Enough(Exception):  # noqa: N818
    """Raised inside `collect_outputs` once everything is collected, where the rest is not needed."""


@contextmanager
def collect_outputs(layers: Iterable[nn.Module], *, stop_early: bool = False) -> Iterator[list[Any]]:
    """Context manager: collect what some layers return, in the order of execution.

    Args:
        layers: modules whose `forward` is decorated as a `layer`.
        stop_early: leave the context by `Enough`, which it catches, after the last output.

    Raises:
        RuntimeError: if outputs of the same layers are being collected already, as by another thread.
    """
    layers, outputs = list(layers), []  # type: ignore[var-annotated]
    if any(getattr(part, "outputs", None) is not None for part in layers):
        raise RuntimeError("intermediate features of one model can be computed by one thread at a time")
    for part in layers:
        part.outputs = outputs  # type: ignore[assignment]
        part.enough = len(layers) if stop_early else 0  # type: ignore[assignment]
    try:
        yield outputs
    except Enough:
        pass
    finally:
        for part in layers:
            del part.outputs, part.enough


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a block's forward pass and of its recomputation."""
    return nullcontext(), frozen_batchnorm_stats(block)


@contextmanager
def frozen_batchnorm_stats(module: nn.Module) -> Iterator[None]:
    """Context manager: freeze BatchNorm running statistics, so that no batch counts twice."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    buffers = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({k: None if v is None else v.clone() for k, v in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, saved in zip(norms, buffers, strict=True):
            norm._buffers.update(saved)


class Block(nn.Module):
    """A pre-norm transformer block: attention, then a feed-forward, each added to its input.

    Args:
        layer_scale: initial factors of the channels of both branches, or of each; None for none.

    Raises:
        ValueError: if there are other than two factors.
    """

    @checks_arguments
    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        layer_scale: float | Sequence[float | None] | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        scales = layer_scale if isinstance(layer_scale, Sequence) else (layer_scale, layer_scale)
        if len(scales) != 2:
            raise ValueError(f"layer_scale must be one for both branches or one for each, got {scales}")
        self.norm1 = norm(dim)
        self.attention = attention
        self.scale1 = make_scale(dim, scales[0])
        self.norm2 = norm(dim)
        self.feedforward = feedforward
        self.scale2 = make_scale(dim, scales[1])
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @layer
    def forward(self, x: Float[Tensor, "*s"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "*s"]:
        """Transform tokens, or a channels-last map."""
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), inputs)))
        return x + self.drop_path(self.scale2(self.feedforward(self.norm2(x))))

    def values(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n e"]:
        """Return the values that attention computes from these tokens."""
        return self.attention.project(self.norm1(x))[2]  # type: ignore[operator]


class PostNormBlock(Block):
    """A block whose norms act on what its branches return (Swin V2, arXiv:2111.09883, section 3.2)."""

    @layer
    def forward(self, x: Float[Tensor, "*s"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "*s"]:
        """Transform tokens, or a channels-last map."""
        x = x + self.drop_path(self.scale1(self.norm1(self.attention(x, inputs))))
        return x + self.drop_path(self.scale2(self.norm2(self.feedforward(x))))

    def values(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n e"]:
        """Return the values that attention computes from these tokens."""
        return self.attention.project(x)[2]  # type: ignore[operator]


class ClassAttentionBlock(Block):
    """A block that changes only the class token, by what it reads from all tokens.

    CaiT, arXiv:2103.17239, section 3.
    """

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Return the class token, changed, and the patches as they came."""
        token, normed = x[:, :1], self.norm1(x)
        token = token + self.drop_path(self.scale1(self.attention(normed[:, :1], normed)))
        token = token + self.drop_path(self.scale2(self.feedforward(self.norm2(token))))
        return torch.cat([token, x[:, 1:]], dim=1)


class SharedNormBlock(nn.Module):
    """A block whose branches act side by side, on tokens of one norm (ViT-22B, arXiv:2302.05442, section 2).

    Args:
        layer_scale: initial factors of the channels of the branches' sum; None for none.

    Raises:
        ValueError: if there are factors for each branch.
    """

    @checks_arguments
    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        layer_scale: float | Sequence[float | None] | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if isinstance(layer_scale, Sequence):
            raise ValueError(f"branches with a shared norm have one layer_scale, got {tuple(layer_scale)}")
        self.norm = norm(dim)
        self.attention = attention
        self.feedforward = feedforward
        self.scale = make_scale(dim, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @layer
    def forward(self, x: Float[Tensor, "*s"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "*s"]:
        """Transform tokens, or a channels-last map."""
        normed = self.norm(x)
        return x + self.drop_path(self.scale(self.attention(normed, inputs) + self.feedforward(normed)))

    def values(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n e"]:
        """Return the values that attention computes from these tokens."""
        return self.attention.project(self.norm(x))[2]  # type: ignore[operator]


def plain_blocks(
    dim: int,
    *,
    depth: int,
    heads: int,
    dim_head: int,
    mlp_dim: int,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
    drop_path: float | Sequence[float] = 0.0,
    layer_scale: float | None = None,
    qkv_bias: bool = True,
    out_bias: bool = True,
    act: str = "gelu",
    norm: Callable[[int], nn.Module] = nn.LayerNorm,
    block: Callable[..., nn.Module] = Block,
    position: Callable[[int], nn.Module | None] | None = None,
) -> nn.ModuleList:
    """Build the blocks of a plain transformer.

    Args:
        block: builds a block from the arguments of `Block`.
        position: builds the positions inside the attention of a layer.
        drop_path: probability of dropping a residual branch at the last block, in [0, 1), rising linearly
            from 0; or that of each block.
    """
    if isinstance(drop_path, (int, float)):
        drop_path = [drop_path_rate(drop_path, index, depth) for index in range(depth)]
    return nn.ModuleList(
        block(
            dim,
            Attention(
                dim,
                heads=heads,
                dim_head=dim_head,
                qkv_bias=qkv_bias,
                out_bias=out_bias,
                dropout=dropout,
                position=None if position is None else position(layer),
                kernel=partial(FusedAttention, attn_dropout),
            ),
            FeedForward(dim, mlp_dim, dropout=dropout, act=act),
            norm=norm,
            layer_scale=layer_scale,
            drop_path=rate,
        )
        for layer, rate in zip(range(depth), drop_path, strict=True)
    )
