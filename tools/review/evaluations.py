"""Reads records of evaluations: values, the protocol by which they were measured, and what was measured."""
from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from launch.config.keys import flat
from tools.review.records import Problem, number, read_json

ASIDE = ("_stderr", "_real")  # beside a value: its standard error, and the same value of real images
NO_RECORDS = ("track.json", "failure.json")
INCEPTIONS = re.compile(r"(fid|kid|is|inception_score)(?=_|$)")  # names kept for figures of Inception's features
HEX = re.compile(r"[0-9a-f]{12,}")


@dataclass(frozen=True)
class Evaluation:
    """One record: ``values`` by name, ``measure`` (all that must be equal to compare), and the ``subject`` measured."""

    path: Path
    metric: str
    values: dict[str, float]
    measure: dict[str, Any]
    subject: dict[str, Any]
    pictures: dict[str, Path]
    time: float

    @property
    def figures(self) -> list[str]:
        """The names of its values, in the record's order."""
        return [name for name in self.values if not name.endswith(ASIDE)]

    def error(self, figure: str) -> float | None:
        """The standard error of a value, None if it was not measured."""
        return self.values.get(f"{figure}_stderr")

    @cached_property
    def protocol(self) -> dict[str, str]:
        """All that must be equal for two values to be comparable, by dotted keys, as text."""
        told = {"metric": self.metric, **flat(self.measure)}
        return {name: value if isinstance(value, str) else json.dumps(value, sort_keys=True) for name, value in told.items()}


def read_evaluation(path: Path) -> tuple[Evaluation | None, list[Problem]]:
    """The record in a file, None if it holds none, and what is wrong with it."""
    content, problems = read_json(path)
    if problems:
        return None, problems
    if missing := [name for name in ("metric", "values", "measure", "subject") if name not in content]:
        return None, [Problem(str(path), f"not the record of an evaluation: it has no {', '.join(map(repr, missing))}")]
    strange = [name for name in ("values", "measure", "subject") if not isinstance(content[name], dict)]
    if strange or not isinstance(content["metric"], str):
        return None, [Problem(str(path), f"the record of an evaluation with an invalid {(strange or ['metric'])[0]!r}")]
    told = {name: number(value) for name, value in content["values"].items()}
    lost = [name for name, value in told.items() if value is None]
    problems = [Problem(str(path), f"{', '.join(lost)}: not a finite number, left out")] if lost else []
    values = {name_of(name, content["measure"]): value for name, value in told.items() if value is not None}
    pictures = content.get("pictures")
    shown = {str(name): path.parent / Path(file).name for name, file in pictures.items() if isinstance(file, str) and file} \
        if isinstance(pictures, dict) else {}
    made = Evaluation(path, content["metric"], values, content["measure"], content["subject"], shown,
                      number(content.get("time")) or 0.0)
    try:
        made.protocol  # noqa: B018  # a measure that is nested too deeply shows here
    except (RecursionError, ValueError) as error:
        return None, [Problem(str(path), f"the record of an evaluation whose measure can't be read: {error}")]
    return made, problems


def name_of(figure: str, measure: dict[str, Any]) -> str:
    """A figure's name, whoever wrote the record: only with Inception's features is it an FID, a KID or an inception score."""
    told = measure.get("extractor")
    extractor = told.get("name") if isinstance(told, dict) else told
    claimed = INCEPTIONS.match(figure)
    if claimed is None or not isinstance(extractor, str) or "inception" in extractor.lower():
        return figure
    short = {"fid": "fd", "kid": "kd"}.get(claimed[0], claimed[0])
    return f"{short}_{re.sub(r'[^A-Za-z0-9]+', '_', extractor)}{figure[claimed.end():]}"


def find_evaluations(folder: Path) -> tuple[list[Evaluation], list[Problem]]:
    """The records in a folder and below it, oldest first, and what could not be read."""
    records: list[Evaluation] = []
    problems: list[Problem] = []
    for path in sorted(folder.rglob("*.json")):
        beneath = path.relative_to(folder)
        if any(part.startswith(".") or part == "wandb" for part in beneath.parts) or path.name in NO_RECORDS:
            continue
        if path.name.startswith("evaluation-"):  # marks a study's point as done
            continue
        record, faults = read_evaluation(path)
        problems += faults
        records += [record] if record is not None else []
    return sorted(records, key=lambda one: (one.time, str(one.path))), problems


