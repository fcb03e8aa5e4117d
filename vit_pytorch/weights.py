"""Reading weight files without executing anything; giving weights to a model or saying what does not fit."""

from __future__ import annotations

import hashlib
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from threading import get_ident
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from vit_pytorch.legacy import upgrade_state

if TYPE_CHECKING:
    from numpy.typing import NDArray

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
# keys under which training programs keep state dicts; of a student and its teacher, which is what is used,
# DINO keeps both
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "student",
    "teacher",
    "ema",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
)
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
AVERAGED = "n_averaged"


def read_weights(path: str | Path, *, key: str | None = None) -> dict[str, Tensor]:
    """Read a weight file of any kind: safetensors, PyTorch's pickles, or NumPy's `.npz`.

    Nothing in the file is executed. State dicts are taken out of `{"state_dict": …}`, `{"model": …}`,
    `{"ema": …}` and the like, and names lose the prefixes that wrappers give to all of them (`module.`,
    `_orig_mod.`, `model.`, `net.`).

    Args:
        path: the file.
        key: which state dict is meant where there are several (see `unwrap`).

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is truncated, corrupt, of an unknown kind, or would execute code; names the file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return unwrap(read_safetensors(path), source=str(path), key=key)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if path.suffix == ".npz":
        return unwrap(_read_npz(path), source=str(path), key=key) if key is not None else _read_npz(path)
    if path.suffix in PICKLES:
        return unwrap(_read_pickle(path), source=str(path), key=key)
    kinds = ", ".join((".safetensors", ".npz", *PICKLES))
    raise ValueError(f"weights are {kinds} files, got {path}")


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


def verify_hub_checksum(path: Path) -> None:
    """Check a file of the Hub's cache by its SHA-256, where that is known: large files are named by it.

    Raises:
        ValueError: where it is another; names the file.
    """
    wanted = path.resolve().name
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    if digest.hexdigest() != wanted:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is not the published {wanted[:12]}…; remove it to get it again"
        )


def unwrap(checkpoint: Any, *, source: str, key: str | None = None) -> dict[str, Tensor]:
    """Take the state dict out of what training programs put around it.

    Args:
        checkpoint: what a file holds.
        source: where it comes from, for errors.
        key: which state dict is meant where there are several: a key of the checkpoint (`model_ema`), a
            prefix of names (`teacher` for `teacher.…`), or one after the other (`state_dict.teacher`).

    Raises:
        ValueError: where there is no state dict inside, or more than one and no key.
    """
    state = checkpoint
    for part in key.rstrip(".").split(".") if key is not None else ():
        state = _take(state, part, source)
    while isinstance(state, Mapping):
        inner = [name for name in WRAPPERS if _has_tensors(state.get(name))]
        if set(inner) == {"student", "teacher"}:
            inner = ["teacher"]
        if len(inner) > 1:
            raise ValueError(f"{source} holds several state dicts, pass key= one of {', '.join(inner)}")
        if not inner:
            break
        state = state[inner[0]]
    if not isinstance(state, Mapping) or not state:
        empty = "an empty" if isinstance(state, Mapping) else "a"
        raise ValueError(f"{source} holds no state dict, but {empty} {type(state).__name__}")
    wrong = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f"{source} holds no state dict: no tensors under {_few(wrong)}")
    state = dict(state)
    # `torch.optim.swa_utils.AveragedModel` counts its steps beside the module.
    if all(name.startswith("module.") for name in state if name != AVERAGED):
        state.pop(AVERAGED, None)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _has_tensors(value: Any, depth: int = 3) -> bool:
    """Return whether a mapping holds tensors, at most so many mappings deep."""
    if not isinstance(value, Mapping):
        return isinstance(value, Tensor) and depth < 3
    return depth > 0 and any(_has_tensors(inner, depth - 1) for inner in value.values())


def _take(state: Any, part: str, source: str) -> Any:
    """Return what is under a key, or the tensors whose names begin with it."""
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{source} has nothing under the key {part!r}, which would be in a {type(state).__name__}"
        )
    if part in state:
        return state[part]
    names = [name for name in state if isinstance(name, str) and name.startswith(f"{part}.")]
    if not names:
        raise ValueError(f"{source} has no key {part!r}, but {_few(map(str, state), most=8)}")
    return {name.removeprefix(f"{part}."): state[name] for name in names}


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file, torch.serialization.safe_globals([Namespace]):
        return _unpickle(file, path)


def _unpickle(file: BinaryIO, path: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        if culprit is None:
            raise ValueError(f"{path} is not an intact PyTorch file") from error
        raise ValueError(
            f"{path} asks to run {culprit[1]}; files that hold more than tensors and plain values are refused"
        ) from error
    except Exception as error:
        # Corrupt pickles fail in as many ways as there are bytes.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is not an intact PyTorch file: {reason}") from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: _from_numpy(archive[name]) for name in archive.files}
        except Exception as error:
            # Corrupt archives fail in as many ways as corrupt pickles.
            raise ValueError(f"{path} is not an intact .npz file of plain arrays: {error}") from error


def _from_numpy(array: NDArray[Any]) -> Tensor:
    """Read an array; JAX writes bfloat16 as two raw bytes."""
    if array.dtype.str.endswith("V2"):
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


@dataclass(frozen=True)
class IncompatibleKeys:
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
        """Return whether anything differs."""
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


def state_dict_diff(model: nn.Module, state: Mapping[str, Tensor]) -> IncompatibleKeys:
    """Compare a state dict with the one that a model wants."""
    want = model.state_dict()
    return IncompatibleKeys(
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
        model: what takes the weights, also one that was built `init_empty_weights`.
        state: weights under the model's own names.
        source: where they come from, for the error.

    Raises:
        ValueError: where anything is missing, left over or of another size, or values are integers, booleans
            or not finite; the model is unchanged then.
    """
    own = model.state_dict()
    state = upgrade_state(state, own)
    difference = state_dict_diff(model, state)
    if difference:
        raise ValueError(f"{source} does not fit {type(model).__name__}:\n{difference}")
    check_values({name: tensor for name, tensor in state.items() if own[name].is_floating_point()}, source)
    if not any(tensor.is_meta for tensor in own.values()):
        model.load_state_dict(dict(state))
        return
    # Copies, since a file that is mapped into memory may be written again.
    values = {
        name: tensor if tensor.is_meta else torch.empty(tensor.shape, dtype=own[name].dtype).copy_(tensor)
        for name, tensor in state.items()
    }
    model.load_state_dict(values, assign=True)


