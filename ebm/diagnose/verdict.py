"""From measurements to verdicts: each rule is a function of the facts that returns a finding or None."""
from __future__ import annotations

import math
from collections.abc import Callable

from ebm.diagnose.calibration import GREY
from ebm.diagnose.facts import Facts, Finding, Number
from ebm.diagnose.trial import FAR


def diverging(facts: Facts) -> Finding | None:
    """Steps above 2/L, a state that is not finite, or most pixels at the clamp."""
    at, path = facts.sharpest, facts.path
    stiff = at is not None and not facts.tested and at.stiffness > 2
    clamped = path.records[-1].clamped if path.records else 0.0
    if not stiff and path.broken is None and clamped <= 0.5:
        return None
    numbers: dict[str, Number] = {"not_finite_after_step": path.broken, "clamped": clamped}
    words = f"{clamped:.0%} of the pixels lie at the clamp" if clamped > 0.5 else ""
    if path.broken is not None:
        words = f"x was not finite after step {path.broken}"
    if at is not None:
        numbers |= {"largest_curvature": at.curvature.largest, "step_size": at.step_size, "a_times_L": at.stiffness,
                    "stable_below": 2 / at.curvature.largest if at.curvature.largest > 0 else None}
        if stiff:
            words += (f"{'; ' if words else ''}the step {at.step_size:.3g} is {at.stiffness / 2:.3g} times the largest "
                      f"stable one, 2/L = {2 / at.curvature.largest:.3g}, with L = {at.curvature.largest:.3g} at step "
                      f"{at.index}")
        if growth := _growth(facts):
            numbers["curvature_grew"] = growth
            words += f"; the curvature grew {growth:.3g}-fold along the path"
    return Finding(name="diverging", words=words, numbers=numbers)


def _growth(facts: Facts) -> float | None:
    """How much sharper the path became, where it began stable and did not end so."""
    here = [at for at in facts.plausible if at.on_path]
    if not here or here[0].stiffness > 2 or max(at.stiffness for at in here) <= 2 or here[0].curvature.largest <= 0:
        return None
    return max(at.curvature.largest for at in here) / here[0].curvature.largest


def noise_dominated(facts: Facts) -> Finding | None:
    """A temperature of 2 or more, by the noise itself or by a step so large that its error acts as noise.

    Noise far above drift in one step is none of it: drifts add up as the steps, noise as their root.
    """
    if facts.temperature is None or facts.tested:
        return None
    stiffness = facts.sharpest.stiffness if facts.sharpest is not None else 0.0
    effective = facts.temperature / (1 - stiffness / 2) if stiffness < 2 else facts.temperature
    if effective < 2:
        return None
    step = facts.moves[0]
    words = f"the temperature b²/(2a) is {facts.temperature:.3g} where Langevin's is 1"
    if facts.temperature < 2:
        words = f"the step is so near 2/L (a·L = {stiffness:.2f}) that its error acts as a temperature of {effective:.2g}"
    return Finding(name="noise-dominated", words=words, numbers={
        "temperature": facts.temperature, "effective_temperature": effective, "noise_size": step.noise_size,
        "step_size": step.step_size, "langevin_noise_size": math.sqrt(2 * (step.step_size or 0.0)),
        "noise_over_drift_in_one_step": step.noise_size / max(step.drift, 1e-30)})


