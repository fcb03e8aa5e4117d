"""Reading weights without executing anything; giving them to a model or saying what does not fit."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any

import torch

# of the client's library, which is httpx or requests by its version
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from vit_pytorch.legacy import upgrade_state
from vit_pytorch.storage import file_sha256, replacing, write_file

# the settings of a configuration that hold the SHA-256 of the weights beside it, and of its other settings
CHECKSUM = "weights_sha256"
CONFIG_CHECKSUM = "config_sha256"
CHECKSUMS = (CHECKSUM, CONFIG_CHECKSUM)
# what checkpoints on the Hugging Face Hub are named by: this, and the repository
HUB = "hf-hub:"
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def likely_repository(name: str | os.PathLike[str]) -> str:
    """Return what to say of a path to nothing that may name a repository on the Hugging Face Hub."""
    if not REPOSITORY.fullmatch(os.fspath(name)) or Path(name).parent.exists():
        return ""
    return (
        f"; if it is a repository on the Hub, give {HUB}{os.fspath(name)} as the weights of a named model "
        "(`vit finetune --from` with `--model`, `create_model(NAME, pretrained=...)`)"
    )


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


def write_bundle(
    weights: Path, config: Path, settings: Mapping[str, Any], save: Callable[[Path], Any]
) -> None:
    """Write weights, then their configuration with the SHA-256 of both, each file all or nothing.

    Args:
        weights: where the weights are written.
        config: where the configuration is written, as JSON.
        settings: the configuration.
        save: writes the weights to a path.

    Raises:
        OSError: where they cannot be written; names the file.
    """
    with replacing(weights) as file:
        save(file)
    checksums = {CHECKSUM: file_sha256(weights), CONFIG_CHECKSUM: settings_sha256(settings)}
    write_file(config, json.dumps({**settings, **checksums}, indent=2) + "\n")


def settings_sha256(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of settings, whatever their order and layout in a file, without checksums."""
    # a file has lists for tuples and strings for keys
    stored = json.loads(json.dumps({key: value for key, value in settings.items() if key not in CHECKSUMS}))
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def read_settings(file: Path) -> dict[str, Any]:
    """Read a configuration in JSON, and check its SHA-256 where it has one.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is no JSON object, names a setting twice, or is not as it was written; names the
            file.
    """
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is no regular file")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=unique_pairs)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds no configuration, but a {type(settings).__name__}")
    wanted = settings.get(CONFIG_CHECKSUM)
    if wanted is not None and settings_sha256(settings) != wanted:
        raise ValueError(
            f"{file} is damaged: the SHA-256 of its settings is not its {CONFIG_CHECKSUM}; take a whole "
            f"copy, or remove {CONFIG_CHECKSUM} if it was changed on purpose: create_model(FOLDER)."
            "save_pretrained(FOLDER) then writes it anew"
        )
    return settings


def unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object.

    Raises:
        ValueError: if a key stands twice.
    """
    settings = dict(pairs)
    if len(settings) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands in it twice")
    return settings


def verify_checksum(weights: Path, settings: Mapping[str, Any]) -> None:
    """Check weights by the SHA-256 in their configuration; one without it, as of version 0.1, fits all.

    Raises:
        ValueError: where they are others; names the file.
    """
    wanted = settings.get(CHECKSUM)
    if wanted is not None and weights.is_file() and file_sha256(weights) != wanted:
        raise ValueError(
            f"{weights} is damaged: its SHA-256 is not the {CHECKSUM} of its configuration; take a whole "
            f"copy, or remove {CHECKSUM} from the configuration if the weights were changed on purpose"
        )


def verify_hub_checksum(path: Path) -> None:
    """Check a file of the Hub's cache by its SHA-256, where that is known: large files are named by it.

    Raises:
        ValueError: where it is another; names the file.
    """
    wanted = path.resolve().name
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        return
    if file_sha256(path) != wanted:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is not the published {wanted[:12]}…; remove it to get it again"
        )


@contextmanager
def hub_errors_described(what: str, cache: str | os.PathLike[str]) -> Iterator[None]:
    """Context manager: say in one sentence that the Hub cannot be reached, or that a connection was lost.

    Args:
        what: what is fetched
        cache: the folder in which the Hub's client keeps what it has fetched

    Raises:
        OSError: instead of the client's own errors
    """
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"cannot get {what}: the Hugging Face Hub cannot be reached and {cache} does not hold it"
        ) from error
    except HTTPError as error:
        if isinstance(error, OSError):
            # an answer of the Hub
            raise
        said = str(error).partition("\n")[0] or type(error).__name__
        raise OSError(
            f"cannot get {what}: the connection to the Hugging Face Hub was lost ({said}); try again"
        ) from error


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
            lines.append(f"missing ({len(self.missing)}): {name_few(self.missing)}")
        if self.unexpected:
            lines.append(f"left over ({len(self.unexpected)}): {name_few(self.unexpected)}")
        if self.sizes:
            sizes = [f"{name} expects {want}, got {got}" for name, (want, got) in self.sizes.items()]
            lines.append(f"sizes differ ({len(sizes)}): {name_few(sizes)}")
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
        ValueError: where anything is missing, left over or of another size, or values are integers, booleans,
            not finite or beyond the range of the model's dtype; the model is unchanged then.
    """
    own = model.state_dict()
    state = upgrade_state(state, own)
    difference = state_dict_diff(model, state)
    if difference:
        raise ValueError(f"{source} does not fit {type(model).__name__}:\n{difference}")
    floating = {name: tensor for name, tensor in state.items() if own[name].is_floating_point()}
    check_values(floating, source)
    empty = [name for name, tensor in state.items() if tensor.is_meta and not own[name].is_meta]
    if empty:
        raise ValueError(
            f"{source}: weights must have values, there are none (device meta) in {name_few(empty)}"
        )
    for name, tensor in floating.items():
        most = torch.finfo(own[name].dtype).max
        if torch.finfo(tensor.dtype).max > most and not tensor.is_meta and (tensor.abs() > most).any():
            raise ValueError(
                f"{source}: weights must be in the range of the model's {own[name].dtype}, [{-most:.4g}, "
                f"{most:.4g}]; {name} reaches {tensor.abs().max():.4g}"
            )
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
            f"{source}: weights must be floating-point numbers, got {name_few(wrong)}; "
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
        raise ValueError(f"{source}: weights must be finite, they are not in {name_few(broken)}")


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


def name_few(names: Iterable[str], most: int = 4) -> str:
    """List a few names, and how many more there are."""
    names = list(names)
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
