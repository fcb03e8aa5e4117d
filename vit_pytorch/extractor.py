"""The embeddings of any layer, beside what the model computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import copy
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vit_pytorch.layers.attention import BlockInputs
from vit_pytorch.layers.wrapper import Wrapper, uncompiled

Layer = str | int | nn.Module


class Extractor(Wrapper):
    """A model that gives the output of one or more of its layers beside its own.

    Layers are watched while a call runs only; before and after it the model is untouched. What a layer
    gives, passes through as it is: a tensor, or tensors in tuples, lists and dictionaries. Compiled code runs
    as it is written where a layer is named.

    Args:
        layer_name: the layer: its name as in `named_modules`; its index in the order of depth, among the
            modules of the model's `feature_info`, negative from the end; or the module itself. A sequence of
            such asks for several. None for what `forward_features` gives: of a plain model, the tokens behind
            the final norm.
        device: where embeddings are kept; None for where they are computed.
        layer_save_input: whether to give what enters the layers instead; positional arguments, a tuple of
            them where there are several. A block's `BlockInputs` are left out.
        return_embeddings_only: whether calls leave out the model's output unless told.
        detach: whether embeddings are cut off from the graph. They are left in it to train the model through
            them.
        clone: whether embeddings are copied. Without, they are the tensors that the model went on with, which
            with `detach=False` have gradients, and which a later layer may have changed in place.

    Raises:
        ValueError: where the model has no such layer.
    """

    def __init__(
        self,
        model: nn.Module,
        layer_name: Layer | Sequence[Layer] | None = None,
        *,
        device: torch.device | str | None = None,
        layer_save_input: bool = False,
        return_embeddings_only: bool = False,
        detach: bool = True,
        clone: bool = True,
    ) -> None:
        super().__init__(model)
        self.device = device
        self.layer_save_input = layer_save_input
        self.return_embeddings_only = return_embeddings_only
        self.detach = detach
        self.clone = clone
        self.several = isinstance(layer_name, Sequence) and not isinstance(layer_name, str)
        self.names: dict[str | int, str] = {}
        if layer_name is None:
            if not callable(getattr(model, "forward_features", None)):
                raise ValueError(f"{type(model).__name__} has no forward_features; name a layer")
            if layer_save_input:
                raise ValueError("layer_save_input=True needs a layer, got layer_name=None")
            return
        layers: Any = layer_name if self.several else [layer_name]
        if not layers:
            raise ValueError("layer_name names at least one layer, got none")
        for layer in layers:
            name = find_layer(model, layer)
            self.names[name if isinstance(layer, nn.Module) else layer] = name

    def forward(
        self, images: Any, *args: Any, return_embeddings_only: bool | None = None, **kwargs: Any
    ) -> Any:
        """Compute what the model computes, and the embeddings.

        Args:
            images: input; other arguments are passed on, too, where a layer is named.
            return_embeddings_only: whether to leave out the model's output; None for the extractor's setting.

        Returns:
            The model's output and the embeddings, or the embeddings alone. They are what the layer gives; of
            several layers, a dictionary by what they were asked for by, modules by their name; of a layer
            that ran more than once, a list.

        Raises:
            ValueError: where a layer does not run.
            RuntimeError: where the model has been handed back.
        """
        self.check_in_use()
        only = self.return_embeddings_only if return_embeddings_only is None else return_embeddings_only
        if not self.names:
            if args or kwargs:
                raise ValueError("arguments beside the images are passed on where a layer is named")
            model: Any = self.model
            features = model.forward_features(images)
            embeddings = map_tensors(self.keep, features)
            return embeddings if only else (model.forward_head(features), embeddings)
        found: dict[str | int, list[Any]] = {key: [] for key in self.names}
        with ExitStack() as stack:
            stack.enter_context(uncompiled())
            for key, name in self.names.items():
                stack.callback(self._watch(self.model.get_submodule(name), found[key]))
            output = self.model(images, *args, **kwargs)
        idle = [self.names[key] for key, values in found.items() if not values]
        if idle:
            raise ValueError(f"{type(self.model).__name__} did not call {', '.join(idle)} as a module")
        values = {key: runs[0] if len(runs) == 1 else runs for key, runs in found.items()}
        embeddings = values if self.several else next(iter(values.values()))
        return embeddings if only else (output, embeddings)

    def keep(self, x: Tensor) -> Tensor:
        """Return a tensor as it was asked for: detached, copied, moved."""
        x = x.detach() if self.detach else x
        moved = x.to(self.device)
        return moved.clone() if self.clone and moved is x else moved

    def _watch(self, layer: nn.Module, found: list[Any]) -> Callable[[], None]:
        """Collect what a layer gives, or takes, from now on; return what ends it."""

        def take(_: nn.Module, inputs: tuple[Any, ...], *output: Any) -> None:
            inputs = tuple(given for given in inputs if not isinstance(given, BlockInputs))
            value = output[0] if output else inputs[0] if len(inputs) == 1 else inputs
            found.append(map_tensors(self.keep, value))

        register = layer.register_forward_pre_hook if self.layer_save_input else layer.register_forward_hook
        return register(take).remove


def find_layer(model: nn.Module, layer: Layer) -> str:
    """Return the name of a layer, which is asked for by name, by index, or as a module.

    Raises:
        ValueError: where the model has no such layer.
    """
    kind = type(model).__name__
    if isinstance(layer, nn.Module):
        names = [name for name, part in model.named_modules() if part is layer]
        if not names:
            raise ValueError(f"the layer, a {type(layer).__name__}, is no part of the {kind}")
        return names[0]
    if isinstance(layer, int):
        info: Any = getattr(model, "feature_info", [])
        depths = list(dict.fromkeys(entry["module"] for entry in info))
        if not -len(depths) <= layer < len(depths):
            has = f"layers {-len(depths)} to {len(depths) - 1}" if depths else "no layers with an index"
            raise ValueError(f"{kind} has {has}, got {layer}")
        return depths[layer]
    names = [name for name, _ in model.named_modules() if name]
    if not isinstance(layer, str):
        raise ValueError(f"a layer is a name, an index or a module of the {kind}, got {layer!r}")
    if layer not in names:
        close = get_close_matches(layer, names, 3)
        hint = f"; close to it: {', '.join(close)}" if close else f"; it has {', '.join(list(names)[:8])} …"
        raise ValueError(f"{kind} has no layer {layer!r}{hint}")
    return layer


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Change the tensors in a value of tuples, lists and dictionaries; the rest stays as it is."""
    inside = partial(map_tensors, change)
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        changed = copy(value)
        for key, item in value.items():
            changed[key] = inside(item)
        return changed
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(inside, value))
    if isinstance(value, tuple | list):
        return type(value)(map(inside, value))
    return value
