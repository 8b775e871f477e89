"""What `--help` prints: usage, the choices of every config group, and every key with its value and its comment."""
from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def manual(config: str, chosen: Mapping[str, str | None], about: str) -> str:
    """The help text of the entry ``config``, with the settings of the choice that is ``chosen`` in each group."""
    call = f"python launch/{config}.py"
    multirun = " -m" if config == "sweep" else ""
    lines = [*about.strip().splitlines(), "", f"Usage: {call}{multirun} [group=name ...] [key=value ...]", "",
             "Config groups (current choice in parentheses); select with group=name:", ""]
    lines += [f"  {group}=  {', '.join(choices(group)) or '-'}  ({choice or 'none'})"
              for group, choice in sorted(chosen.items()) if "@" not in group]
    lines += ["", "Settings and their current values; override with key=value:"]
    for name in bases(config):
        lines += ["", *body(CONFIGS / f"{name}.yaml")]
    for group, choice in chosen.items():
        if choice is not None:
            lines += ["", *headed(group, choice.removesuffix(".yaml"))]
    lines += ["", "To see the settings of other choices, add them before --help:", f"  {call} sampler=langevin --help",
              "Other flags: --cfg job (print the config and exit), --hydra-help"]
    return "\n".join(lines)


def headed(group: str, choice: str) -> list[str]:
    """The settings of a group's choice, under a heading that says how their keys begin and what the choice is; those of the
    configs that it builds on come first."""
    folder, _, place = group.partition("@")
    names = bases(f"{folder}/{choice}")[::-1]
    if match := re.match(r"# @package (\S+)", (CONFIGS / f"{names[-1]}.yaml").read_text()):
        place = match[1].replace("_global_", "none")
    place = place or folder.replace("/", ".")
    title = f"{folder}={choice}" + (f" (settings: {place}.*)" if place != "none" else "")
    texts = [body(CONFIGS / f"{name}.yaml") for name in names]
    lines = next((about for text in reversed(texts) if (about := heading(text))), [])
    blocks = [settings for text in texts if (settings := text[len(heading(text)):])]
    for index, settings in enumerate(blocks):
        lines += ["# changes and additions:", *settings] if index else settings
    return [title, *(f"  {line}" for line in lines)]


def heading(text: list[str]) -> list[str]:
    """The comment with which a config begins."""
    return [*takewhile(lambda line: line.startswith("#"), text)]


def body(path: Path) -> list[str]:
    """The text of a config without its defaults, which are shown as choices."""
    text = re.sub(r"^defaults:\n(?:[ #].*\n|\n)+", "", path.read_text(), flags=re.MULTILINE)
    return [line for line in text.splitlines() if not re.match(r"# @package|_partial_:", line)]


def bases(config: str) -> list[str]:
    """A config and those that it builds on, itself first; without entry.yaml, which holds nothing for a user to set."""
    tree = OmegaConf.load(CONFIGS / f"{config}.yaml")
    assert isinstance(tree, DictConfig)
    plain = [one for one in tree.get("defaults", []) if isinstance(one, str) and one not in ("_self_", "entry")]
    here = config.rpartition("/")[0]
    names = [one[1:].split("@")[0] if one.startswith("/") else f"{here}/{one}".lstrip("/") for one in plain]
    return [config, *(base for name in names for base in bases(name))]


def choices(group: str) -> list[str]:
    """The names that a group accepts; experiments may lie in folders, which in any other group would be groups of their own."""
    folder = CONFIGS / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in
                  (folder.rglob("*.yaml") if group == "experiment" else folder.glob("*.yaml")))
