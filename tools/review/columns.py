"""The columns of a study's table: what varies, what was measured, and whether higher or lower is better."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.config.override import key
from launch.study.design import varying_keys
from tools.review import evaluated

# key, title, how "best" describes it ("": not offered), whether it compares only within one schedule and weighting
NUMBERS = (("images", "images", "", False), ("loss", "train loss", "lowest train loss", True),
           ("held_out", "held-out loss", "lowest held-out loss at the end", True),
           ("best_held_out", "best held-out", "lowest held-out loss", True),
           ("images_per_s", "images/s", "most images/s", False),
           ("hours", "device-hours", "", False), ("restarts", "restarts", "", False))


def tabulate(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``parameters`` and ``sampler_parameters`` (keys), and ``numbers`` (columns); fills in the runs' parameters."""
    parameters = fill_varying(runs) if any(run["overrides"] for run in runs) else fill_from_config(runs)
    samplers = [one for run in runs for one in run["samplers"]]
    tables = evaluated.tabulate(runs)
    devices = {device for run in runs for device in run.pop("devices")}
    hours = "process-hours" if devices == {"cpu"} else "GPU-hours" if devices and "cpu" not in devices else "device-hours"
    numbers = [{"key": key, "title": hours if key == "hours" else title, "compares": compares,
                "asked": asked, "better": "higher" if key in ("images", "images_per_s") else "lower"}
               for key, title, asked, compares in NUMBERS]
    return {"parameters": parameters, "sampler_parameters": fill_samplers(samplers),
            "numbers": [*numbers, *tables.pop("numbers")], **tables}


def fill_varying(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The overrides that vary among the runs, in the order of the command line; a run without one shows its config's value."""
    names = varying_keys([tuple(run["arguments"]) for run in runs])
    ordered = list(dict.fromkeys(key(one) for run in runs for one in run["arguments"] if key(one) in names))
    for run in runs:
        known = run["overrides"] | {name: run["config"][name] for name in ordered
                                    if name in run["config"] and name not in run["overrides"]}
        run["parameters"] = {name: known.get(name, "") for name in ordered}
    return ordered


def fill_from_config(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The config values that are worth a column, if the overrides are unknown."""
    for run in runs:
        run["parameters"] = {name.replace("._target_", "").replace(".path", ""): value for name, value in run["config"].items()}
    return list(dict.fromkeys(name for run in runs for name in run["parameters"]))


def fill_samplers(samplers: Sequence[dict[str, Any]]) -> list[str]:
    """The overrides that vary among the samplers, and fills them in."""
    told = [one for one in samplers if one["overrides"]]
    names = varying_keys([tuple(one["arguments"]) for one in told]) | ({"sampler"} if told else set())
    names -= {"label"}  # of a file, made of all the others
    ordered = list(dict.fromkeys(key(one) for sampler in told for one in sampler["arguments"] if key(one) in names))
    for one in samplers:
        one["parameters"] = {name: one["overrides"].get(name, "") for name in ordered}
    return ordered
