"""How an entry begins and ends: Hydra reads the command line, and a bad value ends in one line before any work."""
from __future__ import annotations

import atexit
import contextlib
import copy
import ctypes
import difflib
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore  # noqa: F401  (registers Hydra's own groups before they are listed)
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from launch.config.manual import CONFIGS, choices, manual
from launch.config.override import ELSEWHERE, key
from launch.job.faults import BAD_INPUT, Refused
from launch.job.process import verdict

if TYPE_CHECKING:
    from ebm.train.distributed import World

def run(main: Callable[[DictConfig], None], *, config: str) -> None:
    """Calls ``main`` with the config that the command line asks for; exits with 2 and one line where it can't be made."""
    code: object = 0
    try:
        begin(main, config=config)
    except SystemExit as end:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        code = end.code or 0
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Python's own end aborts now and then while threads of a process group's store still run (SIGABRT).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def begin(main: Callable[[DictConfig], None], *, config: str) -> None:
    """The same, ending as Python does."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come here instead of being printed as a traceback
    keep_memory()
    spare_collector()
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
            if one.startswith("+") and (wrong := unknown_key(one.lstrip("+").partition("=")[0], config)):
                refuse(wrong)
        if wrong := no_choice(flags.overrides):
            refuse(wrong)
        if flags.multirun and config != "sweep":
            refuse(f"-m: {config}.py takes one value of each key; a study of several is python launch/sweep.py -m")
        # --cfg, a study's -m, and settings of Hydra's own
        if any(argument.lstrip("+~").startswith(("-", "hydra")) for argument in sys.argv[1:]):
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config)(main)()
        else:
            with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3", job_name=config):
                main(composed(config, sys.argv[1:]))
    except (HydraException, OmegaConfBaseException) as error:
        refuse(explain(error, config))
    except KeyboardInterrupt:
        refuse("stopped by Ctrl-C; nothing half-written is left", code=128 + signal.SIGINT)


def chosen(config: str, overrides: Sequence[str] = ()) -> dict[str, str | None]:
    """The groups of an entry's config and what is chosen for each."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3", job_name=config):
        made = hydra.compose(config, [*overrides], return_hydra_config=True).hydra.runtime.choices
    return {str(group): choice for group, choice in made.items() if not str(group).startswith("hydra")}


def composed(config: str, overrides: list[str]) -> DictConfig:
    """What ``hydra.main`` gives an entry, made once: it makes all of it a first time, for the value of hydra.mode alone."""
    cfg = hydra.compose(config, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    cfg = copy.deepcopy(cfg)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    return cfg


def spare_collector() -> None:
    """Keeps the garbage collector from what is imported, which stays: it would go through all of it again and again."""
    gc.freeze()
    gc.enable()
    atexit.register(spare_the_end)


def spare_the_end() -> None:
    """Keeps Python's own end from going through all that is left, a second or two; not where Triton is bound by nanobind,
    which reports what it then keeps as leaks."""
    triton = sys.modules.get("triton._C.libtriton.ir")
    if type(getattr(triton, "builder", None)).__module__ != "nanobind":
        gc.freeze()


def keep_memory() -> None:
    """Lets glibc keep freed memory for the next step, where it would hand it back and take every page anew."""
    trim_threshold, mmap_threshold, most = -1, -3, 32 << 20  # names and greatest threshold from malloc.h, mallopt(3)
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, most)


@contextlib.contextmanager
def checking(world: World | None = None) -> Iterator[None]:
    """Context of everything that comes before the work: what is wrong there is the user's to mend, said in one line.

    With a ``world`` a fault on any process ends all of them, so no process may wait for another inside.
    """
    fault = ""
    try:
        yield
    except (ValueError, OSError, OmegaConfBaseException) as error:
        fault = asked_for(error) or " ".join(str(error).split()) or repr(error)
    if world is not None:
        fault = next(filter(None, world.everyone(fault)), "")
    if fault:
        refuse(fault, world=world)


def refuse(message: str, *, code: int = BAD_INPUT, world: World | None = None, alone: bool = False) -> NoReturn:
    """Ends this process with ``message`` on one line and an exit code.

    It is said once: by rank 0 where all of ``world`` end so, by the process itself where it is ``alone`` in this, else by the
    first process of the node.
    """
    if alone or (world.is_main if world is not None else os.environ.get("LOCAL_RANK", "0") == "0"):
        print(f"error: {message}", file=sys.stderr, flush=True)
    verdict("failed")
    raise Refused(code, message)


