"""What stands around a model for a while, and hands it back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn


class Wrapper(nn.Module):
    """Around a model, which stays the object that it is; its parameters and training flags are untouched."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise ValueError(f"model must be a module, got {model!r}")
        self.training = model.training
        self.ejected = False
        self.model = model

    def eject(self) -> nn.Module:
        """Return the model itself; the wrapper is of no use from then on."""
        self.ejected = True
        return self.model

    def check_in_use(self) -> None:
        """Check that the model has not been handed back.

        Raises:
            RuntimeError: where it has.
        """
        if self.ejected:
            raise RuntimeError(f"this {type(self).__name__} was ejected; wrap the model anew")


def uncompiled() -> AbstractContextManager[object]:
    """Context manager: run compiled modules eagerly, since compiled code knows nothing of later hooks."""
    # Without this module, whose import takes long, nothing was compiled.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Context manager: put a model in eval mode, and each part of it back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
