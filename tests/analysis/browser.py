"""What a test does with a page in a browser."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vit_pytorch.base import VisionModel

# of the patches of `make_vit`
ROWS, COLUMNS = 5, 7


class Page:
    """A report that is open.

    Args:
        driver: the browser.
        model: what was explained.
        images: on these.
    """

    def __init__(self, driver: Any, model: VisionModel, images: torch.Tensor) -> None:
        self.driver = driver
        self.model = model
        self.images = images

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def hover(self, row: int, column: int) -> None:
        """Move the pointer onto a patch."""
        from selenium.webdriver import ActionChains

        stage = self.find("#map")
        right = (column + 0.5) / COLUMNS - 0.5
        down = (row + 0.5) / ROWS - 0.5
        offset = (round(right * stage.size["width"]), round(down * stage.size["height"]))
        ActionChains(self.driver, 0).move_to_element_with_offset(stage, *offset).perform()

    def overlay(self) -> str:
        return self.run("return document.getElementById('overlay').toDataURL()")

    def changed(self, before: str) -> str:
        """Wait for another overlay."""
        return self.until(lambda: (now := self.overlay()) != before and now)

    def until(self, condition: Callable[[], Any]) -> Any:
        for _ in range(1000):
            if found := condition():
                return found
            time.sleep(0.02)
        raise AssertionError("nothing changed in twenty seconds")

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def most(self) -> list[tuple[str, str]]:
        pairs = "li => [li.firstChild.textContent, li.lastChild.textContent]"
        return [
            tuple(pair)
            for pair in self.run(f"return [...document.querySelectorAll('#most li')].map({pairs})")
        ]


def open_page(driver: Any, path: Path, *, width: int = 1200, **media: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(path.as_uri())
    for _ in range(1000):
        if driver.execute_script("return document.documentElement.dataset.ready"):
            return
        time.sleep(0.02)
    raise AssertionError(driver.get_log("browser"))


def brightness(colour: str) -> float:
    """Relative luminance (WCAG 2)."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: float, second: float) -> float:
    """Contrast ratio (WCAG 2)."""
    low, high = sorted((first, second))
    return (high + 0.05) / (low + 0.05)
