"""The steps of the journey in words: what was changed, what had been said of it by hand, and what the measurements say to
that."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Record = dict[str, Any]  # what diagnosis.json holds


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step; ``by_hand`` is what was diagnosed without a doctor, ``judge`` holds it against a diagnosis."""

    title: str
    change: str
    by_hand: str = ""
    judge: Callable[[Record], str] | None = None


def noise(record: Record) -> str:
    """On "the noise term was orders of magnitude stronger than the score term: a random walk"."""
    first = record["steps"][0]
    a, temperature, relaxation = first["step_size"], first["temperature"], record["relaxation"]
    ratio, own = first["noise_size"] / first["drift"], math.sqrt(2 * a) / first["drift"]
    said = (f"In one step noise is {ratio:.0f} times the drift, but so it is in Langevin dynamics that is right: with the "
            f"noise √(2a) that belongs to this step it would be {own:.0f} times. Drift adds up in proportion to the number of "
            "steps and noise to its square root, so the ratio of one step proves nothing. ")
    said += (f"What is wrong is the temperature b²/(2a) = {temperature:.3g}, where Langevin's is 1"
             if temperature >= 2 else f"The temperature b²/(2a) = {temperature:.3g} is no fault")
    said += (f", and that all steps together relax a typical direction by Σaλ = {relaxation:.2g} e-folds only."
             if relaxation < 1 else f"; the steps relax a typical direction by Σaλ = {relaxation:.2g} e-folds, which is "
                                    "enough.")
    return ("**Right in what it saw, wrong in why.** " if temperature >= 2 else "**Wrong.** ") + said


def black(record: Record) -> str:
    """On "guidance is strong and systematic, the step far too large: pixels explode and are clamped at −1"."""
    bend = max(record["curvature"], key=lambda one: one["a_times_L"])
    over, drift, clamped = bend["a_times_L"] / 2, record["steps"][-1]["drift"], record["end"]["clamped"]
    dark = record["pictures"]["black"]
    said = (f"The step is {over:.3g} times the largest stable one, 2/L = {bend['stable_below']:.3g}, and {clamped:.0%} of the "
            "pixels end at the clamp. ")
    if dark > 0.9:
        said += "All of them end black."
    else:
        said += (f"But not all black: {dark:.0%} of the pixels are, the rest white. A step of RMS {drift:.3g} in a range of 2 "
                 "throws every pixel from one wall to the other, so that black or white depends on where one stops counting. ")
    level = nearest(record, record["steps"][0]["sigma"])
    said += (f"The guidance itself is of the right size (slope {level['slope']:.2f}, 1 is right; it explains "
             f"{level['explained']:.0%} of the noise at σ = {level['sigma']:.3g}): only the step is at fault.")
    return ("**Right about the step.** " if over > 1 else "**Wrong.** ") + said


def frozen(record: Record) -> str:
    """On "stable, but the guidance is too weak to have any effect"."""
    bend = min((one for one in record["curvature"] if one["stable_below"]), key=lambda one: one["stable_below"])
    relaxation, level = record["relaxation"], nearest(record, record["steps"][0]["sigma"])
    steps = len(record["steps"])
    needed = 3 / max(relaxation / steps * bend["stable_below"] / 4 / record["steps"][0]["step_size"], 1e-12)
    weak = level["slope"] > 1.2
    return (("**Right.** " if weak else "**Stable it is; weak it is not.** ")
            + f"Guidance has slope {level['slope']:.2f} (above 1 would be too weak). The steps are too small: together they "
              f"relax a typical direction by Σaλ = {relaxation:.2g} e-folds. A quarter of the largest stable step, "
              f"{bend['stable_below'] / 4:.3g}, would take {needed:.0f} steps for three e-folds, not {steps}.")


def nearest(record: Record, sigma: float) -> Record:
    """The calibration measured nearest to a level."""
    found: Record = min(record["calibration"], key=lambda row: abs(math.log(row["sigma"] / sigma)))
    return found


