"""Every YAML fits the code that it names: keys against signatures, and every model × schedule × sampler builds and runs."""
from __future__ import annotations

import inspect
from functools import cache
from itertools import product

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from ebm.energy import Energy, check_shapes
from ebm.sampling import trajectory
from launch.config.build import build
from launch.config.manual import CONFIGS, choices
from launch.run.identity import difference

SHAPE = (3, 16, 16)
SMALL = {"cnn": ["model.network.width=8"], "unet": ["model.network.width=16", "model.network.blocks=1"]}
FEW = {"steps": "3", "steps_per_level": "1"}
NO_ENERGY = ("unet_score", "unet_full_score")


@cache  # the same ones are asked for by many tests, and nobody changes them
def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=["run=x", *overrides])


def targets(node: object, path: str = "") -> list[tuple[str, DictConfig]]:
    found = []
    if isinstance(node, DictConfig):
        found += [(path, node)] if "_target_" in node else []
        found += [leaf for key in node for leaf in targets(node._get_node(key), f"{path}.{key}")]
    elif isinstance(node, ListConfig):
        found += [leaf for i in range(len(node)) for leaf in targets(node[i], f"{path}[{i}]")]
    return found


GROUPS = [(group, choice) for group in (
    "model", "model/network", "schedule", "objective", "objective/weighting", "optimizer", "rate", "average", "sampler",
    "experiment", "data") for choice in choices(group)]


@pytest.mark.parametrize(("group", "choice"), GROUPS, ids=lambda value: value)
def test_keys_are_the_signature(group: str, choice: str) -> None:
    extra = ["data.name=x", "data.train=x"] if choice == "beton" else []
    cfg = config(f"{group}={choice}", *extra)
    names = targets(cfg)
    assert names
    for place, node in names:
        given = set(node) - {"_target_", "_partial_"}
        parameters = inspect.signature(get_object(node["_target_"])).parameters.values()
        accepted = {p.name for p in parameters}
        assert given <= accepted, f"{group}={choice}{place}: {given - accepted} are not parameters of {node['_target_']}"
        if node["_target_"].startswith("ebm."):
            supplied = {"model", "noise", "generators", "network", "head", "weighting", "grid"}
            missing = {p.name for p in parameters if p.default is p.empty} - given - supplied
            assert not missing, f"{group}={choice}{place}: {missing} of {node['_target_']} have no value"
            twice = {p.name for p in parameters if p.default is not p.empty}
            assert not twice, f"{node['_target_']}: {twice} have a second default in Python"


@pytest.mark.parametrize("model", choices("model"))
def test_every_model_with_every_schedule_and_sampler(model: str) -> None:
    small = SMALL[model.split("_")[0]]
    cfg = config(f"model={model}", *small)
    torch.manual_seed(0)
    built = build(cfg.model, key="model")
    check_shapes(built, SHAPE)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    for schedule in choices("schedule"):
        cfg = config(f"schedule={schedule}", "objective=dsm")
        sigma = build(cfg.schedule, key="schedule").draw(4, generator=torch.Generator().manual_seed(0))
        x, noise = torch.rand(4, *SHAPE) * 2 - 1, torch.randn(4, *SHAPE)
        loss = build(cfg.objective, key="objective")(built, x, sigma, noise)
        assert loss.shape == (4,)
        assert loss.isfinite().all(), f"{model} × {schedule}"
        loss.sum().backward()
    for sampler in choices("sampler"):
        steps = [f"sampler.{key}={value}" for key, value in FEW.items() if key in config(f"sampler={sampler}").sampler]
        ready = build(config(f"sampler={sampler}", *steps).sampler, key="sampler")
        if sampler == "metropolis" and model in NO_ENERGY:
            with pytest.raises(ValueError, match="energy"):
                list(ready(built, torch.randn(2, *SHAPE), generators=generators))
            continue
        *_, last = ready(built, torch.randn(2, *SHAPE), generators=generators)
        assert last.x.shape == (2, *SHAPE), f"{model} × {sampler}"
        assert last.x.isfinite().all(), f"{model} × {sampler}"


@pytest.mark.parametrize(("sampler", "grid"), list(product(
    ["annealed", "heun", "dpmpp", "metropolis", "predictor_corrector"], choices("sampler/grid"))))
def test_every_grid_fits_every_sampler_that_takes_one(sampler: str, grid: str) -> None:
    steps = ["sampler.steps=12"] if grid == "levels" else []
    ready = build(config(f"sampler={sampler}", f"sampler/grid={grid}", *steps).sampler, key="sampler")
    model = build(config("model=cnn", "model.network.width=8").model, key="model")
    trajectory(model, ready, shape=SHAPE, indices=[0], seed=0, device=torch.device("cpu"))


@pytest.mark.parametrize("head", choices("model/head"))
def test_every_head_fits_the_unet(head: str) -> None:
    model = build(config("model=unet", f"model/head={head}", *SMALL["unet"]).model, key="model")
    check_shapes(model, SHAPE)
    assert model.energy(torch.rand(2, *SHAPE), torch.ones(2)).shape == (2,)


def test_the_full_unet_has_the_papers_size() -> None:
    energy, score = (build(config(f"model={name}").model, key="model") for name in ("unet_full", "unet_full_score"))
    assert isinstance(energy, Energy)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (energy, score)]
    assert 36e6 < sizes[0] < 56e6
    assert abs(sizes[0] - sizes[1]) < 1e-3 * sizes[0], "the control has another size"


@pytest.mark.parametrize("size", ["unet", "unet_full"])
def test_the_control_has_the_energys_network(size: str) -> None:
    energy, score = (config(f"model={name}").model for name in (size, f"{size}_score"))
    assert energy.network == score.network == config("model=unet_score", f"model/network={size}").model.network


@pytest.mark.parametrize("name", ["cosine", "karras", "levels", "loguniform"])
def test_a_grid_is_the_schedule_of_its_name(name: str) -> None:
    assert config(f"sampler/grid={name}").sampler.grid == config(f"schedule={name}").schedule


def test_a_change_of_what_a_run_is_gets_named_and_of_how_it_runs_does_not() -> None:
    old = OmegaConf.create({"seed": 0, "run": "a", "budget": {"images": 5, "batch": 8}, "data": {"train": "a"}})
    new = OmegaConf.create({"seed": 0, "run": "b", "budget": {"images": 9, "batch": 16}, "data": {"train": "b"}})
    assert difference(old, new) == ["budget.batch: 8 -> 16"]
