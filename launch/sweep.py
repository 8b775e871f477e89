#!/usr/bin/env python3
"""Submits a study to SLURM as array jobs, or runs it here where there is none: `python launch/sweep.py -m [overrides]`.

`sweep=<name>` selects a study from configs/sweep/; comma-separated values define a new one. Without either, sweep=default runs.
"""
from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the code beside this file, whatever is installed

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

import launch.study.launcher  # noqa: F401  (registers itself with Hydra)
from launch.config.override import key
from launch.entry import run
from launch.job.faults import checking, refuse


def main(cfg: DictConfig) -> None:
    """Refuses a call without -m, which is the only one that reaches it."""
    refuse("a study is a multirun: python launch/sweep.py -m [overrides]; one run: python launch/train.py")


def with_study(arguments: list[str]) -> list[str]:
    """The command line, with the default study if it names none and gives no key several values."""
    if not {"-m", "--multirun"} & set(arguments):
        return arguments
    given = [one for one in arguments if "=" in one and not one.startswith("-")]
    try:
        overrides = OverridesParser.create().parse_overrides(given)
    except HydraException:  # which Hydra reports itself
        return arguments
    if any(one.key_or_group == "store" and not one.value() for one in overrides):
        refuse("store: must not be empty")  # Hydra would make a folder at the root
    if any(one.key_or_group == "sweep" or one.is_sweep_override() for one in overrides):
        return arguments
    return [*arguments, "sweep=default"]


def refuse_other_configs(arguments: list[str]) -> None:
    """Refuses configs from elsewhere: jobs run the study's frozen code, which holds only those that git tracks."""
    flags, _ = get_args_parser().parse_known_args(arguments)
    asked = {"--config-dir": flags.config_dir, "--config-path": flags.config_path,
             "hydra.searchpath": any(key(one) == "hydra.searchpath" for one in flags.overrides)}
    for name in (name for name, given in asked.items() if given):
        refuse(f"{name}: no job of a study would have those configs; put them into configs/ and git add them")


if __name__ == "__main__":
    with checking():
        refuse_other_configs(sys.argv[1:])
        # Hydra's users are used to `+sweep=`; here the group is in the defaults list, where + is not accepted.
        sys.argv[1:] = with_study([one.removeprefix("+") if one.startswith("+sweep=") else one for one in sys.argv[1:]])
        run(main, config="sweep")
