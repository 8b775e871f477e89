"""What a task refuses, key by key, and that its YAMLs fit the code that they name."""
from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from ebm.energy import Energy, inner_product
from ebm.precision import Precision
from launch.config.build import build
from launch.config.manual import CONFIGS, choices
from launch.drawing.pipeline import Pipeline
from launch.drawing.task import assign_task

SIZE = 16


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(tmp_path / "good.png")
    return tmp_path / "good.png"


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.png").write_text("not an image")
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    Image.new("L", (SIZE, SIZE)).save(tmp_path / "black.png")
    np.savez(tmp_path / "other.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "named.npz", pictures=np.zeros((2, SIZE, SIZE, 3), np.uint8))
    return tmp_path


REFUSED = {
    ("task=colourise", "task.images=BAD/nowhere"): "task.images: 'BAD/nowhere' is not accepted; there is no such file",
    ("task=colourise", "task.images=BAD/empty"): "task.images: BAD/empty: holds no ",
    ("task=colourise", "task.images=BAD/words.png"): "task.images: BAD/words.png: not a readable image",
    ("task=colourise", "task.images=BAD/other.npz"): "task.images: BAD/other.npz holds images of 8 × 8 pixels, which is not",
    ("task=colourise", "task.images=BAD/named.npz"): "task.images: BAD/named.npz: has no array 'images'; it holds pictures",
    ("task=colourise", "task.images=GOOD", "task.copies=0"): "task.copies: 0 is not accepted; it must be at least 1",
    ("task=colourise", "task.images=GOOD", "n=5"): "n: 5 is not accepted; a task on images draws task.copies of each",
    ("task=colourise", "task.images=GOOD", "sampler=metropolis"): "sampler.model: Matched is not accepted; the Metropolis test",
    ("task=colourise",): "task.images: missing; task=colourise requires it",
    ("task=inpaint", "task.images=GOOD"): "task.mask: no value is given; give task.mask or task.box",
    ("task=inpaint", "task.images=GOOD", "task.mask=x", "task.box=[0,0,2,2]"): "task.mask: 'x' with box [0, 0, 2, 2] is not ",
    ("task=inpaint", "task.images=GOOD", "task.mask=BAD/small.png"): "task.mask: 'BAD/small.png' has 8 × 8 pixels, which",
    ("task=inpaint", "task.images=GOOD", "task.mask=BAD/black.png"): "task.mask: 'BAD/black.png' is not accepted; some of it",
    ("task=inpaint", "task.images=GOOD", "task.mask=BAD/words.png"): "task.mask: 'BAD/words.png' is not accepted; it must be",
    ("task=inpaint", "task.images=GOOD", "task.box=[0,9,4,8]"): "task.box: [0, 9, 4, 8] is not accepted; it must be [top,",
    ("task=inpaint", "task.images=GOOD", "task.box=[0,9]"): "task.box: [0, 9] is not accepted; it must be [top,",
    ("task=super_resolve", "task.images=GOOD", "task.factor=3"): "task.factor: 3 is not accepted; it must be at least 2 and",
    ("task=denoise", "task.images=GOOD", "task.sigma=0.0"): "task.sigma: 0.0 is not accepted; it must be a positive number",
}


@pytest.mark.parametrize("overrides", REFUSED, ids=lambda overrides: " ".join(overrides))
def test_what_can_t_be_is_refused(overrides: tuple[str, ...], picture: Path, bad: Path) -> None:
    filled = [one.replace("BAD", str(bad)).replace("GOOD", str(picture)) for one in overrides]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("sample", overrides=["run=x", *filled], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    pipeline = Pipeline(
        model=Energy(torch.nn.Identity(), inner_product, sigma_data=0.5), sampler=build(cfg.sampler, key="sampler"),
        shape=(3, SIZE, SIZE), seed=0, precision=Precision(name="fp32"), device=torch.device("cpu"))
    with pytest.raises(ValueError) as refused:  # noqa: PT011  (its words are compared below)
        assign_task(cfg, pipeline, lambda _: pytest.fail("another run was read"))
    assert str(refused.value).startswith(REFUSED[overrides].replace("BAD", str(bad)))


def test_names_and_keys_of_plain_sampling_are_what_they_were() -> None:
    plain = composed()
    assert "task" not in plain, "a key more changes the names that studies give their samples"
    assert OmegaConf.to_container(plain.sampler) == OmegaConf.to_container(composed("sampler=heun").sampler)


@pytest.mark.parametrize("task", choices("task"))
@pytest.mark.parametrize("constraint", choices("task/constraint"))
def test_keys_are_the_signature(task: str, constraint: str) -> None:
    cfg = composed(f"task={task}", *([f"task/constraint={constraint}"] if task not in ("denoise", "compose") else []))
    for node in [cfg.task, *([cfg.task.constraint] if "constraint" in cfg.task else [])]:
        given = {str(key) for key in node} - {"_target_", "_partial_"}
        parameters = inspect.signature(get_object(node["_target_"])).parameters.values()
        supplied = {"model", "measurement", "observed", "generators"}
        assert given == {one.name for one in parameters} - supplied
        assert all(one.default is one.empty for one in parameters), f"{node['_target_']}: a second default in Python"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("sample", overrides=["run=x", *overrides])
