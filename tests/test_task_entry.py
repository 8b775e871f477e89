"""`launch/sample.py task=…`: what a user gives, what is refused, and what is written, whatever the processes."""
from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ONE_THREAD, Command
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from PIL import Image

from ebm.data import to_float
from launch import sample
from launch.config.manual import CONFIGS
from launch.drawing.before_after import before_after, psnr
from launch.drawing.given import read_images
from launch.drawing.pipeline import Pipeline

SIZE = 16
FEW = ("device=cpu", "sampler.steps=4", "task.copies=2")
BOX = "task.box=[4,4,8,8]"


@pytest.fixture(scope="module")
def trained(tiny: list[str], command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    command("train", *tiny, f"run={run}", "budget.images=64")
    return run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures: one of the run's size, a larger oblong one, and a grey one."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    Image.fromarray(random.integers(96, 160, (SIZE, SIZE, 3), np.uint8)).save(folder / "a.png")
    Image.fromarray(random.integers(96, 160, (40, 64, 3), np.uint8)).save(folder / "b.png")
    Image.fromarray(random.integers(96, 160, (SIZE, SIZE), np.uint8)).save(folder / "c.png")
    return folder


def sampled(*overrides: str) -> None:
    """What `launch/sample.py` does, in this process: most of an entry's time is its imports."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("sample", overrides=[*overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    sample.main(cfg)


def done(run: Path, out: Path, *overrides: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    sampled(f"run={run}", f"out={out}", *FEW, *overrides)
    return found(out)


def found(out: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    (path,) = out.glob("*.npz")
    assert not [*out.glob(".*")], "something was left beside the results"
    with np.load(path) as content:
        return dict(content), json.loads(path.with_suffix(".json").read_text())


def test_inpainting_keeps_what_is_known_on_any_number_of_processes(
        trained: Path, pictures: Path, command: Command, tmp_path: Path) -> None:
    given = ("task=inpaint", f"task.images={pictures}", BOX, "batch=4")
    arrays, protocol = done(trained, tmp_path / "one", *given)
    assert arrays["images"].shape == (6, SIZE, SIZE, 3)
    originals = read_images(str(pictures), size=(SIZE, SIZE), key="").permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(arrays["originals"], originals)
    hidden = np.zeros((SIZE, SIZE), bool)
    hidden[4:12, 4:12] = True
    for index, image in enumerate(arrays["images"]):
        np.testing.assert_array_equal(image[~hidden], originals[index // 2][~hidden], f"image {index}: what was known")
    inside = arrays["images"][:, hidden].astype(int)
    assert np.abs(inside[0] - inside[1]).mean() > 1, "both copies are the same"
    assert np.abs(inside - np.repeat(originals, 2, 0)[:, hidden]).mean() > 1, "what was hidden has been seen"
    task = protocol["task"]
    assert (protocol["n"], task["name"], task["copies"]) == (6, "inpaint", 2)
    assert "_target_" not in task["identity"], "a file's name would depend on where a class lies"
    assert {"images", "mask"} <= {*task["identity"]} and task["settings"]["box"] == [4, 4, 8, 8]
    for way, shown in {"first": arrays["images"][::2], "given": np.where(hidden[..., None], 128, originals)}.items():
        error = ((shown.astype(float) - originals) ** 2).mean((1, 2, 3))
        np.testing.assert_allclose(task["psnr"][way]["each"], 10 * np.log10(255**2 / error), atol=1e-3)
        np.testing.assert_allclose(task["psnr"][way]["mean"], np.mean(task["psnr"][way]["each"]), atol=1e-3)
    with Image.open(next((tmp_path / "one").glob("*[0-9].png"))) as picture:
        assert picture.width == 4 * (96 + 4), "original, given and two copies"
    command("sample", f"run={trained}", f"out={tmp_path}/two", *FEW, *given, processes=2)
    two, _ = found(tmp_path / "two")
    np.testing.assert_array_equal(arrays["images"], two["images"])
    Image.fromarray(np.where(hidden, 255, 0).astype(np.uint8)).save(tmp_path / "mask.png")
    masked, _ = done(trained, tmp_path / "masked", "task=inpaint", f"task.images={pictures}", "batch=4",
                     f"task.mask={tmp_path}/mask.png")
    np.testing.assert_array_equal(arrays["images"], masked["images"], "a mask and its box differ")


def test_colours_and_sizes_agree_with_what_was_given(trained: Path, pictures: Path, tmp_path: Path) -> None:
    arrays, protocol = done(trained, tmp_path / "colour", "task=colourise", f"task.images={pictures}")
    np.testing.assert_array_equal(arrays["known"], [True, True, False])  # the third has no colours to compare with
    assert len(arrays["originals"]) == len(protocol["task"]["psnr"]["first"]["each"]) == 2
    agree(arrays["images"].astype(float).mean(3), to_uint(arrays["observed"]).mean(3))
    arrays, _ = done(trained, tmp_path / "size", "task=super_resolve", f"task.images={pictures}", "task.factor=2",
                     "task/constraint=replaced")
    seen = blocks(to_uint(arrays["observed"]))
    agree(blocks(arrays["images"].astype(float)), seen)
    np.testing.assert_allclose(seen, blocks(arrays["originals"].astype(float)), atol=1e-3)
    small = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "small.npz", images=small)
    arrays, protocol = done(trained, tmp_path / "small", "task=super_resolve", f"task.images={tmp_path}/small.npz",
                            "task.factor=2", "task.shrink=false")
    np.testing.assert_allclose(blocks(to_uint(arrays["observed"])), small, atol=1e-3)
    assert "psnr" not in protocol["task"] and "originals" not in arrays


def to_uint(observed: np.ndarray) -> np.ndarray:
    return (observed.astype(float) + 1) * 127.5


def blocks(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), SIZE // 2, 2, SIZE // 2, 2, -1).mean((2, 4))


def agree(drawn: np.ndarray, seen: np.ndarray) -> None:
    """Means over pixels agree to half a level, by which each is rounded, though many would have left the range."""
    assert np.abs(drawn - np.repeat(seen, 2, 0)).max() <= 0.55


def test_denoising_shows_the_posterior_mean_and_tests_its_moves(trained: Path, pictures: Path, tmp_path: Path) -> None:
    given = ("task=denoise", f"task.images={pictures}", "task.sigma=0.5")
    arrays, protocol = done(trained, tmp_path / "shown", *given, "task.add_noise=true")
    noise = arrays["observed"] - to_float(torch.from_numpy(arrays["originals"])).numpy()
    assert abs(noise.std() - 0.5) < 0.05
    assert {*protocol["task"]["psnr"]} == {"given", "mmse", "first", "mean"}
    assert arrays["mmse"].shape == (3, SIZE, SIZE, 3)
    arrays, protocol = done(trained, tmp_path / "given", *given, "sampler=metropolis", "sampler.steps_per_level=1")
    assert "psnr" not in protocol["task"], "of a noisy image no original is known"
    arrays, _ = done(trained, tmp_path / "frozen", "task=inpaint", f"task.images={pictures}", BOX,
                     "task/constraint=frozen", "sampler=metropolis", "sampler.steps_per_level=1")
    assert len(arrays["images"]) == 6


def test_what_was_drawn_before_a_fault_is_not_drawn_again(trained: Path, pictures: Path, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    given, draw, drawn = ("task=colourise", f"task.images={pictures}", "batch=2"), Pipeline.draw, list[range]()

    def failing(self: Pipeline, part: range, film: Any = None) -> torch.Tensor:
        if len(drawn) == 2:
            drawn.clear()
            raise KeyboardInterrupt
        drawn.append(part)
        return draw(self, part, film)

    whole, _ = done(trained, tmp_path / "whole", *given)
    monkeypatch.setattr(Pipeline, "draw", failing)
    with pytest.raises(KeyboardInterrupt):
        done(trained, tmp_path / "halved", *given)
    done(trained, tmp_path / "other", *given[:1], f"task.images={pictures}/a.png")  # of other images: nothing to go on from
    drawn.clear()
    halved, _ = done(trained, tmp_path / "halved", *given)
    assert drawn == [range(4, 6)]
    np.testing.assert_array_equal(whole["images"], halved["images"])


def test_a_sum_of_one_run_with_itself_is_that_run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("device=cpu", "sampler=heun", "sampler.steps=3", "n=3", f"out={tmp_path}")
    sampled(f"run={trained}", *given)
    sampled("task=compose", f"task.runs=[{trained},{trained}]", "task.weights=[1.5,-0.5]", *given)
    plain, summed = sorted(tmp_path.glob("*.npz"), key=lambda path: path.name.startswith("compose"))
    assert plain.name == "heun-steps=3-n3-seed0-step8.npz"
    images, others = (np.load(path)["images"].astype(int) for path in (plain, summed))
    assert np.abs(images - others).max() <= 1
    assert json.loads(summed.with_suffix(".json").read_text())["task"]["identity"]["weights"] == [1.5, -0.5]
    shutil.copytree(trained, tmp_path / "other")
    given = given[:-1]
    for overrides, words in {
        ("task.weights=[1]",): "task.weights: [1] is not accepted; there must be one for each of runs=",
        ("task.weights=[1,-1]",): "task.weights: [1, -1] is not accepted; they must be numbers whose sum is positive",
        ("task.weights=[1,1]", f"run={tmp_path}/other"): 
            f"task.runs: ['{trained}', '{trained}'] is not accepted; the first must be run={tmp_path}/other,",
    }.items():
        with pytest.raises(SystemExit) as refused:
            sampled("task=compose", f"task.runs=[{trained},{trained}]", *given, *overrides)
        assert refused.value.code == 2
        assert f"error: {words}" in capsys.readouterr().err


def test_a_refusal_is_one_line_and_leaves_nothing(trained: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "empty").mkdir()
    refused = command("sample", f"run={trained}", f"out={tmp_path}/out", "task=colourise", f"task.images={tmp_path}/empty",
                      check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: task.images: {tmp_path}/empty: holds no ") and refused.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists(), "something was written"


def test_a_difference_is_told_in_decibels_and_a_picture_is_the_same_each_time() -> None:
    image = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    assert psnr(image + 10, image) == [pytest.approx(10 * np.log10(255**2 / 100), abs=1e-3)] * 2
    assert max(psnr(image, image)) < 60, "what is equal to rounding is not infinitely near"
    first, again = (before_after([("one", image), ("two", image + 100)]) for _ in range(2))
    assert hashlib.sha256(first).digest() == hashlib.sha256(again).digest()


def test_processes_that_read_different_pictures_refuse(
    trained: Path, pictures: Path, command: Command, tmp_path: Path
) -> None:
    env = {**ONE_THREAD, **{f"PICTURE_{rank}": str(pictures / name) for rank, name in enumerate(("a.png", "b.png"))}}
    refused = command("sample", f"run={trained}", f"out={tmp_path}/out", "task=inpaint", BOX, *FEW,
                      "task.images='${oc.env:PICTURE_${oc.env:RANK}}'", processes=2, env=env, check=False)
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("error: task.images: processes have read different ones")
