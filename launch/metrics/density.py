"""Bits per dimension in one forward pass, for energies whose slope in σ was trained, and the error of that slope."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ebm.accepted import whole
from ebm.data import Dataset
from ebm.data.quantum import dequantised
from ebm.energy import Energy
from ebm.evaluate.density import Normalised, anchors, energies, entropy, gaps, spectrum
from ebm.evaluate.likelihood import bits_per_dim
from ebm.randomness import generator
from ebm.schedule import LogUniform, NoiseSchedule
from launch.config.build import build
from launch.drawing.batches import Rows
from launch.metrics.evaluation import Figures, Work
from launch.metrics.likelihood import DEQUANTISED, choose_images, select_set


@dataclass(frozen=True, kw_only=True)
class Density:
    """Negative log-density of ``images`` of a ``set`` by the normalised energy; see configs/metric/density.yaml."""

    set: str
    images: int
    anchors: int
    batch: int
    levels: int
    sigma_min: float
    sigma_max: float

    of_samples: ClassVar[bool] = False

    def __post_init__(self) -> None:
        LogUniform(sigma_min=self.sigma_min, sigma_max=self.sigma_max)  # checks the range

    def check(self, work: Work) -> None:
        """Raises ValueError for an energy known only up to a function of σ, levels outside the training range, missing images
        and unusable numbers."""
        objective = str(work.run_config.objective._target_).rsplit(".", 1)[-1]
        if objective != "DualScoreMatching" or not isinstance(work.pipeline.model, Energy):
            raise ValueError(f"metric.density: a run trained by {objective} is not accepted; its energy is known only up to a "
                             "function of σ: train one with objective=dual")
        whole(1, batch=self.batch, levels=self.levels)
        choose_images(select_set(self.set, work), self.images, seed=work.pipeline.seed)
        if not 2 <= self.anchors <= work.train.count:
            raise ValueError(f"anchors: {self.anchors} is not accepted; it must be 2 to {work.train.count}")
        schedule: NoiseSchedule = build(work.run_config.schedule, key="schedule")
        low, high = schedule.sigma(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        for key, sigma in (("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)):
            if not low / 1.001 <= sigma <= high * 1.001:
                raise ValueError(f"{key}: {sigma} is not accepted; the run was trained at σ from {low:.3g} to {high:.3g}")

    def __call__(self, work: Work) -> Figures | None:
        """The figures, on rank 0; all processes share the work."""
        data, pipeline, seed = select_set(self.set, work), work.pipeline, work.pipeline.seed
        model, indices = pipeline.model, choose_images(data, self.images, seed=seed)
        assert isinstance(model, Energy)

        def measured(part: range) -> Rows:
            numbers = indices[part.start:part.stop]
            x = dequantised(data.images(torch.tensor(numbers), device=pipeline.device), seed=seed, indices=numbers)
            return {"energy": energies(model, x, sigma=self.sigma_min)}

        rows = work.compute_rows(f"density {data.manifest.sha256} {self}", len(indices), self.batch, measured)
        normalised = self.fit_constant(work, model)
        return self.make_figures(work, data, indices, rows, normalised) if work.world.is_main else None

    def fit_constant(self, work: Work, model: Energy) -> Normalised:
        """The normalising constant and the error of the slope, from training images."""
        seed, device = work.pipeline.seed, work.pipeline.device
        indices = choose_images(work.train, self.anchors, seed=seed)

        def anchored(part: range) -> Rows:
            numbers = indices[part.start:part.stop]
            x = dequantised(work.train.images(torch.tensor(numbers), device=device), seed=seed, indices=numbers)
            generators = [generator(device, seed, "density", i) for i in numbers]
            return {"anchors": anchors(model, x, sigma=self.sigma_max, generators=generators),
                    "gaps": gaps(model, x, sigma_min=self.sigma_min, sigma_max=self.sigma_max, levels=self.levels,
                                 generators=generators)}

        rows = work.compute_rows(f"anchors {work.train.manifest.sha256} {self}", len(indices), self.batch, anchored)
        x = work.train.images(torch.tensor(indices), device="cpu").flatten(1).double().numpy()
        return Normalised.fit(anchors=rows["anchors"], gaps=rows["gaps"], sigma_min=self.sigma_min, sigma_max=self.sigma_max,
                              entropy=entropy(spectrum(x), d=x.shape[1], sigma=self.sigma_max))

    def make_figures(self, work: Work, data: Dataset, indices: list[int], rows: Rows, fit: Normalised) -> Figures:
        """The figures: bits per dimension without and with the correction for the error of the slope."""
        d = math.prod(work.pipeline.shape)
        per_dim, nll = d * math.log(2), rows["energy"] + fit.constant
        bits = bits_per_dim(nll, d=d)
        error = float(bits.std(ddof=1)) / len(bits) ** 0.5
        values = {"bits_per_dim": float(bits.mean()), "bits_per_dim_stderr": math.hypot(error, fit.constant_stderr / per_dim),
                  "bits_per_dim_corrected": float(bits.mean()) + fit.gap / per_dim,
                  "bits_per_dim_corrected_stderr": math.hypot(error, fit.constant_stderr / per_dim, fit.gap_stderr / per_dim),
                  "slope_gap": fit.gap / per_dim, "slope_gap_stderr": fit.gap_stderr / per_dim,
                  "nll": float(nll.mean()), "nll_stderr": error * per_dim, "nfe": 1.0}
        edges = np.linspace(math.log(self.sigma_min), math.log(self.sigma_max), self.levels + 1)
        return Figures(values=values, measure=self.measure(work, data), details={
            "images": indices, "nll": nll.round(3).tolist(), "constant": fit.constant, "levels": np.exp((edges[1:] + edges[:-1])
            / 2).tolist(), "slope_gap_per_e_fold": (fit.by_level / per_dim).tolist(),
            "slope_gap_per_e_fold_stderr": (fit.by_level_stderr / per_dim).tolist()})

    def measure(self, work: Work, data: Dataset) -> dict[str, Any]:
        """The protocol."""
        return {"set": self.set, "sha256": data.manifest.sha256, "count": self.images, "seed": work.pipeline.seed,
                "dequantisation": DEQUANTISED, "sigma_min": self.sigma_min, "estimator": "normalised energy",
                "sigma_max": self.sigma_max, "anchors": self.anchors, "levels": self.levels,
                "train": work.train.manifest.sha256, "precision": "fp32"}
