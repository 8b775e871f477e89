"""The report in a real Chromium: a real study's page and those of many runs, used as readers use them.

Screenshots are left in build/report/ to be looked at by whoever changes the page.
"""
from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from evaluation_records import quality, record
from PIL import Image
from reader import SHOTS, Reader, installed  # before selenium, without which it skips these tests
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_report import EVIL

from tools import report
from tools.bench.made import MODELS, PEAKS, held_out, many, start, studied, train, trained, usual
from tools.bench.report import browser as chromium
from tools.review.album import Album


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium with a profile of its own; nothing is downloaded."""
    installed("chromium")
    installed("chromedriver")
    driver = chromium(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def reader(browser: Any) -> Iterator[Reader]:
    """A reader at a desk, whose console must stay without errors; in a tab of its own, as the page remembers choices."""
    before = browser.current_window_handle
    browser.switch_to.new_window("tab")
    found = Reader(browser)
    found.screen()
    browser.get_log("browser")
    yield found
    said = [one for one in browser.get_log("browser") if one["level"] in ("SEVERE", "WARNING")]
    assert not said, said
    browser.close()
    browser.switch_to.window(before)


@pytest.fixture(scope="module")
def real(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a real study: two trainings, two samplers on each, run where there is no sbatch."""
    folder = tmp_path_factory.mktemp("real")
    tools = folder / "bin"  # a PATH without sbatch
    tools.mkdir()
    for name in ("git", "env", "true"):
        os.symlink(str(shutil.which(name)), tools / name)
    fixed = [one for one in tiny if not one.startswith(("sampler", "preview.every", "save.every"))]
    overrides = ["budget.images=160", "preview.every=80", "save.every=80", "diagnose.every=80", "preflight.disk_gb=0.01",
                 f"store={folder}/store", "rate.peak=0.001,0.01", "sampler=heun,langevin", "sampler.steps=4", "sample.n=4"]
    command = [sys.executable, "launch/sweep.py", "-m", *fixed, *overrides]
    env = {**os.environ, "PATH": str(tools), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    study = next((folder / "store" / "studies").glob("*/study.json")).parent
    report.write(study, study / "report.html", album=Album(), watch=None)
    return study / "report.html"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three hundred runs."""
    return many(tmp_path_factory.mktemp("large"), 300)


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of sixty runs, which a browser draws in less time."""
    return many(tmp_path_factory.mktemp("sixty"), 60)


@pytest.mark.timeout(400)
def test_a_real_study_is_read(real: Path, reader: Reader) -> None:
    reader.open(real)
    assert reader.texts("#tiles dd")[0].startswith("2 of 2")
    assert reader.texts("#tiles dd")[-1].startswith("0"), reader.texts("#problem-list")
    assert sorted(reader.column("rate.peak")) == ["0.001", "0.01"]
    assert len(reader.driver.find_elements(By.CSS_SELECTOR, "#grid tbody tr.sampler")) == 4
    reader.shoot("real-light")
    fetched = "return performance.getEntriesByType('resource').map((one) => one.name).filter((one) => !one.startsWith('data:'))"
    assert reader.run(fetched) == []
    best = min(reader.run("return report.content.runs"), key=lambda run: run["values"]["best_held_out"])
    assert shlex.split(reader.one("#command").text) == ["python", "launch/train.py", *best["arguments"]]
    reader.screen(scheme="dark")
    reader.shoot("real-dark")


def test_losses_of_different_schedules_name_no_winner(tmp_path: Path, reader: Reader) -> None:
    made = [("LogNormal", loss) for loss in (0.1, 0.2, 0.3, 0.4, 0.5)] + [("Geometric", loss) for loss in (0.8, 0.9)]
    runs = [trained(tmp_path, f"{schedule}{loss}", usual(loss), schedule=schedule, steps=100) for schedule, loss in made]
    study = studied(tmp_path, [(run, [f"schedule={schedule}", f"rate.peak={loss}"])
                               for run, (schedule, loss) in zip(runs, made, strict=True)])
    report.write(study, study / "report.html", album=Album(), watch=None)
    reader.open(study / "report.html")
    tiles = dict(zip(reader.texts("#tiles dt"), reader.texts("#tiles dd"), strict=True))
    assert tiles["Lowest held-out loss"].startswith("–"), tiles
    coloured = reader.run("return report.compared.map(({ run }) => run.values.best_held_out)")
    assert coloured == [0.1, 0.8, 0.2, 0.9], "the best of each schedule come first"


def test_hovering_tells_run_images_and_loss(real: Path, reader: Reader) -> None:
    reader.open(real)
    reader.show("loss")
    label, x, y = reader.run("""
        const chart = document.getElementById("loss-chart"), { xaxis, yaxis } = chart._fullLayout, trace = chart.data[0];
        return [trace.customdata[5], xaxis._offset + xaxis.d2p(trace.x[5]), yaxis._offset + yaxis.d2p(trace.y[5])];""")
    chart = reader.one("#loss-chart")
    ActionChains(reader.driver).move_to_element_with_offset(
        chart, round(x - chart.size["width"] / 2), round(y - chart.size["height"] / 2)).perform()
    words = reader.until(lambda: "".join(reader.texts("#loss-chart .hoverlayer .hovertext")), "a label at the pointer")
    assert label in words
    assert "train loss 0." in words or "train loss 1." in words
    assert "96 images" in words
    SHOTS.mkdir(parents=True, exist_ok=True)
    reader.driver.save_screenshot(str(SHOTS / "real-hover.png"))


def test_axes_become_logarithmic_and_back(real: Path, reader: Reader) -> None:
    reader.open(real)
    kinds = "const { xaxis, yaxis } = document.getElementById('loss-chart')._fullLayout; return [xaxis.type, yaxis.type]"
    assert reader.run(kinds) == ["linear", "log"]
    for name in ("log-x", "log-y"):
        reader.one(f"#{name}").send_keys(Keys.SPACE)
    reader.until(lambda: reader.run(kinds) == ["log", "linear"], "both axes to change")
    reader.one("#show-held-out").click()
    reader.until(lambda: all("train" in one for one in reader.run(
        "return document.getElementById('loss-chart').data.map((one) => one.hovertemplate)")), "held-out loss to go")


def test_both_sliders_change_the_pictures_by_arrow_keys(real: Path, reader: Reader) -> None:
    reader.open(real)
    every = "const every = [...document.querySelectorAll(arguments[0])]; "
    drawn = f"{every} return every.length > 0 && every.every((one) => one.dataset.drawn)"
    pixels = f"{every} return every.map((one) => one.toDataURL())"
    other = f"{every} return every.every((one, place) => one.toDataURL() !== arguments[1][place])"
    for section, pictures, slider, said in (("samples", "#previews canvas", "preview-slider", "preview-at"),
                                            ("trajectories", "#ways canvas", "step-slider", "step-at")):
        reader.show(section)
        reader.until(partial(reader.run, drawn, pictures), f"{section} to be drawn")
        before, words = reader.run(pixels, pictures), reader.one(f"#{said}").text
        reader.one(f"#{slider}").send_keys(Keys.ARROW_LEFT)
        reader.until(partial(reader.run, other, pictures, before), f"other pictures in {section}")
        assert reader.one(f"#{said}").text != words
    steps = reader.texts("#ways figcaption .small:last-child")
    assert len(steps) == 4
    assert all("σ" in one for one in steps)
    reader.choose("align", "sigma")
    reader.until(lambda: reader.one("#step-at").text.startswith("σ"), "the slider to align by σ")


def test_sorting_by_mouse_and_by_keyboard(sixty: Path, reader: Reader) -> None:
    reader.open(sixty)
    assert reader.column("best_held_out") == sorted(reader.column("best_held_out"), key=float), "the best is not first"
    head = reader.one("#grid th[data-key='rate.peak']")
    head.find_element(By.TAG_NAME, "button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(one) for one in reader.column("rate.peak")] == sorted(float(one) for one in reader.column("rate.peak"))
    reader.driver.switch_to.active_element.send_keys(Keys.TAB)
    focused = reader.driver.switch_to.active_element
    assert focused.text == "seed", "Tab does not go from one head to the next"
    focused.send_keys(Keys.ENTER)
    focused.send_keys(Keys.ENTER)
    assert reader.one("#grid th[data-key='seed']").get_attribute("aria-sort") == "descending"
    assert [int(one) for one in reader.column("seed")] == sorted(map(int, reader.column("seed")), reverse=True)


def test_filters_narrow_table_and_charts_and_say_kindly_what_is_wrong(sixty: Path, reader: Reader) -> None:
    reader.open(sixty)
    reader.write("model=unet loss<0.3")
    shown = reader.run("return report.content.runs.filter((run) => run.parameters.model === 'unet' && run.values.loss < 0.3)"
                       ".length")
    assert 0 < shown < 20
    assert reader.one("#count").text == f"{shown} of 60"
    assert set(reader.column("model")) == {"unet"}
    names = "return new Set(document.getElementById('loss-chart').data.flatMap((one) => one.customdata).filter(Boolean)).size"
    reader.show("loss")
    reader.until(lambda: reader.run(names) == shown, "the chart to follow")
    for text, words in (("sned=3", "there is no column “sned”"), ("loss<much", "needs a number, not “much”"),
                        ("model<3", "model is text")):
        reader.write(text)
        assert words in reader.one("#filter-fault").text
        assert reader.one("#filter").get_attribute("aria-invalid") == "true"
        assert reader.one("#count").text == "60", "what is wrong is not passed over"
    reader.write('-unet seed=0..4 rate.peak=1e-4,0.0003')
    left = [set(reader.column(key)) for key in ("model", "seed", "rate.peak")]
    assert left == [{"cnn"}, {"0", "1"}, {"1e-4", "3e-4"}]
    reader.show("table")
    reader.one("#clear").click()
    reader.one("#column-filters").click()
    reader.choose("grid [data-narrow=model]", "=cnn")
    reader.one("[data-narrow=seed]").send_keys(">17")
    assert (set(reader.column("model")), set(reader.column("seed"))) == ({"cnn"}, {"18", "19"})
    reader.shoot("sixty-filtered")


def test_ticked_runs_are_compared_and_no_more_than_eight(sixty: Path, reader: Reader) -> None:
    reader.open(sixty)
    boxes = reader.driver.find_elements(By.CSS_SELECTOR, "#grid td.tick input")
    for box in boxes[:9]:
        reader.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", box)
        box.send_keys(Keys.SPACE)
    assert [box.is_selected() for box in boxes[:9]] == [True] * 8 + [False]
    assert "8 runs can be compared" in reader.one("#count").text
    reader.show("samples")
    reader.until(lambda: len(reader.driver.find_elements(By.CSS_SELECTOR, "#previews canvas[data-drawn]")) == 8, "eight grids")


def test_any_two_parameters_make_a_heatmap(sixty: Path, reader: Reader) -> None:
    reader.open(sixty)
    reader.show("heatmap")
    data = "const { data: [one] } = document.getElementById('heat-chart'); return one.z"
    reader.until(lambda: reader.run("return document.getElementById('heat-chart').data"), "the heatmap")
    content = reader.run("return report.content.runs.map((run) => [run.parameters.model, run.parameters['rate.peak'], "
                         "run.values.best_held_out])")
    cells = [[[row[2] for row in content if row[:2] == [model, peak]] for model in MODELS] for peak in PEAKS]
    lowest = [[min(cell) for cell in row] for row in cells]
    assert reader.run(data) == lowest
    reader.choose("heat-how", "mean")
    reader.until(lambda: reader.run(data) != lowest, "the mean")
    for got, row in zip(reader.run(data), cells, strict=True):
        assert got == pytest.approx([sum(cell) / len(cell) for cell in row])
    reader.choose("heat-x", "rate.peak")
    reader.until(lambda: len(reader.run(data)) == 3, "the axes to change places")
    reader.choose("heat-metric", "quality.fid")
    reader.choose("heat-how", "count")
    box = "const box = (one) => document.querySelector(one).getBoundingClientRect().bottom; "
    assert reader.run(box + "return box('#heat-chart .main-svg') <= box('#heatmap')"), "the chart has grown out of its card"
    reader.until(lambda: sum(one or 0 for row in reader.run(data) for one in row) == 6, "the samplings that were measured")
    reader.shoot("sixty-light")


def test_the_best_command_is_copied(sixty: Path, reader: Reader) -> None:
    reader.open(sixty)
    assert reader.one("#command").text == "python launch/train.py model=unet_full rate.peak=1e-4 seed=0 data=cifar10"
    reader.one("#copy").send_keys(Keys.ENTER)
    said = reader.until(lambda: reader.one("#copied").text, "word of the copy")
    selected = reader.run("return String(getSelection())")
    assert said == "Copied." or (said.startswith("Selected") and selected.startswith("python launch"))
    reader.choose("best-metric", "quality.fid")
    reader.until(lambda: "launch/sample.py" in reader.one("#command").text, "the sampler's command, where its images are best")


def test_dark_mode_colours_page_and_charts(sixty: Path, reader: Reader) -> None:
    colours = ("const { font } = document.getElementById('loss-chart')._fullLayout; "
               "return [getComputedStyle(document.body).backgroundColor, font.color]")
    reader.open(sixty)
    light = reader.run(colours)
    reader.show("loss")
    reader.screen(scheme="dark")
    reader.until(lambda: not set(reader.run(colours)) & set(light), "the page and the chart to darken")
    reader.shoot("sixty-dark")
    reader.one("#theme").click()  # from auto to light
    reader.show("loss")
    reader.until(lambda: reader.run(colours) == light, "the light theme against the system's wish")


def test_on_a_phone_nothing_scrolls_sideways_but_the_table(large: Path, real: Path, reader: Reader) -> None:
    reader.screen(width=390, height=844, phone=True)
    for name, path in (("large", large), ("real", real)):
        reader.open(path)
        reader.shoot(f"{name}-phone")
        assert reader.run("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]
        assert reader.run("const box = document.querySelector('.scroll'); return box.scrollWidth > box.clientWidth")


def test_the_keyboard_reaches_the_table_and_the_filter(sixty: Path, reader: Reader) -> None:
    reader.open(sixty)
    reader.one("body").send_keys(Keys.TAB)
    assert reader.driver.switch_to.active_element.text == "Skip to the table of runs"
    reader.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert reader.run("return location.hash") == "#table"
    reader.one("body").send_keys("/")
    assert reader.run("return document.activeElement.id") == "filter"


def test_names_stay_text_in_the_page(tmp_path: Path, reader: Reader) -> None:
    name = f'<img src=x onerror="document.title=1">{EVIL}'
    lines = [start(1.0), *(train(images, 1.0, at=float(images)) for images in (100, 200)), held_out(200, 1.0)]
    runs = [(trained(tmp_path, f"a{n}", lines, steps=100), [f"x={name}", f"<b>{n % 2}=<i>{n}</i>", f"y={n}"]) for n in range(3)]
    study = studied(tmp_path, runs)
    report.write(study, study / "report.html", album=Album(), watch=None)
    reader.open(study / "report.html")
    reader.show("heatmap")
    reader.until(lambda: reader.run("return document.getElementById('heat-chart').data"), "the heatmap")
    assert name in reader.column("run")[0]
    assert reader.driver.find_elements(By.CSS_SELECTOR, "main b, main img[src=x], main script") == []
    assert any("<i>" in one for one in reader.texts("#heat-chart .xtick text, #heat-chart .ytick text"))
    assert reader.run("return document.title") == "one: report"


def test_evaluations_stand_under_their_protocols_and_only_equals_rank(tmp_path: Path, reader: Reader) -> None:
    runs = [trained(tmp_path, name, usual(loss), steps=100) for name, loss in (("a", 0.5), ("b", 0.25), ("c", 0.3))]
    for run, fid, name in zip(runs, (20.0, 30.0, 20.3), (EVIL, "heun", "heun"), strict=True):
        record(run, "heun", {"fid": fid, "fid_stderr": 0.4}, pictures=("neighbours",), sampler=name)
    record(runs[1], "few", {"kid": 0.5}, measure=quality(n=1000))
    record(runs[2], "few", {"kid": 0.4})
    figures = {f"{kind}_energy_{name}": 0.9 for kind in ("auroc", "fpr95") for name in ("svhn", "noise", "a", "b", "c")}
    record(runs[0], "step", figures, metric="outliers", measure={"seed": 0})
    study = studied(tmp_path, [(run, [f"seed={place}"]) for place, run in enumerate(runs)])
    report.write(study, study / "report.html", album=Album(), watch=None)
    reader.open(study / "report.html")
    reader.show("evaluation")
    heads = reader.until(lambda: reader.texts("#evaluations .measured h3"), "the tables")
    assert [head.split(" ·")[0] for head in heads] == ["quality", "quality", "outliers"]
    assert "n 50,000 · reference cifar10 a1b2c3d4" in reader.texts("#evaluations .note.protocol")[0]
    assert reader.texts("#evaluations .fault") == ["Differs: n: 50000 vs. 1000"]
    assert "20 ± 0.4" in reader.texts("#evaluations td.best")
    assert "20.3 ± 0.4 ≈" in reader.texts("#evaluations td.tied"), "within their errors"
    assert any(EVIL in text for text in reader.texts("#evaluations td.protocol")), "a sampler's name is text"
    assert len(reader.texts("#evaluations .measured:last-child tbody tr")) == len(figures), "many figures are rows"
    # In the table of runs: each protocol is sorted by itself, and has no best.
    reader.show("table")
    head = reader.one("#grid th[data-key='quality.kid'] button")
    assert head.text.startswith("kid (protocols differ)")
    head.click()
    assert [one for one in reader.column("quality.kid") if one != "–"] == ["0.4", "0.5"]
    head.click()
    assert [one for one in reader.column("quality.kid") if one != "–"] == ["0.4", "0.5"], "protocols are mixed"
    asked = reader.texts("#best-metric option")
    assert "lowest fid" in asked and not any("kid" in one for one in asked)
    reader.choose("best-metric", "quality.fid")
    assert "Protocol: quality.fid: n 50,000" in reader.one("#best-words").text
    # A picture opens where it stands.
    reader.show("evaluation-pictures")
    reader.until(lambda: reader.run("return document.querySelectorAll('.thumb img[data-drawn]').length") == 3, "thumbnails")
    opened = """const one = document.querySelector('.thumb');  // as it is now: a filter's late effect draws it anew
        if (!one.open) one.querySelector('summary').click();
        return one.querySelector('figure img')?.naturalWidth"""
    reader.until(lambda: reader.run(opened), "the picture")
    reader.write("seed=1")
    reader.show("evaluation")
    reader.until(lambda: len(reader.texts("#evaluations .measured:first-child tbody tr")) == 1, "the filter's effect")
    reader.write("")
    reader.shoot("evaluation-light")
    reader.screen(width=390, height=844, phone=True, scheme="dark")
    reader.shoot("evaluation-phone-dark")
    assert reader.run("return document.documentElement.scrollWidth") <= 390, "the page scrolls sideways"


def test_a_page_that_is_written_again_reloads_and_stays_where_it_was(sixty: Path, tmp_path: Path, reader: Reader) -> None:
    text = sixty.read_text()
    (tmp_path / "page.html").write_text(text.replace('"watch":null', '"watch":6'))
    reader.open(tmp_path / "page.html")
    reader.write("model=cnn")
    top = "return document.getElementById('calibration').getBoundingClientRect().top"
    reader.show("calibration")
    reader.until(lambda: reader.run("return document.querySelector('#level-slope .scatterlayer')"), "the charts to be drawn")
    reader.run("window.before = true; scrollBy({top: 120, behavior: 'instant'})")
    before = reader.run(top)
    assert before < 0
    reader.until(lambda: reader.run("return window.before === undefined && document.body?.dataset.ready"), "a reload")
    assert reader.one("#count").text == "20 of 60"
    reader.until(lambda: abs(reader.run(top) - before) < 3, f"the page to come back to where it was, {before:.0f}")


def test_three_hundred_runs_are_there(large: Path, reader: Reader) -> None:
    reader.open(large)  # how soon: tools/bench/report.py
    assert reader.one("#count").text == "300"
    assert reader.run("return document.querySelectorAll('#loss-chart .scatterlayer path.js-line').length") > 5


def test_a_slide_shows_the_whole_width_of_the_table(sixty: Path, reader: Reader) -> None:
    reader.screen(width=1600)
    reader.open(sixty, fragment="#slide=table")
    reader.shoot("slide-table")
    wide, seen = reader.run("const box = document.querySelector('.scroll'); return [box.scrollWidth, box.clientWidth]")
    assert wide <= seen + 1
    assert reader.run("return document.querySelectorAll('#grid th[data-key]').length") > 5


def test_slides_are_written(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed("chromium")
    monkeypatch.setattr(sys, "argv", ["report.py", str(real.parent), "--out", str(tmp_path / "report.html"), "--png"])
    monkeypatch.setattr("tools.review.png.sections", lambda content: ["loss", "samples"])  # the others are made alike
    report.main()
    for section in ("loss", "samples"):
        with Image.open(tmp_path / f"report-{section}.png") as picture:
            assert picture.size == (2400, 1350)
            colours = np.unique(np.asarray(picture.convert("RGB").resize((240, 135))).reshape(-1, 3), axis=0)
            assert len(colours) > 50, f"{section} is empty"
        SHOTS.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / f"report-{section}.png", SHOTS / f"slide-{section}.png")
