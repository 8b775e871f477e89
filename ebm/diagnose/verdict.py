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
    words = f"{clamped:.0%} of the pixels are at the clamp" if clamped > 0.5 else ""
    if path.broken is not None:
        words = f"x was no longer finite after step {path.broken}"
    if at is not None:
        numbers |= {"largest_curvature": at.curvature.largest, "step_size": at.step_size, "a_times_L": at.stiffness,
                    "stable_below": 2 / at.curvature.largest if at.curvature.largest > 0 else None}
        if stiff:
            words += (f"{'; ' if words else ''}the step size {at.step_size:.3g} is {at.stiffness / 2:.3g} times the stability "
                      f"limit 2/L = {2 / at.curvature.largest:.3g}, with curvature L = {at.curvature.largest:.3g} at step "
                      f"{at.index}")
        if growth := _growth(facts):
            numbers["curvature_grew"] = growth
            words += f"; the curvature grew by a factor of {growth:.3g} along the path"
    return Finding(name="diverging", words=words, numbers=numbers)


def _growth(facts: Facts) -> float | None:
    """The factor by which the curvature grew along a path that began stable and became unstable; None for other paths."""
    on_path = [at for at in facts.plausible if at.on_path]
    if not on_path or on_path[0].stiffness > 2 or max(at.stiffness for at in on_path) <= 2 or on_path[0].curvature.largest <= 0:
        return None
    return max(at.curvature.largest for at in on_path) / on_path[0].curvature.largest


def noise_dominated(facts: Facts) -> Finding | None:
    """A temperature of 2 or more, due to the noise itself or to a step so large that its error acts as noise.

    Noise far above the drift in a single step proves nothing: drift adds up in proportion to the steps, noise to their root.
    """
    if facts.temperature is None or facts.tested:
        return None
    stiffness = facts.sharpest.stiffness if facts.sharpest is not None else 0.0
    effective = facts.temperature / (1 - stiffness / 2) if stiffness < 2 else facts.temperature
    if effective < 2:
        return None
    step = facts.moves[0]
    words = f"the temperature b²/(2a) is {facts.temperature:.3g} instead of Langevin's 1"
    if facts.temperature < 2:
        words = f"the step is so close to 2/L (a·L = {stiffness:.2f}) that its error raises the temperature to {effective:.2g}"
    return Finding(name="noise-dominated", words=words, numbers={
        "temperature": facts.temperature, "effective_temperature": effective, "noise_size": step.noise_size,
        "step_size": step.step_size, "langevin_noise_size": math.sqrt(2 * (step.step_size or 0.0)),
        "noise_over_drift_in_one_step": step.noise_size / max(step.drift, 1e-30)})


def frozen(facts: Facts) -> Finding | None:
    """Moves that can't carry x away from its start: too few e-folds of relaxation in all, or nearly every move rejected."""
    acceptances = [record.acceptance for record in facts.moves if record.acceptance is not None]
    acceptance = sum(acceptances) / len(acceptances) if acceptances else None
    ladder, relaxation = facts.ladder, facts.relaxation
    numbers: dict[str, Number] = {"relaxations": relaxation if facts.single else ladder.possible,
                                  "needed": 0.5 if facts.single else ladder.needed, "acceptance": acceptance}
    if acceptance is not None and acceptance < 0.1:
        return Finding(name="frozen", words=f"only {acceptance:.1%} of the moves are accepted", numbers=numbers)
    if relaxation is not None and relaxation < 0.5:
        return Finding(name="frozen", numbers=numbers, words=(
            f"all steps together relax a typical direction by only Σ aλ = {relaxation:.2g} e-folds: "
            f"{math.exp(-relaxation):.0%} of the start remains"))
    if ladder.lag is not None and ladder.needed > 0.5 and ladder.possible < 0.25 * ladder.needed:
        return Finding(name="frozen", numbers=numbers, words=(
            f"the noise must shrink by {ladder.needed:.2g} e-folds down the ladder, but the steps allow only Σ a/σ² = "
            f"{ladder.possible:.2g}"))
    return None


def blind(facts: Facts) -> Finding | None:
    """A score evaluated at levels where it can't be trusted."""
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
            f"{share:.0%} of the steps rely on the score at levels from σ = {min(lost):.3g} to {max(lost):.3g}, but it is "
            f"{where} (at σ = {worst.sigma:.3g} its slope is {worst.slope:.2g} and its error {1 - worst.gain:.3g} times a "
            "Gaussian's)"))
    start = facts.beginning
    if start is not None and start.direction < 0.5 * start.gaussian:
        return Finding(name="blind", numbers=numbers | {"start": start.sigma, "direction": start.direction}, words=(
            f"it starts from noise {start.sigma:.3g} but evaluates the score at σ = {visited[0]:.3g}, where only "
            f"{start.direction:.0%} of it points towards the images (a Gaussian's: {start.gaussian:.0%}); it is {where}"))
    return None


