"""Finding the file behind a checkpoint's name: a path, a folder, or a repository on the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from torch import Tensor

from vit_pytorch.base import check_default_cfg
from vit_pytorch.pretrained.files import read_weights, unwrap
from vit_pytorch.storage import is_address
from vit_pytorch.weights import (
    HUB,
    REPOSITORY,
    hub_errors_described,
    read_settings,
    verify_checksum,
    verify_hub_checksum,
)

Checkpoint = str | os.PathLike[str] | Mapping[str, Tensor]

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
# Pillow's numbers, which transformers writes.
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
PREPARE = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "window", "video", "volume")


@dataclass(frozen=True)
class Source:
    """What was found.

    Args:
        name: where the weights come from, for messages.
        state: the state dict, under the names of its format.
        prepare: how images are prepared, as far as the checkpoint's configuration says.
        license: licence of the weights, as far as the configuration says.
        config: the configuration beside the weights; empty if there is none.
    """

    name: str
    state: Mapping[str, Tensor]
    prepare: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def open_source(checkpoint: Checkpoint, *, key: str | None = None) -> Source:
    """Read a checkpoint.

    Args:
        checkpoint: a weight file; a folder with `model.safetensors` or `pytorch_model.bin`;
            `hf-hub:organisation/name` with an optional `@revision`; or a state dict.
        key: which state dict is meant where there are several (see `unwrap`).

    Raises:
        FileNotFoundError: where there is no such file.
        OSError: where the Hub cannot be reached and nothing is cached.
        ValueError: where it is a URL, no checkpoint at all, or a file that is damaged or would execute code.
    """
    if isinstance(checkpoint, Mapping):
        return Source("the state dict", unwrap(checkpoint, source="the state dict", key=key))
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise ValueError(f"a checkpoint is a path, a {HUB} name or a state dict, got {checkpoint!r:.100}")
    name = os.fspath(checkpoint)
    if name.startswith(HUB):
        return _open_hub(name, key)
    if is_address(name):
        raise ValueError(
            f"a checkpoint is a path or a {HUB} name, got the URL {name}: download the file and pass its path"
        )
    path = Path(name)
    if not path.is_dir():
        # The configuration belongs to the file of this name; of others beside it nothing is known.
        config = (
            _read_config(beside)
            if path.name in WEIGHTS and (beside := path.parent / CONFIG).is_file()
            else {}
        )
        verify_checksum(path, config)
        return Source(name, read_weights(path, key=key), config=config)
    return _read_folder(name, lambda file: path / file if (path / file).is_file() else None, key)


def _open_hub(name: str, key: str | None) -> Source:
    repository, _, revision = name.removeprefix(HUB).partition("@")
    if not REPOSITORY.fullmatch(repository):
        raise ValueError(f"a name on the Hub is {HUB}organisation/name, got {name!r}")

    def find(file: str) -> Path | None:
        try:
            with hub_errors_described(f"{file} of {repository}", constants.HF_HUB_CACHE):
                path = Path(hf_hub_download(repository, file, revision=revision or None))
        except EntryNotFoundError:
            return None
        except HfHubHTTPError as error:
            raise OSError(f"cannot get {file} of {repository}: {str(error).splitlines()[0]}") from error
        verify_hub_checksum(path)
        return path

    return _read_folder(name, find, key)


def _read_folder(name: str, find: Callable[[str], Path | None], key: str | None) -> Source:
    weights = next((path for file in WEIGHTS if (path := find(file)) is not None), None)
    if weights is None:
        raise FileNotFoundError(f"{name} has no {' or '.join(WEIGHTS)}")
    config = _read_config(find(CONFIG))
    verify_checksum(weights, config)
    processor = _read_config(find(PROCESSOR)) if "model_type" in config else {}
    licenses = [part.get("license") for part in (config.get("pretrained_cfg") or {}, config)]
    licence = next((found for found in licenses if isinstance(found, str)), None)
    return Source(name, read_weights(weights, key=key), read_prepare(config, processor), licence, config)


def _read_config(path: Path | None) -> dict[str, Any]:
    """Read a configuration; empty where there is none. Ours says nothing that is unknown."""
    config = {} if path is None else read_settings(path)
    if "default_cfg" in config and isinstance(config.get("architecture"), str):
        check_default_cfg(config["default_cfg"], str(path))
    return config


def read_prepare(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
    """Read how images are prepared, from our configuration, timm's, or a processor of transformers."""
    found = dict(config.get("default_cfg") or config.get("pretrained_cfg") or {})
    found |= {key: processor[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in processor}
    if processor.get("resample") in RESAMPLE:
        found["interpolation"] = RESAMPLE[processor["resample"]]
    found |= _read_crop(processor)
    return {key: tuple(v) if isinstance(v := found[key], list) else v for key in PREPARE if key in found}


def _read_crop(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Read how a processor of transformers resizes and crops; nothing where it does not say sizes by name."""
    size, crop = processor.get("size"), processor.get("crop_size")
    if not isinstance(size, Mapping) or not processor.get("do_resize", True):
        return {}
    if not processor.get("do_center_crop"):
        # without a crop, images are resized to the model's size whatever their aspect ratio
        return {"crop_pct": 1.0, "crop_mode": "squash"} if "height" in size else {}
    edge = size.get("shortest_edge", size.get("height"))
    if not isinstance(crop, Mapping) or edge is None:
        return {}
    return {
        "crop_pct": crop["height"] / edge,
        "crop_mode": "center" if "shortest_edge" in size else "squash",
    }
