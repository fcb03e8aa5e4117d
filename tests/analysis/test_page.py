"""The report in a browser: pointer, keys, controls, themes, sizes."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.analysis.browser import COLUMNS, ROWS, Page, brightness, contrast, open_page
from tests.analysis.reports import make_report, make_vit
from vit_pytorch.analysis import record_maps
from vit_pytorch.analysis.report import Subject, explain_image, write_report
from vit_pytorch.base import VisionModel
from vit_pytorch.registry import find_entry

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Chromium without a window; its network is off, so that what a page asks for elsewhere fails."""
    if BROWSER is None or DRIVER is None:
        pytest.skip("the page is tested in Debian's chromium with chromium-driver, which are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd(
            "Network.emulateNetworkConditions",
            {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
        )
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VisionModel, torch.Tensor]:
    torch.manual_seed(0)
    model, images = make_vit(num_registers=1), torch.randn(2, 3, 40, 56)
    return make_report(tmp_path_factory.mktemp("report"), model, images), model, images


@pytest.fixture
def page(chromium: Any, written: tuple[Path, VisionModel, torch.Tensor]) -> Iterator[Page]:
    """Open the report; whatever is done with it, the console stays empty."""
    path, model, images = written
    open_page(chromium, path, prefers_color_scheme="light")
    yield Page(chromium, model, images)
    assert chromium.get_log("browser") == []


