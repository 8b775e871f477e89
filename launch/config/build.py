"""Builds objects from a config: the only caller of Hydra's `instantiate`, which checks every value first."""
from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra._internal.utils import _locate
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from pydantic import TypeAdapter, ValidationError

from ebm.energy import Preconditioned
from ebm.objective import DenoisingScoreMatching
from ebm.sampling import Sampler
from ebm.schedule import NoiseSchedule
from ebm.train.budget import Budget
from ebm.train.ema import Averaging
from ebm.train.rate import LearningRate
from launch.config.manual import choices

SCALARS = (int, float, bool, str, type(None))
WORDS = {int: ("an integer", "integers, as in [1,2]"), float: ("a number", "numbers, as in [0.5,1]"),
         str: ("a string", "strings, as in [a,b]"), bool: ("true or false", "true and false"), type(None): ("null", "nulls")}
KINDS: dict[str, Any] = {  # what the parts of a run that no signature describes must be
    "model": Preconditioned, "objective": DenoisingScoreMatching, "schedule": NoiseSchedule, "rate": LearningRate,
    "average.rules": Averaging, "optimizer": Callable[..., torch.optim.Optimizer], "sampler": Sampler, "budget": Budget}


def build(node: DictConfig, *, key: str) -> Any:
    """The object that ``node`` describes; raises ValueError, naming the key, its value and what is accepted."""
    check_kind(node, KINDS.get(re.sub(r"\.\d+$", "", key), Any), key=key)
    check(node, key=key)
    alone = OmegaConf.create(OmegaConf.to_container(node, resolve=True))  # Hydra's errors then name keys relative to this node
    with naming(f"{key}."):
        try:
            return instantiate(alone, _convert_="all")
        except InstantiationException as error:  # wraps what a constructor raises, and says for which part
            inner = re.search(r"full_key: (\S+)", str(error))
            with naming(f"{inner[1]}." if inner else ""):
                raise (error.__cause__ or error) from error


@contextlib.contextmanager
def naming(prefix: str, *also: type[Exception]) -> Iterator[None]:
    """Context that puts ``prefix`` before the message of a refusal, so that an argument is named as the user wrote it.

    Refusals are ValueError, TypeError and the types ``also``, such as those PyTorch raises; all leave as ValueError.
    """
    refusals: tuple[type[Exception], ...] = (ValueError, TypeError, *also)
    try:
        yield
    except refusals as error:
        raise ValueError(f"{prefix}{error!s}") from error


def check(node: Any, *, key: str) -> None:
    """Checks every value below ``node`` against the signature of the ``_target_`` it goes to: signatures are the schema.

    Raises ValueError for a key that the signature lacks and for a value of another type.
    """
    if isinstance(node, ListConfig):
        for index, item in enumerate(node):
            check(item, key=f"{key}[{index}]")
    if not isinstance(node, DictConfig):
        return
    parameters = signature(node, key=key) if "_target_" in node else {}
    for name, value in ((str(name), value) for name, value in node.items()):
        place = f"{key}.{name}"
        if name in parameters:
            check_type(value, parameters[name], key=place)
        elif parameters and name not in ("_target_", "_partial_", "_convert_"):
            raise ValueError(f"{place}: no such key; accepted: {', '.join(parameters)}")
        check(value, key=place)


def locate(node: DictConfig, *, key: str) -> Any:
    """The class or function that a node's ``_target_`` names; raises ValueError if there is none."""
    name = node["_target_"]
    try:
        target = _locate(name)
    except Exception as error:  # importing a module may raise anything
        root = error.__cause__ or error
        cause = " ".join(str(root).split())
        if isinstance(root, ModuleNotFoundError) and root.name == name:  # it tried the class itself as a module
            cause = "{} has no {}".format(*str(name).rsplit(".", 1)) if "." in name else cause
        elif not isinstance(root, ImportError):
            cause = f"{type(root).__name__}: {cause}"
        raise ValueError(f"{key}._target_: {name!r} can't be imported: {cause}") from error
    if not callable(target):
        raise ValueError(f"{key}._target_: {name!r} is not accepted; it must be a class or a function")
    return target


def signature(node: DictConfig, *, key: str) -> dict[str, Any]:
    """Names and types of the parameters of a node's target; the type is Any where it can't be read."""
    target = locate(node, key=key)
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        hints = {}
    return {name: hints.get(name, Any) for name in inspect.signature(target).parameters}


