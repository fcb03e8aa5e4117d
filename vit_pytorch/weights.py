"""Reading weight files without executing anything; giving weights to a model or saying what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is truncated, corrupt or another format; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not an intact safetensors file: {error}") from error


@dataclass(frozen=True)
class Misfit:
    """How a state dict differs from what a model wants.

    Args:
        missing: names that the model has and the state dict lacks.
        unexpected: names that the state dict has and the model lacks.
        sizes: names whose shapes differ, with the model's shape and the state dict's.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    sizes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def __bool__(self) -> bool:
        """Tell whether anything differs."""
        return bool(self.missing or self.unexpected or self.sizes)

    def __str__(self) -> str:
        """Describe the difference, a line a kind, a few names each."""
        lines = []
        if self.missing:
            lines.append(f"missing ({len(self.missing)}): {_few(self.missing)}")
        if self.unexpected:
            lines.append(f"left over ({len(self.unexpected)}): {_few(self.unexpected)}")
        if self.sizes:
            sizes = [f"{name} expects {want}, got {got}" for name, (want, got) in self.sizes.items()]
            lines.append(f"sizes differ ({len(sizes)}): {_few(sizes)}")
        return "\n".join(lines)


def misfit(model: nn.Module, state: Mapping[str, Tensor]) -> Misfit:
    """Compare a state dict with the one that a model wants."""
    want = model.state_dict()
    return Misfit(
        missing=tuple(name for name in want if name not in state),
        unexpected=tuple(name for name in state if name not in want),
        sizes={
            name: (tuple(want[name].shape), tuple(tensor.shape))
            for name, tensor in state.items()
            if name in want and want[name].shape != tensor.shape
        },
    )


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy a state dict into a model, all or nothing.

    Args:
        model: what takes the weights.
        state: weights under the model's own names.
        source: where they come from, for the error.

    Raises:
        ValueError: where anything is missing, left over or of another size; the model is unchanged then.
    """
    difference = misfit(model, state)
    if difference:
        raise ValueError(f"{source} does not fit {type(model).__name__}:\n{difference}")
    model.load_state_dict(dict(state))


def _few(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
