"""Acceptance at each noise level and the gain of the Metropolis test over unadjusted moves of the same cost."""
from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ebm.accepted import positive, whole
from ebm.data import to_float, to_uint8
from ebm.diagnose.reference import Reference
from ebm.evaluate.acceptance import gains, run_to_end
from ebm.evaluate.power import Passes
from ebm.model import with_energy
from ebm.randomness import generator
from ebm.samplers.annealed import annealed_langevin
from ebm.samplers.metropolis import metropolis_annealed
from ebm.sampling import Sampler, trajectory
from ebm.schedule import NoiseSchedule, Single
from launch.drawing.batches import Rows
from launch.metrics.chart import charting, png
from launch.metrics.evaluation import Figures, Work

TOLD = {
    "equal nfe": "the unadjusted sampler reads as many scores: it makes one move more at each level",
    "equal cost": "it takes as many passes, forward and backward: a tested move costs one forward pass more, its energy's",
}


@dataclass(frozen=True, kw_only=True)
class Metropolis:
    """Draws ``count`` images with and without the test, from the same noise, at each of ``step_scales``, and compares their
    distances to the data; see configs/metric/metropolis.yaml."""

    count: int
    grid: NoiseSchedule
    steps: int
    steps_per_level: int
    step_scales: list[float]
    denoise: bool
    real: int
    components: int
    groups: int

    of_samples: ClassVar[bool] = False

    def check(self, work: Work) -> None:
        """Raises ValueError for a model without an energy and for unusable settings."""
        whole(1, steps=self.steps, steps_per_level=self.steps_per_level, components=self.components)
        whole(8, count=self.count, real=self.real)
        if not self.step_scales or len({*self.step_scales}) < len(self.step_scales):
            raise ValueError(f"step_scales: {self.step_scales} is not accepted; it must be a list of distinct numbers")
        for scale in self.step_scales:
            positive(step_scales=scale)
        if not 2 <= self.groups <= self.count:
            raise ValueError(f"groups: {self.groups} is not accepted; it must be 2 to count={self.count}")
        with_energy(work.pipeline.model, what="metrics=[metropolis]")
        charting()

    def __call__(self, work: Work) -> Figures | None:
        """The figures, on rank 0; all processes share the work."""
        samplers, moves = self.samplers(work)
        rows = {(name, scale): self.draw(work, f"{name} {moves[name]} {scale}", sampler)
                for (name, scale), sampler in samplers.items()}
        if not work.world.is_main:
            return None
        levels = self.grid.sigmas(self.steps).tolist()
        sigma = 0.0 if self.denoise else levels[-1]
        data = choose_images(work.train, self.real, "reference", work.pipeline.seed)
        reference = Reference.fit(data, components=self.components)
        values: dict[str, float] = {}
        details: dict[str, Any] = {"moves per level": moves, "equal": TOLD, "levels": levels, "acceptance": {}, "passes": {},
                                   "not_finite": {}}
        if work.held_out is not None:
            real = choose_images(work.held_out, self.count, "real", work.pipeline.seed)
            values["real"] = reference.distance(real, sigma=0)
        for scale in self.step_scales:
            found = {name: rows[name, scale] for name in moves}
            images = {name: to_float(torch.from_numpy(row["images"])) for name, row in found.items()}
            accepted = found["metropolis"]["acceptance"].mean(1)
            values |= {f"acceptance_{scale:g}": float(accepted.mean()),
                       f"acceptance_{scale:g}_stderr": float(accepted.std(ddof=1) / len(accepted) ** 0.5)}
            estimates = gains(reference, images.pop("metropolis"), images, sigma=sigma, groups=self.groups)
            for name, one in estimates.items():
                key = f"{name.replace('adjusted', 'metropolis').replace(' ', '_')}_{scale:g}"
                values |= {key: one.value, f"{key}_stderr": one.stderr}
            details["acceptance"][f"{scale:g}"] = found["metropolis"]["acceptance"].mean(0).tolist()
            details["not_finite"][f"{scale:g}"] = {name: float(1 - row["finite"].mean()) for name, row in found.items()}
            details["passes"][f"{scale:g}"] = {name: row["passes"][0].tolist() for name, row in found.items()}
        return Figures(values=values, measure=self.measure(work), details=details,
                       pictures={"acceptance": self.plot(values, details)})

    def samplers(self, work: Work) -> tuple[dict[tuple[str, float], Sampler], dict[str, int]]:
        """The samplers by name and step scale, and the number of moves that each makes at a level."""
        with Passes.counted(work.pipeline.model.network) as passes:  # one image, one level
            top = Single(level=float(self.grid.sigmas(self.steps)[0]))
            tested = partial(metropolis_annealed, steps=1, steps_per_level=self.steps_per_level, grid=top, denoise=False)
            self.walk(work, partial(tested, step_scale=self.step_scales[0]), range(1))
        # an unadjusted move costs one pass forward and one backward
        moves = {"metropolis": self.steps_per_level, "equal nfe": max(1, passes.backward),
                 "equal cost": max(1, round((passes.forward + passes.backward) / 2))}
        samplers: dict[tuple[str, float], Sampler] = {
            (name, scale): partial(metropolis_annealed if name == "metropolis" else annealed_langevin, grid=self.grid,
                                   steps=self.steps, steps_per_level=count, step_scale=scale, denoise=self.denoise)
            for name, count in moves.items() for scale in self.step_scales}
        return samplers, moves

    def walk(self, work: Work, sampler: Sampler, part: range) -> Rows:
        """The final images of these numbers, uint8, their acceptance (b, levels) and whether they are finite, (b,)."""
        pipeline = work.pipeline
        with pipeline.precision.autocast(pipeline.device):
            end = run_to_end(trajectory(pipeline.model, sampler, shape=pipeline.shape, indices=part, seed=pipeline.seed,
                                    device=pipeline.device))
        finite = end.x.isfinite().flatten(1).all(1)
        return {"images": to_uint8(end.x.nan_to_num(0)).cpu().numpy(), "acceptance": end.acceptance.cpu().numpy(),
                "finite": finite.cpu().numpy()}

    def draw(self, work: Work, name: str, sampler: Sampler) -> Rows:
        """All images of one sampler."""
        def compute(part: range) -> Rows:
            with Passes.counted(work.pipeline.model.network) as passes:
                rows = self.walk(work, sampler, part)
            counts = np.array([[passes.forward, passes.backward]])
            return rows | {"passes": counts.repeat(len(part), 0)}

        return work.compute_rows(f"metropolis {name} {self}", self.count, work.batch, compute)

    def measure(self, work: Work) -> dict[str, Any]:
        """The protocol."""
        return {"count": self.count, "grid": f"{self.grid}", "steps": self.steps, "steps_per_level": self.steps_per_level,
                "step_scales": list(self.step_scales), "denoise": self.denoise, "seed": work.pipeline.seed,
                "groups": self.groups, "distance": "of the principal components' Gaussians",
                "real": min(self.real, work.train.count), "components": self.components,
                "train": work.train.manifest.sha256, "held_out": work.held_out.manifest.sha256 if work.held_out else None}

    def plot(self, values: dict[str, float], details: dict[str, Any]) -> bytes:
        """Acceptance by noise level, and the distances by step scale."""
        figure = charting()(figsize=(11, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for scale, accepted in details["acceptance"].items():
            left.plot(details["levels"], accepted, marker=".", label=f"a = {scale} σ²")
        left.set(xscale="log", ylim=(-0.03, 1.03), xlabel="noise level σ", ylabel="acceptance", title="Accepted moves")
        for name, label in {"metropolis": "Metropolis", "equal_nfe": "unadjusted, equal NFE",
                            "equal_cost": "unadjusted, equal cost"}.items():
            keys = [f"{name}_{scale:g}" for scale in self.step_scales]
            right.errorbar(self.step_scales, [values[key] for key in keys], [2 * values[f"{key}_stderr"] for key in keys],
                           marker="o", capsize=3, label=label)
        if "real" in values:
            right.axhline(values["real"], color="grey", ls="--", label="real images")
        right.set(xscale="log", xlabel="step size over σ²", ylabel="distance from the data", title="Where they end")
        for axes in (left, right):
            axes.legend(fontsize=8)
        return png(figure)


def choose_images(data: Any, count: int, name: str, seed: int) -> Tensor:
    """At most ``count`` images of a data set, drawn by (seed, name), (n, C, H, W) on the CPU."""
    order = torch.randperm(data.count, generator=generator("cpu", seed, name))
    images: Tensor = data.images(order[:count].sort().values, device="cpu")
    return images