def check_kind(node: DictConfig, expected: Any, *, key: str) -> None:
    """Raises ValueError if a node's target is a class whose objects are not what is ``expected`` there."""
    made = locate(node, key=key)
    if typing.get_origin(expected) is Callable:
        expected = typing.get_args(expected)[-1] if node.get("_partial_") else Callable
    elif node.get("_partial_"):
        made = functools.partial
    known = inspect.isclass(expected) and expected not in (Any, object) and typing.get_origin(expected) is None
    protocol = getattr(expected, "_is_protocol", False)  # of which nothing needs to be derived
    if known and not protocol and inspect.isclass(made) and not issubclass(made, expected):
        what = "a function" if expected is Callable else f"a class derived from {expected.__module__}.{expected.__qualname__}"
        raise ValueError(f"{key}._target_: {node['_target_']!r} is not accepted; it must be {what}")


def check_type(value: Any, expected: Any, *, key: str) -> None:
    """Raises ValueError if a plain value isn't of the type its parameter takes; objects check themselves."""
    if isinstance(value, SCALARS) and is_object(expected):
        group = key.replace(".", "/")
        accepted = ", ".join(choices(group))
        raise ValueError(f"{key}: {value!r} is not accepted; " + (f"select with {group}=<name>: {accepted}" if accepted else
                                                                  f"it must have a _target_ that builds {words(expected)}"))
    if isinstance(value, DictConfig) and "_target_" in value:
        check_kind(value, expected, key=key)
    if isinstance(value, DictConfig) or not is_plain(expected):
        return
    plain = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
    try:
        TypeAdapter(expected).validate_python(plain, strict=True)  # lax mode would accept "no" as a bool, and leave it a string
    except ValidationError as error:
        integer = int in (expected, *typing.get_args(expected)) and isinstance(plain, float) and plain.is_integer()
        written = f", written {plain:_.0f}" if integer else ""
        raise ValueError(f"{key}: {plain!r} is not accepted; it must be {words(expected)}{written}") from error


def words(expected: Any) -> str:
    """A type in words, as in "an integer or null"."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words(one) for one in arguments)
    if origin in (list, Sequence) and arguments[0] in WORDS:
        return f"a list of {WORDS[arguments[0]][1]}"
    if origin is Callable:
        return "a function"
    return WORDS[expected][0] if expected in WORDS else str(getattr(expected, "__name__", expected))


def is_object(expected: Any) -> bool:
    """Whether a type is a class or a function, which no plain value in a config can be."""
    if typing.get_origin(expected) is not None:
        return typing.get_origin(expected) is Callable
    return inspect.isclass(expected) and expected not in (*SCALARS, Any, object) and not issubclass(expected, os.PathLike)


def is_plain(expected: Any) -> bool:
    """Whether a type is made up of numbers, strings, booleans, None and sequences of them."""
    if typing.get_origin(expected) is None:
        return expected in SCALARS
    arguments = [argument for argument in typing.get_args(expected) if argument is not Ellipsis]
    container = typing.get_origin(expected)
    plain = container in (typing.Union, types.UnionType) or issubclass(container, Sequence)
    return plain and all(is_plain(argument) for argument in arguments)


def plain(cfg: DictConfig, key: str, kind: type, *, least: float | None = None, most: float | None = None) -> Any:
    """The value of a key that goes to no ``_target_``; raises ValueError if it is of another type or out of range."""
    value = OmegaConf.select(cfg, key, throw_on_missing=True)
    check_type(value, kind, key=key)
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{key}: {value!r} is not accepted; it must be a finite number")
    if least is not None and value < least:
        raise ValueError(f"{key}: {value!r} is not accepted; it must be at least {least}")
    if most is not None and value > most:
        raise ValueError(f"{key}: {value!r} is not accepted; it must be at most {most}")
    return kind(value)


def place(cfg: DictConfig, key: str) -> Path:
    """The path of a file or folder that a key names; raises ValueError if it is empty or not a string."""
    value = plain(cfg, key, str)
    if not value:
        raise ValueError(f"{key}: '' is not accepted; it must be a path")
    return Path(value)


def make_folder(cfg: DictConfig, key: str) -> None:
    """Makes the folder that a key names, before any work; raises ValueError, naming the key, if that is not permitted."""
    path = place(cfg, key)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{key}: {path} can't be made: {error.strerror}") from error


def seed(cfg: DictConfig) -> int:
    """The seed of everything random; raises ValueError for one that PyTorch's generators don't take."""
    value: int = plain(cfg, "seed", int, least=0, most=2**63 - 1)
    return value


def best_precision(device: torch.device) -> str:
    """bf16 if the device computes faster in it than in float32, else fp16 on a GPU and fp32 on a CPU."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return "bf16" if fast else "fp32"