def frozen(facts: Facts) -> Finding | None:
    """Moves that can't take x away from its start: few e-folds of relaxation in all, or refused."""
    acceptances = [record.acceptance for record in facts.moves if record.acceptance is not None]
    acceptance = sum(acceptances) / len(acceptances) if acceptances else None
    ladder, relaxation = facts.ladder, facts.relaxation
    numbers: dict[str, Number] = {"relaxations": relaxation if facts.single else ladder.possible,
                                  "needed": 0.5 if facts.single else ladder.needed, "acceptance": acceptance}
    if acceptance is not None and acceptance < 0.1:
        return Finding(name="frozen", words=f"only {acceptance:.1%} of the moves are accepted", numbers=numbers)
    if relaxation is not None and relaxation < 0.5:
        return Finding(name="frozen", numbers=numbers, words=(
            f"all steps together relax a typical direction by Σ aλ = {relaxation:.2g} e-folds: "
            f"{math.exp(-relaxation):.0%} of the start is still there"))
    if ladder.lag is not None and ladder.needed > 0.5 and ladder.possible < 0.25 * ladder.needed:
        return Finding(name="frozen", numbers=numbers, words=(
            f"the noise must shrink by {ladder.needed:.2g} e-folds down the ladder, and the steps allow Σ a/σ² = "
            f"{ladder.possible:.2g}"))
    return None


def blind(facts: Facts) -> Finding | None:
    """Guidance asked at levels where the score is not to be trusted."""
    visited = [record.sigma for record in facts.path.records]
    if not visited or not facts.calibrations:
        return None
    near = [min(facts.calibrations, key=lambda c: abs(math.log(c.sigma / sigma))) for sigma in visited]
    lost = [sigma for sigma, calibration in zip(visited, near, strict=True) if not calibration.trusted]
    share = len(lost) / len(visited)
    trusted = facts.trusted
    numbers: dict[str, Number] = {"share_of_steps": share, "trusted_from": trusted[0] if trusted else None,
                                  "trusted_to": trusted[1] if trusted else None}
    where = f"trusted from {trusted[0]:.3g} to {trusted[1]:.3g}" if trusted else "trusted nowhere"
    if share > 0.1:
        worst = max((c for c in near if not c.trusted), key=lambda c: c.sigma)
        return Finding(name="blind", numbers=numbers | {"sigma": worst.sigma, "slope": worst.slope, "gain": worst.gain}, words=(
            f"{share:.0%} of the steps ask for guidance at levels from σ = {min(lost):.3g} to {max(lost):.3g}, and the score "
            f"is {where} (at σ = {worst.sigma:.3g} its slope is {worst.slope:.2g} and it errs {1 - worst.gain:.3g} times as "
            "much as a Gaussian)"))
    start = facts.beginning
    if start is not None and start.direction < 0.5 * start.gaussian:
        return Finding(name="blind", numbers=numbers | {"start": start.sigma, "direction": start.direction}, words=(
            f"it starts at noise {start.sigma:.3g} but asks at σ = {visited[0]:.3g}: there only {start.direction:.0%} of the "
            f"score points to the images (a Gaussian's: {start.gaussian:.0%}); {where}"))
    return None


def stuck(facts: Facts) -> Finding | None:
    """A ladder whose neighbours don't overlap, with too few moves on each level to make up for it."""
    ladder = facts.ladder
    if ladder.lag is None or ladder.overlap is None or ladder.lag <= 1.5 or ladder.overlap > 0.3:
        return None
    return Finding(name="stuck between levels", numbers={"lag": ladder.lag, "overlap": ladder.overlap, "levels": ladder.levels},
                   words=(f"noise falls behind the ladder: {ladder.lag:.2g} times a level's σ is still there when the level is "
                          f"left; neighbouring levels overlap by {ladder.overlap:.2g} (0.5 is recommended)"))


def not_mixed(facts: Facts) -> Finding | None:
    """A sampler that would not reach a plain Gaussian of the data's shape, a descent, which ends at modes and samples
    nothing, or an energy that still moves at the end."""
    drift = energy_drift(facts)
    worst = max(facts.trial.off, key=abs) if not facts.descent else 0.0
    numbers: dict[str, Number] = {"worst_band": worst, "energy_drift": drift}
    said = []
    if facts.descent and facts.path.records[-1].distance > max(FAR, facts.by_chance):
        numbers["distance"] = facts.path.records[-1].distance
        said.append("without noise every image slides to a mode of the energy, which is no sample of it: the end's distance "
                    f"from the data's statistics is {facts.path.records[-1].distance:.2g} (1: a constant image's)")
    if abs(worst) > 0.35:
        said.append(f"even with a perfect score of a Gaussian as wide as the data, it ends with {math.exp(worst):.2g} times "
                    "the right standard deviation in one band of directions")
    if drift is not None:
        said.append(f"the energy still drifts, by {drift:+.3g} over the second half of the steps")
    return Finding(name="not mixed", words="; ".join(said), numbers=numbers) if said else None


