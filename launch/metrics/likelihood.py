"""Bits per dimension by the probability-flow ODE, with standard errors."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ebm.accepted import whole
from ebm.data import Dataset
from ebm.data.quantum import dequantised
from ebm.evaluate.density import spectrum
from ebm.evaluate.likelihood import Array, Flow, bits_per_dim, import_solver, prior_error, rademacher
from ebm.randomness import generator
from launch.drawing.batches import Rows
from launch.metrics.evaluation import Figures, Work

DEQUANTISED = "uniform noise of one quantum, by image"
LAW = 1000  # maximum number of training images for the error of the prior


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Negative log-likelihood of ``images`` of a ``set``; see configs/metric/likelihood.yaml."""

    set: str
    images: int
    batch: int
    probes: int | None
    tolerance: float
    sigma_min: float
    sigma_max: float

    of_samples: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.flow()

    def flow(self) -> Flow:
        """The ODE; raises ValueError for unusable numbers."""
        return Flow(sigma_min=self.sigma_min, sigma_max=self.sigma_max, tolerance=self.tolerance)

    def check(self, work: Work) -> None:
        """Raises ValueError for missing images, unusable numbers, and without SciPy."""
        whole(1, batch=self.batch, **({} if self.probes is None else {"probes": self.probes}))
        choose_images(select_set(self.set, work), self.images, seed=work.pipeline.seed)
        import_solver()

    def __call__(self, work: Work) -> Figures | None:
        """The figures, on rank 0; all processes share the work."""
        data, pipeline = select_set(self.set, work), work.pipeline
        indices = choose_images(data, self.images, seed=pipeline.seed)

        def compute(part: range) -> Rows:
            numbers = indices[part.start:part.stop]
            x = dequantised(data.images(torch.tensor(numbers), device=pipeline.device), seed=pipeline.seed, indices=numbers)
            signs = None if self.probes is None else rademacher(x, probes=self.probes, seed=pipeline.seed, indices=numbers)
            nll, nfe = self.flow().nll(pipeline.model, x, sigma_data=pipeline.model.sigma_data, probes=signs)
            return {"nll": nll, "nfe": np.full(len(part), nfe)}

        rows = work.compute_rows(f"likelihood {data.manifest.sha256} {self}", len(indices), self.batch, compute)
        if not work.world.is_main:
            return None
        d = int(np.prod(pipeline.shape))
        values = summary(rows["nll"], d=d) | {"nfe": float(rows["nfe"].mean())}
        return Figures(values=values, measure=self.measure(work, data), details={
            "images": indices, "nll": rows["nll"].mean(1).round(3).tolist(), "nfe": sorted({*rows["nfe"].tolist()}),
            "prior": "N(0, sigma_max² + sigma_data²)", "prior_error_bits_per_dim": self.prior_error(work) / (d * np.log(2))})

    def prior_error(self, work: Work) -> float:
        """The error of the prior in nats, for the Gaussian of the training images."""
        some = choose_images(work.train, min(LAW, work.train.count), seed=work.pipeline.seed)
        x = work.train.images(torch.tensor(some), device="cpu").flatten(1).double().numpy()
        return prior_error(x.mean(0), spectrum(x), sigma_max=self.sigma_max, sigma_data=work.pipeline.model.sigma_data)

    def measure(self, work: Work, data: Dataset) -> dict[str, Any]:
        """The protocol."""
        return {"set": self.set, "sha256": data.manifest.sha256, "count": self.images, "seed": work.pipeline.seed,
                "dequantisation": DEQUANTISED, "sigma_min": self.sigma_min, "estimator": "probability-flow ODE",
                "sigma_max": self.sigma_max, "solver": "RK45 of SciPy, in ln σ", "tolerance": self.tolerance,
                "batch": self.batch, "precision": "fp32",
                "trace": "exact" if self.probes is None else f"Hutchinson, {self.probes} Rademacher probes"}


def summary(nll: Array, *, d: int) -> dict[str, float]:
    """Means over n ≥ 2 images of negative log-likelihoods (n, K) in nats, with standard errors and, for K > 1 probes, the part
    of the error due to the probes."""
    mean, bits, per_dim = nll.mean(1), bits_per_dim(nll.mean(1), d=d), d * np.log(2)
    values = {"bits_per_dim": bits.mean(), "bits_per_dim_stderr": bits.std(ddof=1) / len(bits) ** 0.5,
              "nll": mean.mean(), "nll_stderr": mean.std(ddof=1) / len(mean) ** 0.5}
    if nll.shape[1] > 1:
        values["bits_per_dim_probes_stderr"] = (nll.var(1, ddof=1).mean() / nll.size) ** 0.5 / per_dim
    return {name: float(value) for name, value in values.items()}


def select_set(name: str, work: Work) -> Dataset:
    """The run's training or held-out images; raises ValueError where there are none."""
    sets = {"train": work.train, "held_out": work.held_out}
    if name not in sets:
        raise ValueError(f"set: {name!r} is not accepted; choose held_out or train")
    data = sets[name]
    if data is None:
        raise ValueError("set: 'held_out' is not accepted; the run has none, held_out=<file> gives some")
    return data


def choose_images(data: Dataset, count: int, *, seed: int) -> list[int]:
    """The indices of ``count`` images drawn by the seed, a prefix of those for a larger count; raises ValueError for fewer
    than 2, which a standard error needs, and for more than there are."""
    if not 2 <= count <= data.count:
        raise ValueError(f"images: {count} is not accepted; it must be 2 to {data.count}, the number of images")
    order = torch.randperm(data.count, generator=generator("cpu", seed, "likelihood"))
    return [int(i) for i in order[:count]]
