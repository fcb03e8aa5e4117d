"""Checkpoints come from paths, folders and the Hub's cache; URLs are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from transformers import ViTImageProcessor

from tests.papers.reference import randomise
from tests.pretrained.conftest import Payload, build
from vit_pytorch import ViT, create_model, load_pretrained
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry
from vit_pytorch.weights import CONFIG_CHECKSUM

NAME = "vit_tiny_patch16_224"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub, and no network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def publish(cache: Path, repository: str, state: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Lay files out as the Hub's client does."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    save_file(state, snapshot / "model.safetensors")
    (snapshot / "config.json").write_text(json.dumps(config))


@pytest.fixture
def published(cache: Path) -> VisionTransformer:
    """timm's repository of the tiny ViT, cut to one block."""
    reference = VisionTransformer(embed_dim=192, depth=1, num_heads=3)
    randomise(reference)
    prepare = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "crop_pct": 0.7}
    config = {"architecture": NAME, "num_classes": 1000, "pretrained_cfg": {"tag": "x", **prepare}}
    publish(cache, find_entry(NAME).hub_id or "", reference.state_dict(), config)
    return reference


@pytest.mark.parametrize("pretrained", [True, f"hf-hub:timm/{NAME}.augreg_in21k_ft_in1k"])
def test_published_weights_are_loaded(published: VisionTransformer, pretrained: bool | str) -> None:
    model = create_model(NAME, pretrained=pretrained, depth=1)
    assert torch.equal(model.head.weight, published.head.weight)
    assert model.default_cfg["mean"] == (0.1, 0.2, 0.3)
    assert model.default_cfg["std"] == (0.4, 0.5, 0.6)
    assert model.default_cfg["interpolation"] == "bilinear"
    assert model.default_cfg["crop_pct"] == 0.7
    assert model.default_cfg["input_size"] == (3, 224, 224)


def test_published_weights_for_other_classes_and_sizes(published: VisionTransformer) -> None:
    with pytest.warns(
        UserWarning, match="head.weight, head.bias are not from .* and have their initial values"
    ):
        model = create_model(NAME, pretrained=True, num_classes=10, depth=1, image_size=96)
    assert model.head.weight.shape == (10, 192)
    assert model.positions.table.shape == (1, 37, 192)
    assert torch.equal(model.prefix.class_token, published.cls_token)
    assert model.default_cfg["num_classes"] == 10


@pytest.mark.usefixtures("published")
def test_revision_of_a_repository(cache: Path) -> None:
    name = find_entry(NAME).hub_id
    create_model(NAME, pretrained=f"hf-hub:{name}@{COMMIT}", depth=1)
    with pytest.raises(OSError, match="cannot be reached"):
        create_model(NAME, pretrained=f"hf-hub:{name}@another", depth=1)


@pytest.mark.usefixtures("cache")
def test_offline_with_nothing_cached_is_said_in_one_line() -> None:
    message = rf"cannot get model\.safetensors of timm/{NAME}\..*cannot be reached and .*hub does not hold it"
    with pytest.raises(OSError, match=message) as caught:
        create_model(NAME, pretrained=True, depth=1)
    assert "\n" not in str(caught.value)


def test_no_published_weights_is_an_error() -> None:
    with pytest.raises(ValueError, match="no published weights are known for vit_tiny_patch14_224"):
        create_model("vit_tiny_patch14_224", pretrained=True)


@pytest.mark.parametrize("name", ["hf-hub:vit", "hf-hub:a/b/c", "hf-hub:", "hf-hub:../x"])
def test_malformed_names_on_the_hub_are_refused(model: ViT, name: str) -> None:
    with pytest.raises(ValueError, match="a name on the Hub is hf-hub:organisation/name, got"):
        load_pretrained(model, name)


def test_folder_that_save_pretrained_wrote(tmp_path: Path, model: ViT) -> None:
    model.default_cfg["mean"] = (0.1, 0.2, 0.3)
    model.save_pretrained(tmp_path)
    again = build()
    load_pretrained(again, tmp_path)
    assert torch.equal(again.head.weight, model.head.weight)
    assert again.default_cfg["mean"] == (0.1, 0.2, 0.3)


def test_folder_with_a_pickle_of_tensors(tmp_path: Path, model: ViT) -> None:
    torch.save(to_format(model, "transformers"), tmp_path / "pytorch_model.bin")
    again = build()
    load_pretrained(again, tmp_path)
    assert torch.equal(again.head.weight, model.head.weight)


def test_preparation_that_transformers_wrote(tmp_path: Path, model: ViT) -> None:
    save_file(to_format(model, "transformers"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    processor = ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=2)
    processor.save_pretrained(tmp_path)
    again = build()
    load_pretrained(again, tmp_path)
    assert again.default_cfg["mean"] == (0.1, 0.2, 0.3)
    assert again.default_cfg["std"] == (0.4, 0.5, 0.6)
    assert again.default_cfg["interpolation"] == "bilinear"


def test_folder_without_weights_is_named(tmp_path: Path, model: ViT) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors or pytorch_model\.bin"):
        load_pretrained(model, tmp_path)


def test_mean_of_other_channels_is_not_taken(tmp_path: Path) -> None:
    grey = build(channels=1)
    grey.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["default_cfg"].update(mean=[0.1, 0.2, 0.3], crop_pct=0.5)
    del config[CONFIG_CHECKSUM]
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = build(channels=1)
    load_pretrained(again, tmp_path)
    assert again.default_cfg["mean"] == (0.5,)
    assert again.default_cfg["crop_pct"] == 0.5


def test_damaged_configuration_is_named(tmp_path: Path, model: ViT) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"default_cfg": ')
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_pretrained(build(), tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json holds no configuration, but a list"):
        load_pretrained(build(), tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str], Path]]:
    """Serves a malicious pickle; tells who asked for it."""
    marker = tmp_path / "executed"
    path = tmp_path / "evil.pth"
    torch.save({"x": Payload(marker)}, path)
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(path.read_bytes())

        def log_message(self, *_: Any) -> None:
            return None

    with HTTPServer(("127.0.0.1", 0), Handler) as service:
        thread = Thread(target=service.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{service.server_port}/evil.pth", asked, marker
        service.shutdown()
        thread.join()


@pytest.mark.usefixtures("cache")
def test_url_is_refused(model: ViT, server: tuple[str, list[str], Path]) -> None:
    url, asked, marker = server
    with pytest.raises(ValueError, match=r"a checkpoint is a path or a hf-hub: name, got the URL http://"):
        load_pretrained(model, url)
    with pytest.raises(ValueError, match="got the URL"):
        create_model(NAME, pretrained=url, depth=1)
    assert asked == []
    assert not marker.exists()


@pytest.mark.parametrize("url", ["https://host/a.pth", "HTTPS://host/a.pth", "s3://x/a.npz", "file:///a.pt"])
def test_every_scheme_is_refused(model: ViT, url: str) -> None:
    with pytest.raises(ValueError, match="got the URL"):
        load_pretrained(model, url)
