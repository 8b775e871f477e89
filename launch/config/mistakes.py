"""Mistakes on a command line, explained in one line that names the key and what is accepted."""
from __future__ import annotations

import contextlib
import difflib
import itertools
import re
from collections.abc import Sequence
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from launch.config.keys import flat
from launch.config.manual import CONFIGS, choices
from launch.config.override import ELSEWHERE, key, quoted


def explain(error: Exception, config: str) -> str:
    """Hydra's error about the config of an entry as one line that names the key and what is accepted."""
    text = " ".join(str(error).split())
    if match := re.search(r"Could not override '([^']+)'.*[Nn]o match in the defaults list", text):
        if match[1] in groups() and "/" in match[1]:
            return f"{match[1]}: the chosen {match[1].rpartition('/')[0]} has no such part"
        return no_such_group(match[1], config)
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        group = max((name for name in groups() if match[1].startswith(f"{name}/")), key=len, default="")
        choice = match[1].removeprefix(f"{group}/")
        own = f"; for images of your own: data=beton data.name=<name> data.train={choice}"
        return (f"{group}={choice}: no such choice; accepted: {', '.join(choices(group))}"
                + (own if group == "data" and "/" in choice else ""))
    if match := re.search(r"Ambiguous value for argument '(.*?)' 1\. To use it as a list", text):
        return (f"{match[1]}: {config}.py takes one value for each key; for a study of several: "
                f"python launch/sweep.py -m {match[1]}")
    if isinstance(error.__cause__, ValidationError) and (match := re.search(r"Error merging override ([^\s=]+)=(.*)", text)):
        return f"{match[1]}: {match[2]!r} is not accepted; {str(error.__cause__).splitlines()[0]}"
    if match := re.search(r"(?:Could not override|Error merging override) '?([\w./@]+)", text):
        named, wrong = match[1].split("=")[0], str(getattr(error.__cause__, "full_key", ""))
        return no_such_key(wrong if wrong.startswith(f"{named}.") else named, config)  # within a value, as in save={evry: 3}
    if isinstance(error, OverrideParseException):
        cure = quoted_override(error.override or "")
        return (f"{error.override}: can't be parsed; a setting is written key=value, a list as key=[1,2]"
                + (f", a text with special characters as {cure}" if cure else ""))
    return text


def quoted_override(override: str) -> str:
    """An override whose value needs quotes, as it is written in a shell; "" if quotes are not what it lacks."""
    name, _, value = override.partition("=")
    special = re.search(r"[^\w.,/:+-]", value, re.ASCII) and not re.search(r"""^['"[{(]|['"]$""", value)
    return f'"{name}={quoted(value)}"' if special else ""


def choice_mistake(overrides: Sequence[str]) -> str:
    """What is wrong with the first group that is given something other than a name, as in model=3; "" if none is.

    Hydra itself reports no error for it.
    """
    known = groups()
    asked = [one for one in overrides if key(one) in known and not one.startswith("~")]
    with contextlib.suppress(HydraException):  # an override that can't be parsed, which Hydra reports itself
        for one in OverridesParser.create().parse_overrides(asked):
            values = [*one.sweep_iterator()] if one.is_sweep_override() else [one.value()]
            for value in itertools.chain.from_iterable(value if isinstance(value, list) else [value] for value in values):
                if not isinstance(value, str | QuotedString | dict):
                    said = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
                    return f"{one.key_or_group}={said}: no such choice; accepted: {', '.join(choices(one.key_or_group))}"
    return ""


def addition_mistake(override: str, config: str) -> str:
    """What is wrong with an override that adds a key with +; "" if nothing is.

    Below a target, its signature is checked later.
    """
    name, _, value = override.lstrip("+").partition("=")
    key = name.partition("@")[0]
    if key.startswith("hydra"):
        return ""
    if key in groups():
        settings = "/" in key and value.startswith("{")  # Hydra would add a key of that name
        return f"{name}={value}: no such choice; accepted: {', '.join(choices(key))}" if settings else ""
    if "/" in key:
        return no_such_group(key, config)
    node = default_config(config)
    for name in key.split("."):
        if isinstance(node, dict) and "_target_" in node:
            return ""
        if name != key and node and all(isinstance(one, dict) and "_target_" in one for one in node.values()):
            return ""  # one more of several objects, as in `metric`
        if not isinstance(node, dict) or name not in node:
            return no_such_key(key, config)
        node = node[name]
    return ""


def removal_mistake(override: str) -> str:
    """What is wrong with an override that removes a key with ~."""
    name = key(override)
    if name in groups():
        return f"{override}: a group can't be removed; choose {name}=<name>: {', '.join(choices(name))}"
    return f"{override}: a setting can't be removed; give it a value, as in {name}=<value>"


def no_such_key(key: str, config: str) -> str:
    """The line about a key that the config does not have, with the keys most like it."""
    if key.startswith("hydra.launcher."):
        return f"{key}: no such key; python launch/sweep.py --cfg hydra -p hydra.launcher lists them"
    known = [*flat(default_config(config)), *groups()]
    if (there := ELSEWHERE.get(key)) in known:
        return f"{key}: no such key; set {there} instead"
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    if key in near:  # the default config has it
        return f"{key}: no such key of the chosen {key.partition('.')[0]}"
    return f"{key}: no such key; " + (f"did you mean {', '.join(near)}?" if near else "--help lists them")


def no_such_group(group: str, config: str) -> str:
    """The line about a group that the config does not have, with those it has."""
    accepted = sorted(name for name in chosen(config) if "@" not in name)
    return f"{group}: not a group of this config; groups: {', '.join(accepted)}"


def chosen(config: str, overrides: Sequence[str] = ()) -> dict[str, str | None]:
    """The groups of an entry's config, each with the choice that the overrides or the defaults make."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3", job_name=config):
        made = hydra.compose(config, [*overrides], return_hydra_config=True).hydra.runtime.choices
    return {str(group): choice for group, choice in made.items() if not str(group).startswith("hydra")}


def groups() -> list[str]:
    """Names of the config groups, nested ones with slashes."""
    return sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*") if path.is_dir() and "hydra" not in path.parts)


def default_config(config: str) -> Any:
    """The default config of an entry as nested dicts."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose(config), resolve=False)
