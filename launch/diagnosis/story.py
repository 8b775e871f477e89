"""The text of the journey's page: each step's change, its diagnosis by hand, and how that agrees with the measurements."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Record = dict[str, Any]  # what diagnosis.json holds


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step; ``by_hand`` is the diagnosis without the doctor, ``judge`` compares it with the doctor's record."""

    title: str
    change: str
    by_hand: str = ""
    judge: Callable[[Record], str] | None = None


def noise(record: Record) -> str:
    """On "the noise term was orders of magnitude stronger than the score term: a random walk"."""
    first = record["steps"][0]
    a, temperature, relaxation = first["step_size"], first["temperature"], record["relaxation"]
    ratio, own = first["noise_size"] / first["drift"], math.sqrt(2 * a) / first["drift"]
    said = (f"In one step the noise is {ratio:.0f} times the drift, but correct Langevin dynamics looks the same: with the "
            f"noise √(2a) that matches this step size the ratio would be {own:.0f}. Drift adds up in proportion to the number "
            "of steps and noise to its square root, so the ratio in a single step proves nothing. ")
    said += (f"The fault is the temperature b²/(2a) = {temperature:.3g}, which should be 1"
             if temperature >= 2 else f"The temperature b²/(2a) = {temperature:.3g} is not at fault")
    said += (f", and that all steps together relax a typical direction by only Σaλ = {relaxation:.2g} e-folds."
             if relaxation < 1 else f"; the steps relax a typical direction by Σaλ = {relaxation:.2g} e-folds, which is "
                                    "enough.")
    return ("**Right observation, wrong reason.** " if temperature >= 2 else "**Wrong.** ") + said


def black(record: Record) -> str:
    """On "guidance is strong and systematic, the step far too large: pixels explode and are clamped at −1"."""
    bend = max(record["curvature"], key=lambda one: one["a_times_L"])
    over, drift, clamped = bend["a_times_L"] / 2, record["steps"][-1]["drift"], record["end"]["clamped"]
    dark = record["pictures"]["black"]
    said = (f"The step size is {over:.3g} times the largest stable one, 2/L = {bend['stable_below']:.3g}, and {clamped:.0%} "
            "of the pixels end at the clamp. ")
    if dark > 0.9:
        said += "All of them end black."
    else:
        said += (f"But not all are black: {dark:.0%} of the pixels are, the rest white. A step of RMS {drift:.3g} in a range "
                 "of width 2 throws every pixel from one bound to the other, so its colour depends on when sampling stops. ")
    level = nearest(record, record["steps"][0]["sigma"])
    said += (f"The score itself has the right size (slope {level['slope']:.2f}, where 1 is calibrated; it explains "
             f"{level['explained']:.0%} of the noise at σ = {level['sigma']:.3g}): only the step size is at fault.")
    return ("**Right about the step.** " if over > 1 else "**Wrong.** ") + said


def frozen(record: Record) -> str:
    """On "stable, but the guidance is too weak to have any effect"."""
    bend = min((one for one in record["curvature"] if one["stable_below"]), key=lambda one: one["stable_below"])
    relaxation, level = record["relaxation"], nearest(record, record["steps"][0]["sigma"])
    steps = len(record["steps"])
    needed = 3 / max(relaxation / steps * bend["stable_below"] / 4 / record["steps"][0]["step_size"], 1e-12)
    weak = level["slope"] > 1.2
    return (("**Right.** " if weak else "**Stable, yes; weak, no.** ")
            + f"The score has slope {level['slope']:.2f} (above 1 would be too weak). The steps are too small: together they "
              f"relax a typical direction by Σaλ = {relaxation:.2g} e-folds. Even with a quarter of the largest stable step "
              f"size, {bend['stable_below'] / 4:.3g}, three e-folds would take {needed:.0f} steps, not {steps}.")


