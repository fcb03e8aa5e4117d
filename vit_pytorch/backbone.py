"""The maps of some layers, for what detects, segments or estimates depth on top of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from vit_pytorch.base import VisionModel, resolve_indices
from vit_pytorch.layers.wrapper import eval_mode

# layers of a model without stages whose maps are returned by default, counted from the end; timm's number
LAST = 3


class FeatureInfo(list[dict[str, Any]]):
    """What the maps of a backbone are, in order: dictionaries with module, num_chs, reduction, index."""

    @property
    def out_indices(self) -> tuple[int, ...]:
        """Indices of the layers in the whole model."""
        return tuple(each["index"] for each in self)

    def channels(self, index: int | None = None) -> Any:
        """Return the channels of the map at a place in the list, or of all."""
        return self._get("num_chs", index)

    def reduction(self, index: int | None = None) -> Any:
        """Return the stride, in pixels, of the map at a place in the list, or of all."""
        return self._get("reduction", index)

    def module_name(self, index: int | None = None) -> Any:
        """Return the name of the layer of the map at a place in the list, or of all."""
        return self._get("module", index)

    def get_dicts(self) -> list[dict[str, Any]]:
        """Return a copy of each entry."""
        return [dict(each) for each in self]

    def _get(self, key: str, index: int | None) -> Any:
        return [each[key] for each in self] if index is None else self[index][key]


class Backbone(nn.Module):
    """A model as the body of another one: images in, the maps of some of its layers out.

    What lies behind the last of these layers is removed, so that every parameter gets a gradient; parameters
    that no map depends on do not require one any more.

    Args:
        model: the model, which is changed: it computes no logits any more.
        out_indices: layers, as in `forward_intermediates`: indices in `model.feature_info`, negative ones
            from the end, or an int for the last so many; default every stage, in models whose stages all have
            strides of their own, and else the last three, or the last block of each branch, as in timm.
        norm: apply the final norm to each map.

    Attributes:
        feature_info: what the maps are.

    Raises:
        ValueError: if a layer is outside the model.
    """

    def __init__(
        self, model: VisionModel, out_indices: int | Sequence[int] | None = None, *, norm: bool = False
    ) -> None:
        super().__init__()
        known = model.feature_info
        if out_indices is None and "branch" in known[0]:
            out_indices = list({each["branch"]: index for index, each in enumerate(known)}.values())
        elif out_indices is None and len({each["reduction"] for each in known}) < len(known):
            out_indices = min(LAST, len(known))
        self.out_indices = resolve_indices(out_indices, len(known))
        self.feature_info = FeatureInfo({**known[index], "index": index} for index in self.out_indices)
        self.norm = norm
        self.model = model
        self.training = model.training
        self._prune()
        model.pruned = model.pruned or max(self.out_indices) + 1 < len(known)

    @property
    def default_cfg(self) -> dict[str, Any]:
        """How images are prepared for the model."""
        return self.model.default_cfg

    @property
    def load_report(self) -> Any:
        """What was loaded into the model (see `load_pretrained`); None for one without weights."""
        return self.model.load_report

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.model.set_grad_checkpointing(enable)

    def forward(self, images: Float[Tensor, "b c *size"]) -> list[Float[Tensor, "b d *grid"]]:
        """Compute the maps, channels first, in the order of the layers."""
        found: Any = self.model.forward_intermediates(
            images, indices=self.out_indices, norm=self.norm, stop_early=True, intermediates_only=True
        )
        return found

    def _prune(self) -> None:
        """Remove modules of whose parameters no map depends on any and that are not called, and freeze other
        such parameters."""
        like = next(self.model.parameters())
        with torch.inference_mode(False), torch.enable_grad():
            images = torch.zeros(
                1, self.model.channels, *self.model.image_size, device=like.device, dtype=like.dtype
            )
            # frozen parameters count as well, and those that were built in inference mode
            state = {
                name: (tensor.clone() if tensor.is_inference() else tensor).detach()
                for name, tensor in chain(self.named_parameters(), self.named_buffers())
            }
            for name, _ in self.named_parameters():
                state[name].requires_grad_(state[name].is_floating_point())
            with eval_mode(self.model), called_modules(self.model) as called:
                found = leaves(functional_call(self, state, (images,)))
        used = {id(parameter) for name, parameter in self.named_parameters() if id(state[name]) in found}
        for parameter in self.model.parameters():
            if parameter.requires_grad and id(parameter) not in used:
                parameter.requires_grad_(False)
        _remove(self.model, used, called)


def leaves(outputs: Iterable[Tensor]) -> set[int]:
    """Return the ids of the tensors of which outputs are computed and that get gradients."""
    seen, todo = set(), [output.grad_fn for output in outputs]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [other for other, _ in node.next_functions]
    return {id(node.variable) for node in seen if hasattr(node, "variable")}


@contextmanager
def called_modules(model: nn.Module) -> Iterator[set[nn.Module]]:
    """Context manager: collect the modules of a model that are called."""
    called: set[nn.Module] = set()
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in model.modules()
    ]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


def _remove(module: nn.Module, used: set[int], called: set[nn.Module]) -> None:
    """Replace parts all of whose parameters are unused and that are not called; lists of layers keep their
    length."""
    for name, child in module.named_children():
        parameters = list(child.parameters())
        needed = child in called or any(id(each) in used for each in parameters)
        if needed or isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            _remove(child, used, called)
        elif parameters:
            setattr(module, name, nn.Identity())