def stuck(facts: Facts) -> Finding | None:
    """A ladder whose neighbours don't overlap, with too few moves on each level to make up for it."""
    ladder = facts.ladder
    if ladder.lag is None or ladder.overlap is None or ladder.lag <= 1.5 or ladder.overlap > 0.3:
        return None
    return Finding(name="stuck between levels", numbers={"lag": ladder.lag, "overlap": ladder.overlap, "levels": ladder.levels},
                   words=(f"the noise lags behind the ladder: x still carries {ladder.lag:.2g} times a level's σ when it moves "
                          f"on, and neighbouring levels overlap by only {ladder.overlap:.2g} (0.5 is recommended)"))


def not_mixed(facts: Facts) -> Finding | None:
    """A sampler that fails even on a Gaussian of the data's shape, a descent, which ends at modes instead of sampling, or an
    energy that is still drifting at the end."""
    drift = energy_drift(facts)
    worst = max(facts.trial.off, key=abs) if not facts.descent else 0.0
    numbers: dict[str, Number] = {"worst_band": worst, "energy_drift": drift}
    reasons = []
    if facts.descent and facts.path.records[-1].distance > max(FAR, facts.by_chance):
        numbers["distance"] = facts.path.records[-1].distance
        reasons.append("without noise every image slides into a mode of the energy, which is not a sample from it: the "
                       f"result's distance from the data's statistics is {facts.path.records[-1].distance:.2g} (a constant "
                       "image's: 1)")
    if abs(worst) > 0.35:
        reasons.append(f"even with the exact score of a Gaussian as wide as the data, it ends with {math.exp(worst):.2g} times "
                       "the correct standard deviation in one band of directions")
    if drift is not None:
        reasons.append(f"the energy is still drifting, by {drift:+.3g} over the second half of the steps")
    return Finding(name="not mixed", words="; ".join(reasons), numbers=numbers) if reasons else None


def energy_drift(facts: Facts) -> float | None:
    """Change of the mean energy over the second half of the steps, where it exceeds three stationary standard deviations
    √(D/2); None where it does not, or where the level changes."""
    known = [record.energy for record in facts.path.records if record.energy is not None]
    if not facts.single or len(known) < 8:
        return None
    quarter = len(known) // 4
    late, before = sum(known[-quarter:]) / quarter, sum(known[-2 * quarter:-quarter]) / quarter
    change = 2 * (late - before)  # between the middles of two quarters
    return change if abs(change) > 3 * math.sqrt(facts.reference.dimensions / 2) else None


def noise_left(facts: Facts) -> Finding | None:
    """More than a grey level of the last level's noise left in the images."""
    if not facts.path.records or facts.path.records[-1].step_size is None or facts.path.records[-1].denoising:
        return None
    left, sigma = facts.ladder.left, facts.path.records[-1].sigma
    if left <= GREY:
        return None
    return Finding(name="noise left", numbers={"noise": left, "seen": facts.path.records[-1].noise, "sigma": sigma}, words=(
        f"the last level's noise, {left:.2g} ({left / GREY:.3g} grey levels), stays in the images: the run does not end with a "
        "denoising step x + σ²s"))


def astray(facts: Facts) -> Finding | None:
    """A ladder that ends too high for the data's detail; or a sampler that is sound on the twin but ends far from the data
    with this model, whose score is wrong where it goes. Only meaningful where nothing else is wrong."""
    last, descent = facts.path.records[-1], facts.single and (facts.temperature or 0.0) < 0.5
    if descent or facts.path.broken is not None or last.distance <= max(FAR, facts.by_chance):
        return None
    if facts.trial.lost > FAR:
        return Finding(name="stuck between levels", numbers={"distance": last.distance, "expected": facts.trial.lost}, words=(
            f"the last level, σ = {last.sigma:.3g}, is too high for this data: even with an exact score, denoising from there "
            f"averages over all images that fit and ends at a distance of {facts.trial.lost:.2g} from the data's statistics"))
    return Finding(name="blind", numbers={"distance": last.distance}, words=(
        f"with an exact score it would sample correctly, but with this one it ends at a distance of {last.distance:.2g} from "
        "the data's statistics (a constant image's: 1): the score is wrong where the sampler goes, however good it is on "
        "noised images"))


Rule = Callable[[Facts], Finding | None]
RULES: tuple[Rule, ...] = (diverging, noise_dominated, frozen, blind, stuck, not_mixed, noise_left)
EXPLAINS = {  # once the first is known, the others add nothing
    "diverging": {"noise-dominated", "not mixed", "noise left", "frozen", "stuck between levels"},
    "noise-dominated": {"not mixed", "stuck between levels", "noise left"},
    "frozen": {"not mixed", "stuck between levels", "noise left"},
    "stuck between levels": {"not mixed"},
}


def judge(facts: Facts) -> list[Finding]:
    """The findings, except those that another explains; empty where the sampler is healthy."""
    findings = [finding for rule in RULES if (finding := rule(facts)) is not None]
    explained: set[str] = set().union(*(EXPLAINS.get(finding.name, set()) for finding in findings))
    causes = [finding for finding in findings if finding.name not in explained]
    stray = astray(facts)
    return causes if any(finding.name != "noise left" for finding in causes) or stray is None else [*causes, stray]
