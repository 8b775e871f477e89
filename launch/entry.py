"""How an entry begins and ends: the command line becomes a config, and a bad value ends in one line before any work."""
from __future__ import annotations

import copy
import os
import signal
import sys
from collections.abc import Callable

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore  # noqa: F401  (registers Hydra's own groups before they are listed)
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from launch.config.manual import CONFIGS, manual
from launch.config.mistakes import addition_mistake, choice_mistake, chosen, explain, removal_mistake
from launch.job.faults import refuse
from launch.job.startup import keep_memory, spare_imports


def run(main: Callable[[DictConfig], None], *, config: str) -> None:
    """Calls ``main`` with the config that the command line asks for; exits with 2 and one line if none can be made."""
    code: object = 0
    try:
        call(main, config=config)
    except SystemExit as end:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        code = end.code or 0
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Python's own end aborts now and then while threads of a process group's store still run (SIGABRT).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def call(main: Callable[[DictConfig], None], *, config: str) -> None:
    """Parses the command line, composes the config and calls ``main``."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come here instead of being printed as a traceback
    keep_memory()
    spare_imports()
    try:
        flags, unknown = get_args_parser().parse_known_args()
        if unknown:
            refuse(f"{unknown[0]}: no such flag; a setting is written key=value, as in seed=1, and --help lists them")
        if flags.help:
            print(manual(config, chosen(config, flags.overrides), sys.modules[main.__module__].__doc__ or ""))
            return
        for one in flags.overrides:
            if not one.lstrip("+~").partition("=")[0]:
                refuse(f"{one}: names no key; a setting is written key=value, as in seed=1, and --help lists them")
            if one.startswith("+") and (mistake := addition_mistake(one, config)):
                refuse(mistake)
            if one.startswith("~") and not one.startswith("~hydra"):
                refuse(removal_mistake(one))
        if mistake := choice_mistake(flags.overrides):
            refuse(mistake)
        if flags.multirun and config != "sweep":
            refuse(f"-m: {config}.py takes one value for each key; for a study of several: python launch/sweep.py -m")
        # --cfg, a study's -m, and settings of Hydra's own
        if any(argument.lstrip("+~").startswith(("-", "hydra")) for argument in sys.argv[1:]):
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config)(main)()
        else:
            with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3", job_name=config):
                main(composed(config, sys.argv[1:]))
    except (HydraException, OmegaConfBaseException) as error:
        refuse(explain(error, config))
    except KeyboardInterrupt:
        refuse("stopped by Ctrl-C; no half-written file is left", code=128 + signal.SIGINT)


def composed(config: str, overrides: list[str]) -> DictConfig:
    """The config that ``hydra.main`` gives an entry, composed once: Hydra composes it twice, first for hydra.mode alone."""
    cfg = hydra.compose(config, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    cfg = copy.deepcopy(cfg)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    return cfg
