"""The report of a large study in a browser: how long its reader waits for the table and the first chart."""
from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tools.bench.made import many
from tools.bench.measure import Row, Setting, Spread, at_most, progress, ratio

TITLE = "The report"
NOTE = ("Pages of studies that are made up, opened from their files by a headless Chromium that is started anew for every "
        "round, until the table and the first chart are there.")
RUNS, FEW, SECONDS = 300, 2, 2.0
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
         "--window-size=1440,900")


def rows(setting: Setting) -> list[Row]:
    """The lines of the report."""
    what = f"seconds until a page of {RUNS} runs is ready"
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        return [Row(what=what, measured="not measured: no chromium and chromedriver on the PATH")]
    times: dict[int, list[float]] = {RUNS: [], FEW: []}
    with tempfile.TemporaryDirectory() as folder:
        pages = {count: many(Path(folder) / str(count), count) for count in times}
        size = pages[RUNS].stat().st_size / 1e6
        for turn in range(setting.repeats):
            for count in list(pages)[:: 1 if turn % 2 == 0 else -1]:
                driver = browser(Path(folder) / "profile")
                times[count].append(ready(driver, pages[count]))
                driver.quit()
                shutil.rmtree(Path(folder) / "profile")
            progress(f"round {turn + 1} of {setting.repeats}")
    few = f"a page of {FEW} runs ({Spread(times[FEW]).median:.2f} s)"
    return [at_most(what, Spread(times[RUNS]), SECONDS, against=f"{size:.1f} MB", unit="s"),
            Row(what="the same, as a ratio", measured=f"{ratio(times[RUNS], times[FEW]):.2f} ×", against=few)]


def browser(profile: Path) -> Any:
    """A headless Chromium whose console can be read, driven by selenium, which downloads nothing."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    os.environ["SE_OFFLINE"] = "true"
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def ready(driver: Any, page: Path) -> float:
    """Seconds from opening a page to when it says that it is ready."""
    driver.set_script_timeout(60)
    driver.get(page.as_uri())
    driver.execute_async_script("""
        const done = arguments[0], look = () => document.body.dataset.ready ? done() : setTimeout(look, 20);
        look();""")
    return float(driver.execute_script("return performance.getEntriesByName('ready')[0].startTime")) / 1000
