"""Weight files are read without executing anything, and damage is named."""

from __future__ import annotations

import pickle
import struct
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.pretrained.conftest import Payload
from vit_pytorch.pretrained.files import read_weights, unwrap

STATE = {"a.weight": torch.arange(600.0).reshape(20, 30), "a.bias": torch.ones(20)}


class Holder(nn.Module):
    """A module with the weights of a state dict."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.a = nn.Linear(30, 20)
        self.load_state_dict(state)


def assert_equal(state: dict[str, torch.Tensor]) -> None:
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_pickles_of_tensors_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save({"state_dict": STATE, "epoch": 3, "args": Namespace(lr=0.1)}, path)
    assert_equal(read_weights(path))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["state", "beside"])
def test_malicious_pickle_is_refused(tmp_path: Path, zipped: bool, where: str) -> None:
    marker = tmp_path / "executed"
    path = tmp_path / "weights.pt"
    payload = Payload(marker)
    checkpoint = {**STATE, "x": payload} if where == "state" else {"model": STATE, "x": payload}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"weights\.pt asks to run (posix|nt)\.system"):
        read_weights(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload of this test must work"


def test_malicious_plain_pickle_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = tmp_path / "weights.bin"
    path.write_bytes(pickle.dumps({"x": Payload(marker)}, protocol=2))
    with pytest.raises(ValueError, match=r"weights\.bin"):
        read_weights(path)
    assert not marker.exists()


def test_malicious_npz_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = tmp_path / "weights.npz"
    np.savez(path, a=np.ones(3), x=np.array([Payload(marker)], dtype=object))
    with pytest.raises(ValueError, match=r"weights\.npz is not an intact \.npz file of plain arrays"):
        read_weights(path)
    assert not marker.exists()


def save(path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(STATE, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in STATE.items()})
    else:
        torch.save(STATE, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_intact_files_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save(path)
    assert_equal(read_weights(path))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
@pytest.mark.parametrize("damage", ["empty", "first bytes", "half", "all but one byte", "html", "zeros"])
def test_damaged_file_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save(path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "first bytes": whole[:5],
            "half": whole[: len(whole) // 2],
            "all but one byte": whole[:-1],
            "html": b"<!doctype html><title>Not found</title>" * 9,
            "zeros": bytes(len(whole)),
        }[damage]
    )
    with pytest.raises(ValueError, match=rf"weights\{suffix} is not an intact"):
        read_weights(path)


@pytest.mark.parametrize("size", [2**62, 99_000_000, 2**64 - 1])
def test_huge_safetensors_header_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", size) + b'{"a":{}}')
    with pytest.raises(ValueError, match=r"weights\.safetensors is not an intact safetensors file"):
        read_weights(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    for suffix in (".safetensors", ".npz", ".pt"):
        with pytest.raises(FileNotFoundError, match=rf"absent\{suffix}"):
            read_weights(tmp_path / f"absent{suffix}")


def test_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    path.write_bytes(b"\x89HDF")
    with pytest.raises(ValueError, match=r"weights are \.safetensors, \.npz, .* files, got .*weights\.h5"):
        read_weights(path)


def test_bfloat16_arrays_of_jax_are_read(tmp_path: Path) -> None:
    values = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    np.savez(tmp_path / "weights.npz", a=values.view(torch.int16).numpy().view("V2"))
    assert torch.equal(read_weights(tmp_path / "weights.npz")["a"], values)


@pytest.mark.parametrize(
    "wrapped",
    [
        STATE,
        {"model": STATE, "epoch": 1},
        {"state_dict": STATE},
        {"state_dict": {f"model.{name}": tensor for name, tensor in STATE.items()}},
        {"model": {f"module.{name}": tensor for name, tensor in STATE.items()}},
        {"state_dict": {"model": {f"module._orig_mod.{name}": v for name, v in STATE.items()}}},
        *(
            {key: STATE, "epoch": 3}
            for key in ("model_state_dict", "net", "student", "ema", "model_ema", "module")
        ),
        {"model": {"dim": 3}, "model_state_dict": STATE, "optimizer": {"state": {}}},
        {"student": {}, "teacher": STATE},
        AveragedModel(Holder(STATE)).state_dict(),
        {"ema": AveragedModel(Holder(STATE)).state_dict()},
    ],
)
def test_wrappers_are_taken_off(wrapped: dict[str, Any]) -> None:
    assert_equal(unwrap(wrapped, source="x"))


def test_checkpoint_that_holds_itself_is_refused() -> None:
    checkpoint: dict[str, Any] = {}
    checkpoint["model"] = checkpoint
    with pytest.raises(ValueError, match="x holds no state dict: no tensors under model"):
        unwrap(checkpoint, source="x")


def test_npz_of_words_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", a=np.array(["word"]))
    with pytest.raises(ValueError, match=r"weights\.npz is not an intact \.npz file of plain arrays"):
        read_weights(tmp_path / "weights.npz")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({}, "x holds no state dict, but an empty dict"),
        ({"model": {}}, "x holds no state dict: no tensors under model"),
        ({"model": {"dim": 3}}, "x holds no state dict: no tensors under model"),
        ([1, 2], "x holds no state dict, but a list"),
        ({"model": [1]}, "x holds no state dict: no tensors under model"),
        ({"weights": STATE, "epoch": 3}, "x holds no state dict: no tensors under weights, epoch"),
        (
            {"model": STATE, "model_ema": STATE},
            "x holds several state dicts, pass key= one of model, model_ema",
        ),
        ({"state_dict": STATE, "state_dict_ema": STATE}, "pass key= one of state_dict, state_dict_ema"),
        ({"student": STATE, "teacher": STATE, "ema": STATE}, "one of student, teacher, ema"),
    ],
)
def test_what_holds_no_state_dict_is_refused(checkpoint: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unwrap(checkpoint, source="x")


@pytest.mark.parametrize(
    "key", ["model_ema", "state_dict.net", "state_dict.net.", "lightning.state_dict.teacher"]
)
def test_a_key_chooses_among_several(key: str) -> None:
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    checkpoint = {
        "model": other,
        "model_ema": STATE,
        "state_dict": {**_under("net", STATE), **_under("teacher", other)},
        "lightning": {"state_dict": {**_under("student", other), **_under("teacher", STATE)}},
    }
    assert_equal(unwrap(checkpoint, source="x", key=key))


def test_a_key_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"x has no key 'emma', but model, ema"):
        unwrap({"model": STATE, "ema": STATE}, source="x", key="emma")


def _under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}
