"""The report's numbers: how maps are stored, and what is gathered of each kind of model."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.analysis.reports import make_report, make_vit
from tests.contracts.conftest import cases
from vit_pytorch.analysis import record_maps
from vit_pytorch.analysis.report import Subject, explain_image, write_pictures, write_report
from vit_pytorch.analysis.report.fit import fit_layers
from vit_pytorch.analysis.report.gather import CHEFER, relevance_by_input
from vit_pytorch.analysis.report.pack import merge_cells, pack, quantise, quantise_rows, restore_rows
from vit_pytorch.analysis.report.places import Layer, Places
from vit_pytorch.efficient import ViT as EfficientViT
from vit_pytorch.registry import ModelEntry


def softmax_maps(*shape: int, sharpness: float = 2.0) -> np.ndarray:
    return (torch.randn(shape) * sharpness).softmax(-1).numpy()


@pytest.mark.parametrize("steps", [255, 63, 15])
def test_rows_come_back_within_the_bound(steps: int) -> None:
    maps = softmax_maps(3, 40, 50)
    restored = restore_rows(quantise_rows(maps, steps))
    assert np.allclose(restored.sum(-1), 1, atol=1e-5)
    # The root errs by half a step; then a row is divided by its sum.
    largest = maps.max(-1, keepdims=True)
    half = 0.5 / steps
    squares = 2 * np.sqrt(maps / largest) * half + half**2
    bound = squares * largest + maps * (squares * largest).sum(-1, keepdims=True)
    assert (np.abs(restored - maps) <= 1.01 * bound / (1 - bound.sum(-1, keepdims=True) / 2).clip(0.1)).all()
    assert quantise_rows(maps, steps).max() == steps


def test_uniform_rows_come_back_exactly() -> None:
    uniform = np.full((1, 2, 5), 0.2, dtype=np.float32)
    assert np.allclose(restore_rows(quantise_rows(uniform, 15)), uniform, atol=1e-7)


@pytest.mark.parametrize("maps", [np.array([[[0.5, -0.5, 1.0]]]), np.zeros((1, 2, 3))])
def test_what_is_no_attention_is_refused(maps: np.ndarray) -> None:
    with pytest.raises(ValueError, match="at least 0 and rows sum to 1"):
        quantise_rows(maps.astype(np.float32), 255)


def test_packing_loses_nothing_and_takes_what_is_shorter() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 30, 40), dtype=np.uint8)
    alike = np.repeat(noise[:, :1], 30, axis=1) + np.arange(30, dtype=np.uint8)[:, None]
    for values, differences in ((noise, False), (alike, True)):
        packed = pack(values)
        assert packed.differences is differences
        assert (packed.unpack() == values).all()


def test_quantise_scales_from_zero_to_the_largest() -> None:
    assert quantise(np.array([-1.0, 0.0, 2.0, 4.0], dtype=np.float32)).tolist() == [0, 0, 128, 255]
    assert quantise(np.zeros(3, dtype=np.float32)).tolist() == [0, 0, 0]


def test_merged_cells_are_sums_of_keys_and_means_of_queries() -> None:
    maps = softmax_maps(2, 16, 16)  # a prefix token and 3 rows of 5 patches
    merged = merge_cells(merge_cells(maps, 1, (3, 5), 2, mean=True), 2, (3, 5), 2, mean=False)
    assert merged.shape == (2, 7, 7)
    assert np.allclose(merged.sum(-1), 1, atol=1e-5)
    corner = [1 + 0, 1 + 1, 1 + 5, 1 + 6]
    last = [1 + 14]
    assert np.allclose(merged[:, 1, 0], maps[:, corner, 0].mean(1), atol=1e-6)
    assert np.allclose(merged[:, 0, 1], maps[:, 0, corner].sum(1), atol=1e-6)
    assert np.allclose(merged[:, 6, 6], maps[:, last][:, :, last].sum((1, 2)), atol=1e-6)


def test_layers_get_coarser_until_they_fit() -> None:
    places = Places(1, 8, 8)
    layers = [Layer(f"{i}", torch.randn(2, 65, 65).mul(2).softmax(-1), places, places) for i in range(5)]
    sizes = []
    for most in (100_000, 40_000, 20_000, 5_000):
        fitted = fit_layers(layers, most)
        assert fitted.size <= most
        sizes.append((fitted.steps, fitted.block))
    assert sizes[0] == (255, 1)
    assert sizes[1][0] < 255
    assert sizes[1][1] == 1
    assert sizes[-1][1] > 1
    # Keys are merged before queries.
    blocks = [fit_layers(layers, most).layers[0].block for most in range(20_000, 4_000, -2_000)]
    assert blocks == sorted(blocks)
    assert any(queries < keys for queries, keys in blocks)
    with pytest.raises(ValueError, match=r"5 layers of attention take \d{4} characters .* got 100$"):
        fit_layers(layers, 100)


def test_the_page_stays_under_its_size(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 64, 64)
    model = make_vit(image_size=64, patch_size=4, depth=4)
    full = make_report(tmp_path, model, images).stat().st_size
    # Each weight takes a byte at most, a third more in base 64; there are 257 tokens.
    assert full < 60_000 + 4 / 3 * 2 * (4 * 2 + 1) * 257**2 + 2 * 40_000
    small = make_report(tmp_path, model, images, megabytes=0.3).stat().st_size
    assert full > 350_000
    assert small < 300_000
    with pytest.raises(ValueError, match="allow a larger page, or take fewer images, 1 of them") as refused:
        make_report(tmp_path, model, images, megabytes=0.1)
    # what it says is enough
    enough = float(str(refused.value).partition("about ")[2].split()[0])
    make_report(tmp_path, model, images, megabytes=enough)


def test_what_is_shown_is_what_the_model_computes() -> None:
    model, image = make_vit(), torch.randn(3, 40, 56)
    shown = explain_image(model, image, picture=torch.zeros(3, 32, 32, dtype=torch.uint8), top=3)
    probabilities = model(image[None]).softmax(1)[0]
    assert [index for index, _ in shown.top] == probabilities.argsort(descending=True)[:3].tolist()
    assert shown.top[0][1] == pytest.approx(probabilities.max().item(), rel=1e-5)
    for layer, maps in zip(shown.layers, record_maps(model, image[None]), strict=True):
        assert torch.equal(layer.maps, maps[0])
        assert layer.queries == layer.keys == Places(1, 5, 7)
    assert shown.prefix == ["class token"]
    assert shown.rollout is not None
    assert shown.relevance.method == CHEFER
    assert shown.relevance.maps.shape == (3, 5, 7)
    assert shown.notes == []


def test_gradient_times_input_of_a_linear_model_is_exact() -> None:
    head = nn.Linear(3 * 4 * 4, 5)
    image = torch.randn(1, 3, 4, 4)
    found = relevance_by_input(nn.Sequential(nn.Flatten(), head), image, [2, 0], (2, 2))
    product = (head.weight.unflatten(1, (3, 4, 4)) * image).sum(1).clamp(min=0)
    for row, index in enumerate((2, 0)):
        assert torch.allclose(found[row, 1, 0], product[index, 2:, :2].mean())


@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in cases()])
def test_every_model_of_images_has_a_report(entry: ModelEntry, tmp_path: Path) -> None:
    model = entry.build(**entry.tiny).eval()
    image = torch.randn(model.channels, *model.image_size)
    picture = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    if image.ndim != 3:
        with pytest.raises(ValueError, match="a report shows images"):
            explain_image(model, image, picture=picture)
        return
    shown = explain_image(model, image, picture=picture)
    assert torch.isfinite(shown.relevance.maps).all()
    assert shown.relevance.maps.min() >= 0
    if "recorder" in entry.exceptions:
        assert shown.layers == []
        assert "Attention is not shown" in shown.notes[0]
        return
    recorded = len(record_maps(model, image[None]))
    left_out = sum(int(found[1]) for note in shown.notes if (found := re.match(r"(\d+) of \d+ layers", note)))
    assert len(shown.layers) + left_out == recorded
    for layer in shown.layers:
        assert layer.maps.shape[1:] == (layer.queries.count, layer.keys.count)
    classes = [str(i) for i in range(model.num_classes)]
    path = tmp_path / "report.html"
    assert write_report(path, Subject(entry.name, [], classes), [shown], count=1) == path.stat().st_size
    assert all(file.stat().st_size > 100 for file in write_pictures(shown, tmp_path, "image"))


def test_a_model_whose_attention_cannot_be_seen_says_so(tmp_path: Path) -> None:
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = EfficientViT(image_size=16, patch_size=4, num_classes=3, dim=16, transformer=encoder).eval()
    shown = explain_image(model, torch.randn(3, 16, 16), picture=torch.zeros(3, 16, 16, dtype=torch.uint8))
    assert shown.layers == []
    assert "Attention is not shown" in shown.notes[0]
    files = write_pictures(shown, tmp_path, "x")
    assert [file.name for file in files] == ["x-original.png", "x-relevance.png"]


def test_a_model_without_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_classes=0 and top=5"):
        explain_image(
            make_vit(num_classes=0), torch.randn(3, 40, 56), picture=torch.zeros(3, 32, 32, dtype=torch.uint8)
        )


class Links(HTMLParser):
    """Everything in a page that may point elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]


def test_the_page_points_nowhere(tmp_path: Path) -> None:
    text = make_report(tmp_path, make_vit(), torch.randn(1, 3, 40, 56)).read_text()
    links = Links()
    links.feed(text)
    assert len(links.found) >= 2
    assert all(link.startswith(("#", "data:")) for link in links.found)
    assert "default-src 'none'" in text
    # The one address is the name of a vocabulary, which nothing fetches.
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in text
    assert "url(" not in text


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>"
    shown = explain_image(make_vit(), torch.randn(3, 40, 56), picture=torch.zeros(3, 8, 8, dtype=torch.uint8))
    subject = Subject(name, [name], [name] * 4, warning=name)
    write_report(tmp_path / "x.html", subject, [replace(shown, name=name)], count=1)
    text = (tmp_path / "x.html").read_text()
    assert "<script>alert" not in text
    report: Any = re.search(r'id="report">(.*?)</script>', text, re.S)
    assert json.loads(report[1])["images"][0]["name"] == name