def nearest(record: Record, sigma: float) -> Record:
    """The calibration measured at the level nearest to ``sigma``."""
    found: Record = min(record["calibration"], key=lambda row: abs(math.log(row["sigma"] / sigma)))
    return found


STEPS = {
    "journey/noise": Step(
        title="Langevin, and noise", change="A plain CNN energy, trained at one noise level, σ = 0.5. Langevin dynamics whose "
                                            "step size and noise were chosen independently.",
        by_hand="Samples look like noise: step and noise sizes are unstable, the noise term is orders of magnitude stronger "
                "than the score term, a random walk.", judge=noise),
    "journey/black": Step(
        title="No noise, and black squares", change="The same model; gradient descent on the energy with a large step, "
                                                    "clamped.",
        by_hand="Images collapse to solid black: guidance is strong and systematic, the step size far too large; pixels "
                "explode and are clamped at −1.", judge=black),
    "journey/frozen": Step(
        title="A tiny step, and nothing", change="The same model; gradient descent with a drastically smaller step size.",
        by_hand="Still the initial noise: stable, but guidance is too weak to have any effect.", judge=frozen),
    "journey/repaired": Step(
        title="The sampler repaired", change="The same model with the doctor's prescription: the noise that Langevin dynamics "
                                             "requires, a quarter of the largest stable step size, and a final step that "
                                             "removes the noise of the level."),
    "journey/ladder": Step(
        title="A ladder of levels", change="The CNN trained on a geometric ladder of noise levels, and annealed Langevin down "
                                           "that ladder. The network is still not given the level."),
    "journey/continuous": Step(
        title="A continuous schedule", change="The same, trained at log-normally distributed noise levels (EDM)."),
    "journey/sigma": Step(title="Conditioning on the level", change="The same, and σ is an input of the CNN."),
    "journey/unet": Step(
        title="A more capable network", change="A small σ-conditioned U-Net with attention, and EDM's Heun sampler."),
}


PAGE = """\
# The journey: from noise to images, one remedy at a time

Someone trained a plain CNN energy at one noise level, watched the loss fall, and got noise, then black squares, then noise
again. Each of these steps is repeated below, measured by the doctor (`launch/diagnose.py`), and compared with the original
diagnosis by hand; then one remedy at a time is added.

The study: `{study}`. Diagnosed and written by `launch/journey.py` on {date}; {machine}, torch {torch}. Data:
{data}; {samples} samples per step, statistics of {held_out} held-out images. The distances in the doctor's paragraphs are of
its own 16 samples.

| step | training images | loss, first → last | verdict | distance from the data |
| --- | --- | --- | --- | --- |
{rows}

Losses of different schedules are not comparable. The distance is the Fréchet distance between Gaussians in the data's
principal components, relative to the width of the data: 0 is identical, 1 as far as a constant image; as many other real
images are at {least:.2f}.

{sections}
## The cause

By hand: *one noise level says nothing about the other levels a sampler passes through, and the CNN is too small; the remedy
is a continuous schedule of noise levels and a time-aware U-Net.*

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
    said = [f"On the one noise level: by measurement, the single-level model can be trusted from σ = {low:.3g} to {high:.3g}, "
            f"a factor of {high / low:.0f}, while a sampler passes through a factor of some 40,000."]
    if repaired < 0.75 * failed:
        said.append("But what failed first was the sampler and not the model: with the sampler repaired, the same plain CNN, "
                    f"trained at one level, ends at a distance of {repaired:.2f}, the three failures at {failed:.2f} or more.")
    if plain:
        said.append(f"More levels alone are no remedy: {' and '.join(STEPS[name].title.lower() for name in plain)} without σ "
                    "in the network end farther from the data than the repaired single level.")
    said.append(f"From one step to the next, the distance falls most, by {falls[most]:.2f}, at "
                f"“{STEPS[most].title.lower()}”. The trusted range of σ with the σ-conditioned CNN: "
                f"{trusted['journey/sigma']}; with the U-Net: {trusted['journey/unet']}.")
    return " ".join(said)
