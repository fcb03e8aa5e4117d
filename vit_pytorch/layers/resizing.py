"""Bringing a model that stands to another input size: its tables are interpolated, the rest stays."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

# what PyTorch keeps in each module: parameters, hooks, whether it trains
_OF_PYTORCH = frozenset(vars(nn.Module()))


@runtime_checkable
class Resizable(Protocol):
    """A module with parameters that belong to a grid or a window."""

    def resized(self, like: Any, *, antialias: bool = True) -> dict[str, Tensor]:
        """Return these parameters by name, for the grid or window of another module of its class.

        Args:
            antialias: low-pass before shrinking, where positions of images are interpolated.
        """


@torch.no_grad()
def take_size(model: nn.Module, like: nn.Module, before: nn.Module, *, antialias: bool = True) -> None:
    """Bring a model to the size of another one, which was built by the same arguments but for the size.

    Parameters of the same shape stay the same objects, and so do modules with what hangs on them.

    Args:
        model: changed in place, or not at all.
        like: its parameters need no values.
        before: a model of the arguments of `model`; settings in which `like` differs from it are taken, so
            that others, which may have been changed since, stay.

    Raises:
        ValueError: if the two consist of other modules, or a parameter of another shape cannot be resized.
    """
    pairs = list(zip(model.named_modules(), like.named_modules(), strict=False))
    saved = like.state_dict().keys()
    changed: list[tuple[nn.Module, str, nn.Parameter]] = []
    for (name, old), (other, new) in pairs:
        own, wanted = dict(old.named_parameters(recurse=False)), dict(new.named_parameters(recurse=False))
        if name != other or type(old) is not type(new) or own.keys() != wanted.keys():
            raise ValueError(
                f"{type(model).__name__} of this size has another {other or 'class'}: {type(new).__name__}; "
                f"the model has {name}: {type(old).__name__}"
            )
        fitting: dict[str, Tensor] = {}
        for key, parameter in own.items():
            if parameter.shape == wanted[key].shape:
                continue
            if not fitting and isinstance(old, Resizable):
                fitting = old.resized(new, antialias=antialias)
            if key not in fitting:
                raise ValueError(
                    f"{type(model).__name__} cannot take this size: {name}.{key} of "
                    f"{tuple(parameter.shape)} would be {tuple(wanted[key].shape)}"
                )
            changed.append((old, key, nn.Parameter(fitting[key], requires_grad=parameter.requires_grad)))
    for module, key, parameter in changed:
        setattr(module, key, parameter)
    for ((name, old), (_, new)), first in zip(pairs, before.modules(), strict=True):
        buffers = dict(old.named_buffers(recurse=False))
        for key, buffer in new.named_buffers(recurse=False):
            # Those that are saved have been learned.
            if f"{name}.{key}".removeprefix(".") not in saved:
                setattr(old, key, buffer.to(buffers[key].device, buffers[key].dtype))
        settings = {k: v for k, v in vars(new).items() if k not in _OF_PYTORCH and _is_setting(v)}
        vars(old).update({k: v for k, v in settings.items() if v != vars(first)[k]})


def _is_setting(value: Any) -> bool:
    """Return whether a value is made of numbers and words alone."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_setting, value))
    return value is None or isinstance(value, (bool, int, float, str)) or is_dataclass(value)
