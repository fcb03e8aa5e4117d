"""A model goes to the Hub and comes back, by the Hub's own client and a server on this machine."""

import json
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
import torch

from tests.papers.reference import images
from tests.pretrained.conftest import build
from tests.pretrained.hub_server import HubServer, server
from vit_pytorch import ViT, load_pretrained

__all__ = ["server"]
NAME = "me/model"
# the client's own, in sending a large file
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@torch.no_grad()
def test_there_and_back(
    server: HubServer, model: ViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.default_cfg["mean"] = (0.1, 0.2, 0.3)
    model.push_to_hub(NAME, token="hf_token", private=True)
    (made,) = server.created
    assert (made["organization"], made["name"], made["visibility"]) == ("me", "model", "private")
    assert server.files.keys() == {"README.md", "config.json", "model.safetensors"}
    assert list(server.large.values()) == [server.files["model.safetensors"]]
    model.save_pretrained(tmp_path / "folder")
    for name in ("config.json", "model.safetensors"):
        assert server.files[name] == (tmp_path / "folder" / name).read_bytes()
    assert json.loads(server.files["config.json"])["architecture"] == "ViT"
    card = server.files["README.md"].decode()
    assert "library_name: vit_pytorch" in card
    assert "pipeline_tag: image-classification" in card

    x = images(48, 48)
    again = ViT.from_pretrained(NAME, token=False)
    assert again(x).equal(model(x))
    assert again.default_cfg["mean"] == (0.1, 0.2, 0.3)
    other = build().eval()
    assert load_pretrained(other, f"hf-hub:{NAME}").kept == ()
    assert other(x).equal(model(x))

    calls = len(server.calls)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ViT.from_pretrained(NAME)(x).equal(model(x))
    assert len(server.calls) == calls


@pytest.mark.parametrize("how", ["class", "checkpoint"])
def test_cached_weights_whose_bits_changed_are_refused(server: HubServer, model: ViT, how: str) -> None:
    """No length and no header tells; the name of a large file in the cache is its SHA-256."""
    model.push_to_hub(NAME, token="hf_token")
    ViT.from_pretrained(NAME, token=False)
    (digest,) = server.large
    (blob,) = Path(constants.HF_HUB_CACHE).rglob(f"blobs/{digest}")
    damaged = bytearray(blob.read_bytes())
    damaged[-5] ^= 1
    blob.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its SHA-256 is not the published"):
        ViT.from_pretrained(NAME) if how == "class" else load_pretrained(build(), f"hf-hub:{NAME}")


def test_offline_with_nothing_cached_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        OSError, match=r"cannot get me/model: .* cannot be reached and .*hub does not hold it"
    ) as e:
        ViT.from_pretrained(NAME)
    assert "\n" not in str(e.value)
