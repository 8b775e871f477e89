"""What `--help` prints: how an entry is called, the choices of each group, and every key with its value and its comment."""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def manual(config: str, chosen: Mapping[str, str | None], about: str) -> str:
    """The help of the entry ``config``, with the keys of what is ``chosen`` for each of its groups."""
    call = f"python launch/{config}.py" + (" -m" if config == "sweep" else "")
    lines = [*about.strip().splitlines(), "", f"{call} [group=choice …] [key=value …]", "",
             "Choices, one override each (what is chosen now):", ""]
    lines += [f"  {group}=  {', '.join(choices(group)) or '-'}  ({choice or 'none'})"
              for group, choice in sorted(chosen.items()) if "@" not in group]
    lines += ["", "Keys, the values they have and what they mean; each can be given another: key=value."]
    for name in bases(config):
        lines += ["", *body(CONFIGS / f"{name}.yaml")]
    for group, choice in chosen.items():
        if choice is not None:
            lines += ["", *headed(group, choice.removesuffix(".yaml"))]
    lines += ["", "Other flags: --cfg job (print the config and stop), --hydra-help. --help with choices tells of these:",
              f"python launch/{config}.py sampler=langevin --help"]
    return "\n".join(lines)


def headed(group: str, choice: str) -> list[str]:
    """What a choice of a group sets, under the name that its keys begin with, after what it is made of."""
    folder, _, place = group.partition("@")
    names = bases(f"{folder}/{choice}")[::-1]
    if match := re.match(r"# @package (\S+)", (CONFIGS / f"{names[-1]}.yaml").read_text()):
        place = match[1].replace("_global_", "none")
    place = place or folder.replace("/", ".")
    title = f"{folder}={choice}" + (f", whose keys begin with {place}." if place != "none" else "")
    texts = [[f"  {line}" for line in lines] for name in names if (lines := body(CONFIGS / f"{name}.yaml"))]
    return [title, *texts[0], *(line for text in texts[1:] for line in ("  # in place of or beside these:", *text))]


def body(path: Path) -> list[str]:
    """A config's text without its defaults, which are choices."""
    text = re.sub(r"^defaults:\n(?:[ #].*\n|\n)+", "", path.read_text(), flags=re.MULTILINE)
    return [line for line in text.splitlines() if not re.match(r"# @package|_partial_:", line)]


def bases(config: str) -> list[str]:
    """The configs that one is made of, its own first, without what all entries have and no reader can use."""
    tree = OmegaConf.load(CONFIGS / f"{config}.yaml")
    assert isinstance(tree, DictConfig)
    plain = [one for one in tree.get("defaults", []) if isinstance(one, str) and one not in ("_self_", "entry")]
    here = config.rpartition("/")[0]
    names = [one[1:].split("@")[0] if one.startswith("/") else f"{here}/{one}".lstrip("/") for one in plain]
    return [config, *(base for name in names for base in bases(name))]


def choices(group: str) -> list[str]:
    """Names that a group accepts; an experiment's may lie in a folder, where another group's would be a group of its own."""
    folder = CONFIGS / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in
                  (folder.rglob("*.yaml") if group == "experiment" else folder.glob("*.yaml")))
