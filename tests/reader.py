"""Somebody who reads the report in a real Chromium; screenshots are left in build/report/."""
from __future__ import annotations

import base64
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install -e '.[dev]')")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

SHOTS = ROOT / "build" / "report"


@dataclass(frozen=True)
class Reader:
    """Somebody with a browser."""

    driver: Any

    def open(self, path: Path, fragment: str = "") -> None:
        """Opens a page from its file and waits until it is ready."""
        self.driver.get("about:blank")
        self.driver.get(path.as_uri() + fragment)
        self.until(lambda: self.run("return document.body?.dataset.ready"), "the page to be ready")

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script in the page gives back."""
        return self.driver.execute_script(script, *arguments)

    def until(self, what: Callable[[], Any], words: str, seconds: float = 10) -> Any:
        """Waits until ``what`` is true; fails saying what for."""
        end = time.monotonic() + seconds
        while not (result := what()):
            assert time.monotonic() < end, f"waited {seconds} s in vain for {words}"
            time.sleep(0.05)
        return result

    def one(self, selector: str) -> WebElement:
        """The first element of a CSS selector."""
        found: WebElement = self.driver.find_element(By.CSS_SELECTOR, selector)
        return found

    def texts(self, selector: str) -> list[str]:
        """What every element of a selector says."""
        found: list[str] = self.run("return [...document.querySelectorAll(arguments[0])].map((n) => n.textContent)", selector)
        return found

    def show(self, section: str) -> None:
        """Scrolls to a section."""
        self.run("document.getElementById(arguments[0]).scrollIntoView({behavior: 'instant'})", section)

    def choose(self, select: str, value: str) -> None:
        """Chooses an option as a hand does."""
        self.one(f"#{select} option[value={json.dumps(value)}]").click()

    def write(self, text: str) -> None:
        """Writes into the filter, in place of what is there."""
        field = self.one("#filter")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text or Keys.BACKSPACE)

    def column(self, key: str) -> list[str]:
        """A column of the table, from top to bottom."""
        place = self.run("return [...document.querySelectorAll('#grid thead tr:first-child th')].findIndex((n) => "
                         "n.dataset.key === arguments[0]) + 1", key)
        return self.texts(f"#grid tbody tr:not(.sampler) td:nth-child({place})")

    def screen(self, *, width: int = 1440, height: int = 900, phone: bool = False, scheme: str = "light") -> None:
        """Another screen: a size, and light or dark."""
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
            {"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]})

    def shoot(self, name: str) -> None:
        """Keeps a screenshot of the whole page, everything on it drawn."""
        place = 0
        while place < self.run("return document.documentElement.scrollHeight"):  # which grows as its parts are drawn
            self.run("scrollTo({top: arguments[0], behavior: 'instant'})", place)
            place += 700
            time.sleep(0.03)
        self.run("scrollTo({top: 0, behavior: 'instant'})")
        time.sleep(0.3)
        width, height = self.run("return [innerWidth, document.documentElement.scrollHeight]")
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {
            "captureBeyondViewport": True, "clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}})
        SHOTS.mkdir(parents=True, exist_ok=True)
        (SHOTS / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


def installed(name: str) -> str:
    """The path of a program; where it must be had (CI, and root on Debian, who can install it) its lack is a failure."""
    path = shutil.which(name)
    if path is None:
        words = f"{name} is not installed; apt-get install chromium chromium-driver"
        if os.environ.get("CI") or (os.geteuid() == 0 and Path("/etc/debian_version").exists()):
            pytest.fail(words)
        pytest.skip(words)
    return path
