"""What `--help` prints: how an entry is called, the choices of each group, and every key with its value and its comment."""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def manual(config: str, chosen: Mapping[str, str | None], about: str) -> str:
    """The help of the entry ``config``, with the keys of what is ``chosen`` for each of its groups."""
    lines = [*about.strip().splitlines(), "", f"python launch/{config}.py [group=choice …] [key=value …]", "",
             "Choices, one override each (what is chosen now):", ""]
    lines += [f"  {group}=  {', '.join(choices(group)) or '-'}  ({choice or 'none'})"
              for group, choice in sorted(chosen.items()) if "@" not in group]
    lines += ["", "Keys with their values and what they mean; each can be given another: key=value."]
    for name in bases(config):
        lines += ["", *body(CONFIGS / f"{name}.yaml")]
    for group, choice in chosen.items():
        if choice is not None:
            path = CONFIGS / group.split("@")[0] / f"{choice}.yaml"
            lines += ["", *headed(path, group, choice)]
    lines += ["", "Other flags: --cfg job (print the config and stop), --hydra-help. --help with choices tells of these:",
              f"python launch/{config}.py sampler=langevin --help"]
    return "\n".join(lines)


def headed(path: Path, group: str, choice: str) -> list[str]:
    """What a choice of a group sets, under the name that its keys begin with."""
    place = group.split("@")[-1].replace("/", ".")
    if match := re.match(r"# @package (\S+)", path.read_text()):
        place = "" if match[1] == "_global_" else match[1]
    return [f"{group.split('@')[0]}={choice}" + (f", whose keys begin with {place}." if place else ""),
            *(f"  {line}" for line in body(path))]


def body(path: Path) -> list[str]:
    """A config's text without its defaults, which are choices."""
    text = re.sub(r"^defaults:\n(?:[ #].*\n|\n)+", "", path.read_text(), flags=re.MULTILINE)
    return [line for line in text.splitlines() if not re.match(r"# @package|_partial_:", line)]


def bases(config: str) -> list[str]:
    """The configs that an entry's is made of, its own first, without what all entries have and no reader can use."""
    defaults = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{config}.yaml")).get("defaults", [])  # type: ignore[union-attr]
    return [config, *(name for one in defaults if isinstance(one, str) and one not in ("_self_", "entry")
                      for name in bases(one))]


def choices(group: str) -> list[str]:
    """Names that a group accepts; an experiment's may lie in a folder, where another group's would be a group of its own."""
    folder = CONFIGS / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in
                  (folder.rglob("*.yaml") if group == "experiment" else folder.glob("*.yaml")))
