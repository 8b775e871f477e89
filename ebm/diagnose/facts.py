"""What was measured, as the rules of the verdict read it."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from ebm.diagnose.calibration import Calibration, trusted_range
from ebm.diagnose.curvature import Curvature
from ebm.diagnose.ladder import Ladder
from ebm.diagnose.record import Path, StepRecord, langevin_moves
from ebm.diagnose.reference import Reference
from ebm.diagnose.trial import Bound, Trial

Number = float | int | None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault in words, with the numbers that show it."""

    name: str
    words: str
    numbers: Mapping[str, Number]


@dataclass(frozen=True, kw_only=True)
class CurvatureAt:
    """A curvature, and the step size that the sampler used there."""

    index: int
    curvature: Curvature
    step_size: float | None
    on_path: bool  # else at held-out images noised to the same level

    @property
    def stiffness(self) -> float:
        """a·L, stable below 2; 0 where the sampler has no step size."""
        return 0.0 if self.step_size is None else self.step_size * self.curvature.largest


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that was measured, and what follows from it."""

    sampler: Bound
    reference: Reference
    by_chance: float  # distance from the data's statistics that as many real images reach by chance alone
    calibrations: tuple[Calibration, ...]
    beginning: Calibration | None  # on images with the start's noise, of the score at the sampler's only level
    path: Path
    ladder: Ladder
    curvatures: tuple[CurvatureAt, ...]
    trial: Trial

    @property
    def moves(self) -> list[StepRecord]:
        """The moves of Langevin and its relatives, without the final denoising step."""
        return langevin_moves(self.path.records)

    @property
    def single(self) -> bool:
        """Whether all moves are Langevin moves at a single level."""
        return self.ladder.levels == 1 and bool(self.moves)

    @property
    def descent(self) -> bool:
        """Whether the sampler descends at one level with hardly any noise: then it has no target distribution."""
        return self.single and (self.temperature or 0.0) < 0.1

    @property
    def ahead(self) -> tuple[CurvatureAt, ...]:
        """Curvatures that a repaired sampler will encounter: at noised images, and on the stable part of the path."""
        return tuple(at for at in self.plausible if not at.on_path or at.stiffness < 2)

    @property
    def tested(self) -> bool:
        """Whether moves undergo a Metropolis test, which corrects for large steps by rejecting them."""
        return any(record.acceptance is not None for record in self.moves)

    @property
    def sharpest(self) -> CurvatureAt | None:
        """The curvature at which a·L is greatest."""
        return max(self.plausible, key=lambda at: at.stiffness, default=None)

    @property
    def plausible(self) -> tuple[CurvatureAt, ...]:
        """Curvatures measured where images can lie, not where a state has already exploded."""
        start = float(self.path.start.square().mean())
        rms = {record.index: record.rms for record in self.path.records}
        return tuple(at for at in self.curvatures if not at.on_path or rms[at.index] ** 2
                     <= 9 * max(start, self.reference.scatter + at.curvature.sigma**2)) or self.curvatures

    @property
    def temperature(self) -> float | None:
        """The median of b²/(2a) over the moves."""
        return median(record.temperature or 0.0 for record in self.moves) if self.moves else None

    @property
    def relaxation(self) -> float | None:
        """Σ a·λ at a single level, λ the mean curvature trace/D: the e-folds by which a typical direction forgets its start."""
        if not self.single:
            return None
        means = [[at.curvature.mean for at in self.curvatures if at.on_path is on_path] for on_path in (True, False)]
        typical = max((median(values) for values in means if values), default=0.0)  # the benefit of the doubt
        return max(0.0, typical) * sum(record.step_size or 0.0 for record in self.moves)

    @property
    def trusted(self) -> tuple[float, float] | None:
        """The range of σ in which the score can be trusted."""
        return trusted_range(self.calibrations)
