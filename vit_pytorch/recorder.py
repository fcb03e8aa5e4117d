"""The maps of every attention of a forward pass.

While a call runs, fused kernels stand aside for `ExplicitAttention`, which computes the same step by step;
before and after it the model is untouched. Every kernel that passes its weights through a submodule `weights`
is recorded, whatever the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from vit_pytorch.layers.attention import FusedAttention
from vit_pytorch.layers.wrapper import Wrapper, uncompiled


@dataclass(frozen=True)
class Recording:
    """What a model computed, and what it attended to meanwhile.

    Args:
        output: what the model gave.
        maps: the maps in the order of execution, as a rule (b heads n m): what each query took from each key.
        names: for each map, the kernel that computed it, as `get_submodule` takes it.
    """

    output: Any
    maps: list[Tensor]
    names: list[str]


class Recorder(Wrapper):
    """A model that gives its attention maps beside what it computes.

    A map is what the softmax gives, before dropout: its rows sum to 1. In training mode dropout draws other
    numbers than the fused kernels would. Gradient checkpointing and compiled code pause while a call is
    recorded.

    Args:
        model: the model; it may be recorded by one recorder at a time.
        device: where maps are kept; None for where they are computed.
        mixed: whether to give, of kernels that mix the heads' maps behind the softmax (talking heads,
            re-attention), what the values are multiplied with. Such rows do not sum to 1.

    Raises:
        ValueError: where nothing in the model computes attention that can be recorded, or it has a recorder.
    """

    def __init__(
        self, model: nn.Module, device: torch.device | str | None = None, *, mixed: bool = False
    ) -> None:
        super().__init__(model)
        self.device = device
        self.mixed = mixed
        name = type(model).__name__
        inner = [type(part.model).__name__ for part in model.modules() if isinstance(part, Recorder)]
        known = _RECORDERS.get(model, lambda: None)()
        if inner or known is not None:
            raise ValueError(
                f"a model has one Recorder, and the {(inner or [name])[0]} has one already; eject that first"
            )
        if not any(isinstance(part, FusedAttention) or _probe(part, mixed) for part in model.modules()):
            raise ValueError(
                f"a Recorder needs attention whose weights can be seen, FusedAttention or a kernel with a "
                f"submodule `weights`; {name} has none"
            )
        _RECORDERS[model] = ref(self)

    def forward(self, images: Any, *args: Any, **kwargs: Any) -> tuple[Any, Tensor | list[Tensor]]:
        """Compute what the model computes, and the maps.

        Args:
            images: input; other arguments are passed on, too.

        Returns:
            The model's output and the maps, (b layers heads n m), where all have one shape. Otherwise a list
            of such tensors: one for each run of equal shape in the order of execution (as a rule a stage),
            or, of a list of images, one for each shape.
        """
        recording = self.record(images, *args, **kwargs)
        stacks = stack_maps(recording.maps, in_runs=isinstance(images, Tensor))
        return recording.output, stacks[0] if len(stacks) == 1 else stacks

    def maps(self, images: Any, keep_graph: bool = False) -> list[Tensor]:
        """Return the maps one by one, in the order of execution; see `record`."""
        return self.record(images, keep_graph=keep_graph).maps

    def record(self, images: Any, *args: Any, keep_graph: bool = False, **kwargs: Any) -> Recording:
        """Compute what the model computes, and keep the maps.

        Args:
            keep_graph: whether the output is computed from the very maps that are given, so that
                `torch.autograd.grad` gives gradients with respect to them; also of a frozen model. Such maps
                stay where they are computed. Otherwise they are detached.

        Raises:
            ValueError: where no attention runs, or a graph is asked for while gradients are off.
            RuntimeError: where the model has been handed back.
        """
        self.check_in_use()
        if keep_graph and not torch.is_grad_enabled():
            raise ValueError("keep_graph=True needs gradients, which are switched off here")
        maps: list[Tensor] = []
        names: list[str] = []

        def keep(name: str, weights: Tensor) -> Tensor | None:
            names.append(name)
            if not keep_graph:
                maps.append(weights.detach().to(self.device))
                return None
            maps.append(weights if weights.requires_grad else weights.requires_grad_())
            return weights

        with ExitStack() as stack:
            stack.enter_context(uncompiled())
            stack.enter_context(explicit_kernels(self.model))
            for name, probe in _find_probes(self.model, self.mixed):
                hook = partial(_call_with_output, partial(keep, name))
                stack.callback(probe.register_forward_hook(hook).remove)
            output = self.model(images, *args, **kwargs)
        if not maps:
            raise ValueError(f"{type(self.model).__name__} ran none of its attention in this call")
        return Recording(output, maps, names)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if not self.ejected:
            _RECORDERS[self.model] = ref(self)

    def eject(self) -> nn.Module:
        """Return the model itself; the recorder is of no use from then on."""
        _RECORDERS.pop(self.model, None)
        return super().eject()


_RECORDERS: WeakKeyDictionary[nn.Module, ref[Recorder]] = WeakKeyDictionary()


def stack_maps(maps: Sequence[Tensor], *, in_runs: bool = True) -> list[Tensor]:
    """Stack maps of equal shape along a new axis of layers, behind the batch.

    Args:
        maps: maps (b heads n m).
        in_runs: whether only neighbours are stacked; False stacks all maps of a shape, in the order in which
            the shapes first come.
    """
    if in_runs:
        return [torch.stack(list(run), dim=1) for _, run in groupby(maps, key=lambda found: found.shape)]
    shapes = dict.fromkeys(found.shape for found in maps)
    return [torch.stack([found for found in maps if found.shape == shape], dim=1) for shape in shapes]


@contextmanager
def explicit_kernels(model: nn.Module) -> Iterator[None]:
    """Context manager: replace fused kernels by explicit ones, and pause gradient checkpointing.

    What is recomputed in the backward pass would meet the fused kernels again.
    """
    with ExitStack() as stack:
        standins: dict[FusedAttention, nn.Module] = {}
        for part in list(model.modules()):
            for name, child in part._modules.items():
                if isinstance(child, FusedAttention):
                    standin = standins.setdefault(child, child.explicit())
                    stack.callback(setattr, part, name, child)
                    setattr(part, name, standin)
            if getattr(part, "grad_checkpointing", False) is True:
                stack.callback(setattr, part, "grad_checkpointing", True)
                setattr(part, "grad_checkpointing", False)  # noqa: B010
        yield


def _call_with_output(
    keep: Callable[[Tensor], Tensor | None], module: nn.Module, inputs: object, output: Tensor
) -> Tensor | None:
    return keep(output)


def _probe(kernel: nn.Module, mixed: bool) -> nn.Module | None:
    """Return the submodule through which a kernel passes its weights; None where it has none."""
    children = dict(kernel.named_children())
    probe = (children.get("mixed") if mixed else None) or children.get("weights")
    return probe if isinstance(probe, nn.Identity) else None


def _find_probes(model: nn.Module, mixed: bool) -> Iterator[tuple[str, nn.Module]]:
    """Return each kernel's name and probe."""
    for name, part in model.named_modules():
        probe = _probe(part, mixed)
        if probe is not None:
            yield name, probe