def check_values(state: Mapping[str, Tensor], source: str) -> None:
    """Check that weights are finite floating-point numbers.

    Raises:
        ValueError: naming the weights that are not.
    """
    wrong = [f"{name} ({tensor.dtype})" for name, tensor in state.items() if not tensor.is_floating_point()]
    if wrong:
        raise ValueError(
            f"{source}: weights must be floating-point numbers, got {_few(wrong)}; "
            "quantised weights have to be dequantised first"
        )
    broken = [
        f"{name} ({int((~finite).sum())} of {tensor.numel()} values)"
        for name, tensor in state.items()
        if not tensor.is_meta
        # numbers of 8 bits have no test of their own
        and not (finite := (tensor.float() if tensor.itemsize == 1 else tensor).isfinite()).all()
    ]
    if broken:
        raise ValueError(f"{source}: weights must be finite, they are not in {_few(broken)}")


@contextmanager
def init_empty_weights() -> Iterator[None]:
    """Return the parameters of what is built meanwhile, in this thread, no values but shapes (device "meta").

    `load_weights` then gives them their values, and none is drawn at random before. Buffers are computed.
    """
    thread = get_ident()

    def empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or get_ident() != thread:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    # PyTorch takes what a hook gives, though its annotation does not say so.
    hook = register_module_parameter_registration_hook(empty)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def _few(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
