"""A diagnosis as JSON and as one paragraph of plain words."""
from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from ebm.diagnose.doctor import Diagnosis
from ebm.diagnose.facts import Finding
from ebm.diagnose.trial import start_of
from ebm.files import write_atomically


def diagnosis_record(before: Diagnosis, after: Diagnosis | None, *, about: dict[str, Any],
                     training: list[Finding]) -> dict[str, Any]:
    """The content of `diagnosis.json`; ``training`` are findings about the run, not the sampler."""
    return {
        **about, **sampler_record(before), "run_findings": [dataclasses.asdict(one) for one in training],
        "after": sampler_record(after) if after is not None else None,
    }


def sampler_record(diagnosis: Diagnosis) -> dict[str, Any]:
    """One sampler's share of the record."""
    facts, cure = diagnosis.facts, diagnosis.prescription
    trusted, last = facts.trusted, facts.path.records[-1]
    content = {
        "verdicts": diagnosis.verdicts,
        "findings": [dataclasses.asdict(finding) for finding in diagnosis.findings],
        "notes": list(diagnosis.notes),
        "prescription": None if cure is None else {
            "words": cure.words, "overrides": cure.overrides if cure.sampler else [], "training": list(cure.training)},
        "trusted": list(trusted) if trusted else None,
        "calibration": [{**dataclasses.asdict(c), "gain": c.gain, "trusted": c.trusted} for c in facts.calibrations],
        "curvature": [{"step": at.index, "on_path": at.on_path, "step_size": at.step_size, "a_times_L": at.stiffness,
                       "stable_below": 2 / at.curvature.largest if at.curvature.largest > 0 else None,
                       **dataclasses.asdict(at.curvature)} for at in facts.curvatures],
        "relaxation": facts.relaxation,
        "ladder": dataclasses.asdict(facts.ladder),
        "twin": {"off": list(facts.trial.off), "sound": facts.trial.sound},
        "start": start_of(facts.sampler),
        "end": {"distance": last.distance, "noise": last.noise, "rms": last.rms, "clamped": last.clamped,
                "broken_after": facts.path.broken},
        "steps": [dataclasses.asdict(step) for step in facts.path.records],
    }
    finite: dict[str, Any] = plain_numbers(content)
    return finite


def plain_numbers(tree: Any) -> Any:
    """The tree with None for numbers that JSON can't represent (NaN and infinities)."""
    if isinstance(tree, dict):
        return {name: plain_numbers(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain_numbers(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def paragraph(content: dict[str, Any]) -> str:
    """The diagnosis as a paragraph of plain words."""
    said = [f"Verdict on {content['sampler']}: {', '.join(content['verdicts'])}."]
    said += [f"{capital(finding['name'])}: {finding['words']}." for finding in [*content["findings"], *content["run_findings"]]]
    stands = ""
    if content.get("unfinished"):  # records of earlier versions don't have it
        stands = "the run stands at {:,} of {:,} images".format(*content["unfinished"])
        said.append(f"{capital(stands)}.")
    levels = "from σ = {:.3g} to {:.3g}".format(*content["trusted"]) if content["trusted"] else "at no level"
    said.append(f"On {content['images']} images the score can be trusted {levels}.")
    if content["images"] == "training":
        said.append("The run has no held-out images, so this does not show how the model does on unseen ones.")
    said += [f"{capital(note)}." for note in content["notes"]]
    cure = content["prescription"]
    if stands and "blind" in content["verdicts"]:
        said.append("Prescription: finish the run first, with the command that began it, then diagnose it again: the score may "
                    "be blind for lack of training alone.")
        if cure and cure["words"]:
            said.append(f"Until then: {cure['words']}.")
    elif cure:
        said.append(f"Prescription: {cure['words']}." if cure["words"] else "No setting of this sampler was found to cure it.")
    if after := content["after"]:
        said.append(f"Tried with {' '.join(content['tried'])}: {', '.join(after['verdicts'])}; the distance from the data's "
                    f"statistics is {content['end']['distance']:.2g} before and {after['end']['distance']:.2g} after.")
    return " ".join(said)


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def write_diagnosis(content: dict[str, Any], before: Diagnosis, after: Diagnosis | None, *, folder: Path) -> None:
    """Writes diagnosis.json, diagnosis.txt and diagnosis.png into ``folder``."""
    from launch.diagnosis.figure import draw_figure  # needs matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "diagnosis.json", (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    write_atomically(folder / "diagnosis.txt", (paragraph(content) + "\n").encode())
    draw_figure(content, before, after, folder / "diagnosis.png")