def asked_for(error: Exception) -> str:
    """OmegaConf's word for a value that nobody gave as one that asks for it, or nothing."""
    if not isinstance(error, MissingMandatoryValue):
        return ""
    key = error.full_key or str(error).split()[-1]
    return f"{key}: no value is given, and there is no default; add {key}=<value>"


def explain(error: Exception, config: str) -> str:
    """Hydra's error as one line that names the key and what is accepted."""
    text = " ".join(str(error).split())
    if match := re.search(r"Could not override '([^']+)'.*[Nn]o match in the defaults list", text):
        if match[1] in groups() and "/" in match[1]:
            return f"{match[1]}: the {match[1].rpartition('/')[0]} that is chosen takes none"
        accepted = sorted(name for name in chosen(config) if "@" not in name)
        return f"{match[1]}: not a group of this config; groups: {', '.join(accepted)}"
    if match := re.search(r"In '[^']*': Could not find '([^']+)'|Could not find '([^']+)'", text):
        group, _, choice = (match[1] or match[2]).rpartition("/")
        if group.startswith("experiment/"):
            group, choice = "experiment", (match[1] or match[2]).removeprefix("experiment/")
        return f"{group}={choice}: no such choice; accepted: {', '.join(choices(group))}"
    if isinstance(error.__cause__, ValidationError) and (match := re.search(r"Error merging override ([^\s=]+)=(.*)", text)):
        return f"{match[1]}: {match[2]!r} is not accepted; {str(error.__cause__).splitlines()[0]}"
    if match := re.search(r"(?:Could not override|Error merging override) '?([\w./@]+)", text):
        named, wrong = match[1].split("=")[0], str(getattr(error.__cause__, "full_key", ""))
        within = wrong.startswith(f"{named}.")  # as in save={evry: 3}
        return no_such_key(wrong if within else named, config)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: can't be read; a setting is written key=value, a list as key=[1,2]"
    return text


def no_choice(overrides: Sequence[str]) -> str:
    """What is wrong with the first choice of a group that is no name, as in model=3, or nothing: Hydra has no word for it."""
    known = groups()
    asked = [one for one in overrides if key(one) in known and not one.startswith("~")]
    with contextlib.suppress(HydraException):  # one that can't be read, which Hydra says itself
        for one in OverridesParser.create().parse_overrides(asked):
            for value in [*one.sweep_iterator()] if one.is_sweep_override() else [one.value()]:
                if not isinstance(value, str | QuotedString | list | dict):
                    said = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
                    return f"{one.key_or_group}={said}: no such choice; accepted: {', '.join(choices(one.key_or_group))}"
    return ""


def no_such_key(key: str, config: str) -> str:
    """What is said of a key that the config hasn't got."""
    known = keys(config)
    if (there := ELSEWHERE.get(key)) in known:
        return f"{key}: no such key; set {there} instead"
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    if key in near:  # by default
        return f"{key}: no such key of the {key.partition('.')[0]} that is chosen"
    return f"{key}: no such key; " + (f"did you mean {', '.join(near)}?" if near else "--help lists them")


def unknown_key(key: str, config: str) -> str:
    """What is wrong with a key that is added with +, or nothing: below a target its signature is asked later."""
    if "/" in key or key.startswith("hydra") or key in groups():
        return ""
    node = tree(config)
    for name in key.split("."):
        if isinstance(node, dict) and "_target_" in node:
            return ""
        if not isinstance(node, dict) or name not in node:
            return no_such_key(key, config)
        node = node[name]
    return ""


def groups() -> list[str]:
    """Names of the config groups, nested ones with slashes."""
    return sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*") if path.is_dir() and "hydra" not in path.parts)


def keys(config: str) -> list[str]:
    """Every key of the default config, dotted, and every group."""
    return [*dotted(tree(config)), *groups()]


def tree(config: str) -> Any:
    """The default config as nested dicts."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose(config), resolve=False)


def dotted(tree: Any, prefix: str = "") -> list[str]:
    """The keys of a nested dict, as a user would write them."""
    if not isinstance(tree, dict):
        return [prefix.rstrip(".")]
    return [key for name, value in tree.items() for key in dotted(value, f"{prefix}{name}.")]