STEPS = {
    "journey/noise": Step(
        title="Langevin, and noise", change="A plain CNN energy, trained at one noise level, σ = 0.5. Langevin dynamics with "
                                            "a step and a noise that were chosen apart.",
        by_hand="Samples look like noise: step and noise sizes are unstable, the noise term is orders of magnitude stronger "
                "than the score term, a random walk.", judge=noise),
    "journey/black": Step(
        title="No noise, and black squares", change="The same model; gradient descent on the energy with a large step, "
                                                    "clamped.",
        by_hand="Images collapse to solid black: guidance is strong and systematic, the step far too large; pixels explode "
                "and are clamped at −1.", judge=black),
    "journey/frozen": Step(
        title="A tiny step, and nothing", change="The same model; gradient descent with a drastically smaller step.",
        by_hand="Still the initial noise: stable, but the guidance is too weak to have any effect.", judge=frozen),
    "journey/repaired": Step(
        title="The sampler repaired", change="The same model; what the doctor prescribes: Langevin's own noise, a quarter of "
                                             "the largest stable step, and at the end the level's noise taken out in one "
                                             "step."),
    "journey/ladder": Step(
        title="A ladder of levels", change="The CNN trained on a geometric ladder of levels, and annealed Langevin down that "
                                           "ladder. The network is still not told the level."),
    "journey/continuous": Step(
        title="A continuous schedule", change="The same, trained at levels drawn log-normally (EDM)."),
    "journey/sigma": Step(title="The level told", change="The same, and the CNN is told σ."),
    "journey/unet": Step(
        title="A network that can use it", change="A small U-Net with attention and σ, and EDM's Heun sampler."),
}


PAGE = """\
# The journey: from noise to images, one cure at a time

Someone trained a plain CNN energy at one noise level, watched the loss fall, and got noise, then black squares, then noise
again. Each step below was run again, measured by the doctor (`launch/diagnose.py`) and held against what had been said of it by
hand; then one cure at a time was added.

The study: `{study}`. Diagnosed and written by `launch/journey.py` on {date}; {machine}, torch {torch}. Data:
{data}; {samples} samples a step, statistics of {held_out} held-out images. The distances that the doctor names are of its
own 16 samples.

| step | images trained on | loss, first → last | verdict | distance from the data |
| --- | --- | --- | --- | --- |
{rows}

Losses of different schedules don't compare. The distance is the Fréchet distance of Gaussians with the data's principal
components, relative to its own width: 0 the same, 1 as far as a constant image; as many other real images have {least:.2f}.

{sections}
## What it was

By hand: *one noise level says nothing at the other levels a sampler passes through, and the CNN is too small; the cure is a
continuous schedule of noise levels and a time-aware U-Net.*

{conclusion}
"""

SECTION = """\
## {number}. {title}

{change}

![](journey/{name}.png)

{said}The doctor: {doctor}

![](journey/{name}-diagnosis.png)
"""


def conclusion(records: dict[str, Record]) -> str:
    """On "one level says nothing of the others, and the CNN is too small: a continuous schedule, a time-aware U-Net"."""
    single, distances = records["journey/repaired"], {name: record["pictures"]["distance"] for name, record in records.items()}
    low, high = single["trusted"] or (math.nan, math.nan)
    names = list(records)
    falls = {after: distances[before] - distances[after] for before, after in pairwise(names[3:])}
    most = max(falls, key=lambda name: falls[name])
    trusted = {name: "none" if not record["trusted"] else "{:.3g} to {:.3g}".format(*record["trusted"])
               for name, record in records.items()}
    repaired = distances["journey/repaired"]
    failed = min(distances[name] for name in names[:3])
    plain = [name for name in ("journey/ladder", "journey/continuous") if distances[name] > distances["journey/repaired"]]
    said = [f"That one level says nothing of the others: measured, the single-level model is to be trusted from σ = {low:.3g} "
            f"to {high:.3g}, a factor of {high / low:.0f}, where a sampler passes through a factor of some 40,000."]
    if repaired < 0.75 * failed:
        said.append("But what failed first was the sampler and not the model: the same plain CNN, trained at one level, ends "
                    f"at {repaired:.2f} once the sampler is repaired, where the three that failed end at {failed:.2f} or more.")
    if plain:
        said.append(f"More levels alone are no cure: {' and '.join(STEPS[name].title.lower() for name in plain)} without σ in "
                    "the network end farther from the data than the repaired single level.")
    said.append(f"The largest fall of the distance between neighbouring steps is {falls[most]:.2f}, at "
                f"“{STEPS[most].title.lower()}”. Trusted with σ in the CNN: {trusted['journey/sigma']}; with the U-Net: "
                f"{trusted['journey/unet']}.")
    return " ".join(said)