def by_protocol(records: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """The records in groups of one protocol each, the largest first."""
    groups: dict[str, list[Evaluation]] = {}
    for record in records:
        groups.setdefault(json.dumps(record.protocol, sort_keys=True), []).append(record)
    return sorted(groups.values(), key=len, reverse=True)


def differences(one: Evaluation, other: Evaluation) -> dict[str, tuple[str, str]]:
    """The differences of two protocols: both values of each key, "none" if one has no such key."""
    first, second = one.protocol, other.protocol
    names = [*first, *(name for name in second if name not in first)]
    pairs = {name: (first.get(name, "none"), second.get(name, "none")) for name in names}
    return {name: (shorten(a), shorten(b)) for name, (a, b) in pairs.items() if a != b}


def shorten(text: str, digits: int = 12) -> str:
    """A value for one line: hashes are cut to their first digits, long texts to their beginning."""
    text = HEX.sub(lambda match: match[0][:digits], text)
    return text if len(text) <= 60 else f"{text[:57]}…"


def protocol_line(record: Evaluation, *, most: int = 9) -> str:
    """The protocol, abridged: `n 50,000 · reference cifar10 a1b2c3d4 · extractor inception 6726825d · …`."""
    told = record.measure
    hashes = {f"{name}_sha256" for name in told if isinstance(told[name], str)} & told.keys()
    folded = {name: {"name": value, "sha256": told[f"{name}_sha256"]} if f"{name}_sha256" in hashes else value
              for name, value in told.items() if name not in hashes}
    parts = [part for name, value in folded.items() for part in key_words(name, value)]
    return " · ".join([*parts[:most], *([f"and {len(parts) - most} more"] if len(parts) > most else [])])


def subject_line(record: Evaluation) -> str:
    """What was measured, abridged: `heun 35 NFE · EMA 0 · step 3,125 · bf16 · code 12ab34cd`."""
    told = record.subject
    sampler = " ".join([str(told["sampler"]) if told.get("sampler") else "",
                        f"{told['nfe']:,} NFE" if number(told.get("nfe")) is not None else ""]).strip()
    parts = [sampler] if sampler else []
    if "n" in told and "n" not in record.measure:
        parts.append(f"n {value_text(told['n'])}")
    parts += [f"{title} {value_text(told[name])}" for name, title in (("ema", "EMA"), ("step", "step"), ("seed", "seed"))
              if told.get(name) is not None and name not in record.measure]
    parts += [str(told["precision"])] if told.get("precision") else []
    return " · ".join([*parts, *([f"code {shorten(str(told['version']), 8)}"] if told.get("version") else [])])


def key_words(name: str, value: Any) -> list[str]:
    """A key of a protocol and its value as text; a part with a name and a hash becomes one text."""
    title = name.replace("_", " ")
    if isinstance(value, dict):
        head = [value_text(value[key]) for key in ("name", "sha256") if value.get(key) is not None]
        others = {key: below for key, below in value.items() if key not in ("name", "sha256")}
        rest = [part for key, below in others.items() for part in key_words(f"{name} {key}", below)]
        return [*([f"{title} {' '.join(head)}"] if head else []), *rest]
    if value is None or value == [] or value == "":
        return [f"{title} none"]
    return [title if value is True else f"no {title}" if value is False else f"{title} {value_text(value)}"]


def value_text(value: Any) -> str:
    """A value for readers: thousands separated, eight digits of a hash, the first items of a list."""
    if isinstance(value, list):
        items = [value_text(one) for one in value[:4]]
        return ", ".join([*items, f"… ({len(value)})"] if len(value) > 4 else items)
    if isinstance(value, bool) or number(value) is None:
        return shorten(str(value), 8)
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else f"{value:.6g}"