def energy_drift(facts: Facts) -> float | None:
    """Change of the mean energy over the second half at one level, where it is beyond three of its stationary deviations
    √(D/2); None where it is not, or where levels change."""
    known = [record.energy for record in facts.path.records if record.energy is not None]
    if not facts.single or len(known) < 8:
        return None
    quarter = len(known) // 4
    late, before = sum(known[-quarter:]) / quarter, sum(known[-2 * quarter:-quarter]) / quarter
    change = 2 * (late - before)  # between the middles of two quarters
    return change if abs(change) > 3 * math.sqrt(facts.reference.dimensions / 2) else None


def noise_left(facts: Facts) -> Finding | None:
    """The last level's noise in the images, more than a grey level of it."""
    if not facts.path.records or facts.path.records[-1].step_size is None or facts.path.records[-1].denoising:
        return None
    left, sigma = facts.ladder.left, facts.path.records[-1].sigma
    if left <= GREY:
        return None
    return Finding(name="noise left", numbers={"noise": left, "seen": facts.path.records[-1].noise, "sigma": sigma}, words=(
        f"the last level's noise, {left:.2g} ({left / GREY:.0f} grey levels), stays in the images: no denoising step x + σ²s "
        "ends the run"))


def astray(facts: Facts) -> Finding | None:
    """A ladder that ends too high for the data's detail; or a sampler that is sound on the twin and ends far from the data
    with this model: the score is wrong where it goes. Asked only where nothing else is wrong."""
    last, descent = facts.path.records[-1], facts.single and (facts.temperature or 0.0) < 0.5
    if descent or facts.path.broken is not None or last.distance <= max(FAR, facts.by_chance):
        return None
    if facts.trial.lost > FAR:
        return Finding(name="stuck between levels", numbers={"distance": last.distance, "expected": facts.trial.lost}, words=(
            f"the last level, σ = {last.sigma:.3g}, is too high for this data: taking its noise out gives the mean of all "
            f"images that fit, at a distance of {facts.trial.lost:.2g} from the data's statistics even with a perfect score"))
    return Finding(name="blind", numbers={"distance": last.distance}, words=(
        f"with a perfect score it would end right, and with this one it ends at a distance of {last.distance:.2g} from the "
        "data's statistics (1: a constant image's): the score is wrong where the sampler goes, whatever it is worth at noised "
        "images"))


Rule = Callable[[Facts], Finding | None]
RULES: tuple[Rule, ...] = (diverging, noise_dominated, frozen, blind, stuck, not_mixed, noise_left)
EXPLAINS = {  # what the first says, the others would only repeat
    "diverging": {"noise-dominated", "not mixed", "noise left", "frozen", "stuck between levels"},
    "noise-dominated": {"not mixed", "stuck between levels", "noise left"},
    "frozen": {"not mixed", "stuck between levels", "noise left"},
    "stuck between levels": {"not mixed"},
}


def judge(facts: Facts) -> list[Finding]:
    """The findings, none that another explains; empty where the sampler is healthy."""
    found = [finding for rule in RULES if (finding := rule(facts)) is not None]
    explained: set[str] = set().union(*(EXPLAINS.get(finding.name, set()) for finding in found))
    kept = [finding for finding in found if finding.name not in explained]
    ended = astray(facts)
    return kept if any(finding.name != "noise left" for finding in kept) or ended is None else [*kept, ended]
