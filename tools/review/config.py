"""Reads a run's `config.yaml`: the values worth a column, and those that make two losses comparable."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # OmegaConf's own reader takes 15 times as long: seconds with 300 runs

from launch.config.keys import flat
from tools.review.records import Problem

SHOWN = ("data.name", "model.network._target_", "model.network.width", "model.head.path", "schedule._target_",
         "objective.weighting._target_", "optimizer._target_", "rate._target_", "rate.peak", "budget.batch", "precision",
         "seed")
# A loss is a weighted average over noise levels and images: a lower one is better only if all of these are equal.
DECIDE_LOSS = ("data.name", "data.sha256", "data.shape", "data.sigma_data", "schedule", "objective", "save.held_out")
READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_config(run: Path) -> tuple[dict[str, Any], list[Problem]]:
    """The config by dotted keys, empty if it can't be read, and why."""
    path = run / "config.yaml"
    try:
        content = flat(yaml.load(path.read_text(encoding="utf-8"), Loader=READER))
        if "" in content:
            raise ValueError("no keys")
    except FileNotFoundError:
        return {}, [Problem(str(path), "missing")]
    except (OSError, ValueError, yaml.YAMLError) as error:
        return {}, [Problem(str(path), f"can't be read: {' '.join(str(error).split())[:200]}")]
    return content, []


def value_text(name: str, value: Any) -> str:
    """A value as text; of a class or function its last name."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text.rsplit(".", 1)[-1] if name.endswith(("_target_", ".path")) else text


def main_values(config: dict[str, Any]) -> dict[str, str]:
    """The values worth a column if the overrides are unknown."""
    return {name: value_text(name, config[name]) for name in SHOWN if name in config}


def loss_protocol(config: dict[str, Any]) -> dict[str, str]:
    """What must be equal for two losses to compare, as text."""
    return {name: value_text(name, value) for name, value in config.items()
            if any(name == part or name.startswith(f"{part}.") for part in DECIDE_LOSS)}


def group_names(groups: Sequence[dict[str, str]]) -> list[str]:
    """Names for groups of comparable runs, by what differs between them: classes first, values if needed."""
    keys = sorted({key for group in groups for key in group})
    differing = [key for key in keys if len({group.get(key) for group in groups}) > 1]
    classes = [key for key in differing if key.endswith("_target_") or key == "data.name"]
    names = [" · ".join(group[key] for key in classes if key in group) for group in groups]
    if len(set(names)) == len(names):
        return names
    rest = [key for key in differing if key not in classes]
    values = [", ".join(f"{key.rsplit('.', 1)[-1]} {group[key]}" for key in rest if key in group) for group in groups]
    return [" · ".join(filter(None, parts)) or "config unknown" for parts in zip(names, values, strict=True)]
