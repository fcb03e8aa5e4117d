"""Reading weight files of other programs without executing anything."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from vit_pytorch.weights import likely_repository, name_few, read_safetensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
# keys under which training programs keep state dicts; of a student and its teacher, which is what is used,
# DINO keeps both
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
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
# what `torch.compile`, FSDP and activation checkpointing put into the names of the modules that they wrap
WRAPPED = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
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
        raise FileNotFoundError(f"no weights at {path}{likely_repository(path)}")
    if path.suffix == ".npz":
        return unwrap(_read_npz(path), source=str(path), key=key) if key is not None else _read_npz(path)
    if path.suffix in PICKLES:
        return unwrap(_read_pickle(path), source=str(path), key=key)
    kinds = ", ".join((".safetensors", ".npz", *PICKLES))
    raise ValueError(f"weights are {kinds} files, got {path}")


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
    if unnamed := [name for name in state if not isinstance(name, str)]:
        raise ValueError(f"{source} holds no state dict: names must be strings, got {unnamed[0]!r}")
    wrong = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f"{source} holds no state dict: no tensors under {name_few(wrong)}")
    sparse = [name for name, value in state.items() if value.layout != torch.strided or value.is_nested]
    if sparse:
        raise ValueError(f"{source}: weights must be dense tensors, they are not in {name_few(sparse)}")
    unwrapped = {WRAPPED.sub("", name): tensor for name, tensor in state.items()}
    if len(unwrapped) < len(state):
        raise ValueError(f"{source} holds weights twice, with and without the names of wrappers")
    state = unwrapped
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
        raise ValueError(f"{source} has no key {part!r}, but {name_few(map(str, state), most=8)}")
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