def test_it_asks_for_nothing_else(page: Page) -> None:
    assert page.run("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert page.text("h1") == "a model: what it looks at"


def test_hovering_a_patch_shows_what_it_attends_to(page: Page) -> None:
    start = page.overlay()
    page.hover(1, 2)
    first = page.changed(start)
    assert "row 2, column 3" in page.text("#who")
    page.hover(3, 5)
    second = page.changed(first)
    assert second != start
    assert page.find("#cell").is_displayed()
    maps = record_maps(page.model, page.images[:1])[-1][0].mean(0)
    row = maps[2 + 3 * COLUMNS + 5]
    names = ["class token", "register 1"]
    names += [f"row {r + 1}, column {c + 1}" for r in range(ROWS) for c in range(COLUMNS)]
    told = page.most()
    assert told[0][0] == names[int(row.argmax())]
    for name, share in told:
        assert float(share.removesuffix(" %")) == pytest.approx(100 * row[names.index(name)].item(), abs=0.6)
    page.run("document.getElementById('map').dispatchEvent(new PointerEvent('pointerleave'))")
    assert page.changed(second) == start
    assert not page.find("#cell").is_displayed()


def test_the_overlay_is_the_map(page: Page) -> None:
    page.hover(2, 3)
    page.until(lambda: "row 3, column 4" in page.text("#who"))
    script = "const c = document.getElementById('overlay'); return [c.width, c.height, "
    script += "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]"
    width, height, data = page.run(script)
    assert (height, width) == (ROWS, COLUMNS)
    bright = np.array(data, dtype=float).reshape(ROWS * COLUMNS, 4)[:, :3].sum(1)
    row = record_maps(page.model, page.images[:1])[-1][0].mean(0)[2 + 2 * COLUMNS + 3, 2:].numpy()
    # The colours of the ramp get brighter all the way.
    values = row[bright.argsort()] / row.max()
    assert (np.diff(values) > -0.02).all()
    assert values[0] < 0.1


def test_a_click_keeps_a_patch_and_escape_lets_it_go(page: Page) -> None:
    start = page.overlay()
    page.hover(0, 0)
    hovered = page.changed(start)
    page.find("#map").click()  # in its middle
    kept = page.changed(hovered)
    page.run("document.getElementById('map').dispatchEvent(new PointerEvent('pointerleave'))")
    assert "row 3, column 4" in page.text("#who")
    assert page.overlay() == kept
    page.press("\ue00c")
    assert page.changed(kept) == start


def test_the_keyboard_reaches_and_moves_everything(page: Page) -> None:
    start = page.overlay()
    reached = []
    page.run("document.body.focus()")
    for _ in range(40):
        page.press("\ue004")
        reached.append(page.run("const e = document.activeElement; return e.id || e.name || e.parentNode.id"))
    for name in (
        "theme",
        "image",
        "mode",
        "map",
        "strength",
        "smooth",
        "class",
        "layer",
        "head",
        "from",
        "heads",
    ):
        assert name in reached
    page.find("#map").send_keys("")
    page.run("document.getElementById('map').focus()")
    outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.press("\ue015")
    middle = page.changed(start)
    assert "row 3, column 4" in page.text("#who")
    page.press("\ue014", "\ue015")
    page.changed(middle)
    assert "row 4, column 5" in page.text("#who")
    page.press("\ue010", "\ue013")
    page.until(lambda: "row 3, column 7" in page.text("#who"))
    page.press("\ue014")
    assert "row 3, column 7" in page.text("#who")
    page.press("\ue00e")
    page.until(lambda: "Layer 2" in page.text("#who"))
    page.until(lambda: "Layer 2" in page.run("return document.getElementById('live').textContent"))
    told = page.run("return document.getElementById('live').textContent")
    assert re.search(r"row 3, column 7, most comes from .+: \d+(\.\d+)? %; ", told)


def test_layers_and_heads(page: Page) -> None:
    start = page.overlay()
    page.run("const l = document.getElementById('layer'); l.value = 1; l.dispatchEvent(new Event('input'))")
    first = page.changed(start)
    assert page.text("#layer-shown") == "1 of 3"
    assert page.find("#layer").get_attribute("aria-valuetext").startswith("1 of 3, blocks.0")
    page.run("const h = document.getElementById('head'); h.value = 1; h.dispatchEvent(new Event('change'))")
    second = page.changed(first)
    assert "head 2" in page.text("#who")
    buttons = page.driver.find_elements("css selector", "#heads button")
    assert [button.get_attribute("aria-pressed") for button in buttons] == ["false", "true"]
    buttons[0].click()
    page.changed(second)
    assert page.find("#head").get_attribute("value") == "0"
    maps = record_maps(page.model, page.images[:1])[0][0, 0, 0]
    assert float(page.most()[0][1].removesuffix(" %")) == pytest.approx(100 * maps.max().item(), abs=0.6)


def test_modes_and_classes(page: Page) -> None:
    seen = [page.overlay()]
    for mode in ("rollout", "relevance", "tokens"):
        page.run(f"document.querySelector('input[name=mode][value={mode}]').click()")
        seen.append(page.changed(seen[-1]))
    assert len(set(seen)) == 4
    classes = page.driver.find_elements("css selector", "#classes label")
    assert len(classes) == 4
    classes[1].click()
    second = page.changed(seen[-1])
    assert page.run("return document.querySelector('input[name=mode]:checked').value") == "relevance"
    classes[0].click()
    assert page.changed(second) == seen[2]
    page.run("document.querySelector('input[name=mode][value=none]').click()")
    page.until(lambda: not page.find("#overlay").is_displayed())


def test_images(page: Page) -> None:
    start = page.overlay()
    names = [page.text("#classes")]
    page.run("document.querySelector('input[name=image][value=\"1\"]').click()")
    page.changed(start)
    assert "image 1.png" in page.find("#picture").get_attribute("alt")
    assert page.text("#classes") != names[0]


def test_distances(page: Page) -> None:
    dots = page.driver.find_elements("css selector", "#plot circle")
    assert len(dots) == 3 * 2
    label = page.find("#plot svg").get_attribute("aria-label")
    assert label.startswith("Mean attention distance of 3 layers: layer 1 ")
    page.run("document.querySelectorAll('#plot circle')[1].dispatchEvent(new MouseEvent('click'))")
    page.until(lambda: "Layer 1, head 2" in page.text("#who"))
    assert len(page.driver.find_elements("css selector", "#distances tbody tr")) == 3


def test_light_and_dark(page: Page, written: tuple[Path, VisionModel, torch.Tensor]) -> None:
    def colours() -> tuple[float, float]:
        found = page.run("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
        back, text = (brightness(colour) for colour in found)
        return back, text

    light, dark_text = colours()
    page.find("#theme").click()
    dark, light_text = colours()
    assert page.find("#theme").get_attribute("aria-pressed") == "true"
    assert contrast(light, dark_text) > 7
    assert contrast(dark, light_text) > 7
    assert light > 0.8
    assert dark < 0.05
    open_page(page.driver, written[0], prefers_color_scheme="dark")
    assert colours() == (dark, light_text)
    page.find("#theme").click()
    assert colours() == (light, dark_text)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_all_text(
    chromium: Any, written: tuple[Path, VisionModel, torch.Tensor], scheme: str
) -> None:
    open_page(chromium, written[0], prefers_color_scheme=scheme)
    script = """
    const back = (e) => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor; if (!c.startsWith("rgba(0, 0, 0, 0")) return c; } };
    return [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() &&
        [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
        .filter((e) => !["SCRIPT", "STYLE", "TITLE", "OPTION"].includes(e.tagName.toUpperCase()))
        .map((e) => [e.outerHTML.slice(0, 80), e.ownerSVGElement ? getComputedStyle(e).fill
            : getComputedStyle(e).color, back(e)]);"""
    found = chromium.execute_script(script)
    assert len(found) > 40
    poor = [row for row in found if contrast(brightness(row[1]), brightness(row[2])) < 4.5]
    assert poor == []


def test_every_control_has_a_name(page: Page) -> None:
    script = "return [...document.querySelectorAll('input, select, button, [tabindex]')].filter(e => "
    script += "!(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)"
    assert page.run(script) == []
    script = "const ids = [...document.querySelectorAll('[id]')].map(e => e.id); "
    script += "return ids.filter((id, i) => ids.indexOf(id) !== i)"
    assert page.run(script) == []


@pytest.mark.parametrize("width", [360, 700, 1200])
def test_nothing_sticks_out(
    chromium: Any, written: tuple[Path, VisionModel, torch.Tensor], width: int
) -> None:
    open_page(chromium, written[0], width=width)
    chromium.execute_script("document.querySelector('details').open = true")
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    script = "return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && "
    script += "e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.clip')).map(e => e.outerHTML)"
    assert chromium.execute_script(script) == []


def test_less_motion(chromium: Any, written: tuple[Path, VisionModel, torch.Tensor]) -> None:
    script = "return getComputedStyle(document.getElementById('cell')).transitionDuration"
    open_page(chromium, written[0], prefers_reduced_motion="no-preference")
    assert "0.08s" in chromium.execute_script(script)
    open_page(chromium, written[0], prefers_reduced_motion="reduce")
    assert "0.08s" not in chromium.execute_script(script)


KINDS = ["cait_xxs24_224", "navit_tiny_patch16", "pit_ti_distilled_224", "crossvit_tiny_240"]
KINDS += ["xcit_nano_12_p16_224", "deit_small_patch16_224_ats", "simple_vit_tiny_patch14_224"]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_can_be_looked_at(name: str, chromium: Any, tmp_path: Path) -> None:
    entry = find_entry(name)
    model = entry.build(**entry.tiny).eval()
    image = torch.randn(1, model.channels, *model.image_size)
    page = Page(chromium, model, image)
    path = make_report(tmp_path, model, image)
    open_page(chromium, path)
    layers = len(json.loads(page.find("#report").get_attribute("textContent"))["images"][0]["layers"])
    for layer in range(layers):
        script = "const l = document.getElementById('layer'); l.value = arguments[0]; "
        page.run(f"{script} l.dispatchEvent(new Event('input'))", layer + 1)
        page.until(lambda layer=layer: f"Layer {layer + 1}," in page.text("#who") + ",")
        page.hover(0, 0)
        page.until(lambda: "seen from" in page.text("#who"))
    modes = page.driver.find_elements("css selector", "#modes input")
    for mode in modes:
        page.run("arguments[0].click()", mode)
        page.hover(2, 2)
    froms = page.driver.find_elements("css selector", "#from input")
    for start in froms:
        page.run("arguments[0].click()", start)
    assert page.run("return document.getElementById('failure').hidden")
    assert chromium.get_log("browser") == []


def test_merged_patches(chromium: Any, tmp_path: Path) -> None:
    model, image = make_vit(image_size=44, patch_size=4), torch.randn(1, 3, 44, 44)
    path = make_report(tmp_path, model, image, megabytes=0.079)
    open_page(chromium, path)
    page = Page(chromium, model, image)
    size = page.run("const c = document.getElementById('overlay'); return [c.width, c.style.width]")
    assert size[0] == 6
    assert float(size[1].removesuffix("%")) >= 100
    assert "merged to one cell" in page.run("return document.body.textContent")
    page.find("#map").click()
    page.press("\ue010")
    page.until(lambda: "column 11, most" in page.text("#who"))
    assert "of 6 × 6" in page.text("#most")
    assert chromium.get_log("browser") == []


def test_a_model_whose_attention_cannot_be_seen(chromium: Any, tmp_path: Path) -> None:
    from torch import nn

    from vit_pytorch.efficient import ViT

    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = ViT(image_size=20, patch_size=4, num_classes=3, dim=16, transformer=encoder).eval()
    shown = explain_image(model, torch.randn(3, 20, 20), picture=torch.zeros(3, 20, 20, dtype=torch.uint8))
    write_report(tmp_path / "x.html", Subject("x", [], "abc"), [shown], count=1)
    open_page(chromium, tmp_path / "x.html")
    page = Page(chromium, model, torch.empty(0))
    assert not page.find("#attention").is_displayed()
    assert not page.find("#distance").is_displayed()
    assert "Attention is not shown" in page.text("#notes")
    page.find("#map").click()
    page.until(lambda: "relevance for" in page.text("#who"))
    assert chromium.get_log("browser") == []
