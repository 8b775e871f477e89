"""Out-of-distribution detection: how well energies and score norms separate other images from held-out ones."""
from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ebm.accepted import whole
from ebm.data import Dataset, to_float
from ebm.evaluate.outlier_sets import MADE, STANDARD, load_standard, read_set
from ebm.evaluate.outliers import Array, Typical, auroc, auroc_stderr, fpr95, readings
from ebm.model import has_energy
from ebm.randomness import generator
from ebm.schedule import LogUniform, NoiseSchedule
from launch.config.build import build, naming
from launch.drawing.batches import Rows
from launch.metrics.chart import charting, png
from launch.metrics.evaluation import Figures, Work

SCORES = {"energy": "energies", "typicality": "energies", "score_norms": "norms"}  # the readings that each is computed from
LEARNT, REAL = "train", "held_out"
PITFALLS = (
    "A likelihood is high where images are simple: constant ones and SVHN get more than CIFAR-10's own from models trained on "
    "those (Nalisnick et al. 2019, arXiv 1810.09136; Serrà et al. 2020, arXiv 1909.11480), so that `energy` may lie far below "
    "0.5, and is never turned round. CIFAR-100 shares kinds of images with CIFAR-10. JPEG, resizing and quantisation leave "
    "traces that tell sets apart without their content. A model that has learnt its training images by heart reads held-out "
    "ones as outliers; `held_out against train` says how much.")


@dataclass(frozen=True, kw_only=True)
class Outliers:
    """AUROC and FPR95 of each of ``scores`` on each set of outliers; see configs/metric/outliers.yaml."""

    scores: list[str]
    sigma_min: float
    sigma_max: float
    levels: int
    count: int
    calibration: int
    batch: int
    made: list[str]
    standard: list[str]
    data_root: str
    sets: dict[str, str]
    seed: int

    of_samples: ClassVar[bool] = False

    @property
    def sigmas(self) -> list[float]:
        """The levels, from the smallest."""
        grid = LogUniform(sigma_min=self.sigma_min, sigma_max=self.sigma_max).sigmas(self.levels)
        return list(reversed(grid.tolist())) if self.levels > 1 else [self.sigma_min]

    def check(self, work: Work) -> None:
        """Raises ValueError or FileNotFoundError for unknown names, unusable numbers and missing sets."""
        for key, accepted in (("scores", SCORES), ("made", MADE), ("standard", STANDARD)):
            wrong = [name for name in getattr(self, key) if name not in accepted]
            if wrong:
                raise ValueError(f"{key}: {wrong[0]!r} is not accepted; choose from {', '.join(accepted)}")
        whole(1, levels=self.levels, batch=self.batch)
        whole(8, count=self.count, calibration=self.calibration)
        _ = self.sigmas  # checks the range
        if work.held_out is None:
            raise ValueError("metric.outliers: the run has no held-out images; held_out=<a .beton of them> gives some")
        if not self.scores_of(work):
            raise ValueError(f"scores: {self.scores} is not accepted; for a direct score choose score_norms")
        for name, path in self.sets.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in {*MADE, *STANDARD, LEARNT, REAL}:
                raise ValueError(f"sets: {name!r} is not accepted; it must be of a-z, 0-9 and _, and not in use")
            with naming(f"sets.{name}: ", OSError):
                read_set(path, count=1, shape=work.pipeline.shape, seed=self.seed)
        if not (self.made or self.sets or any(self.is_available(name, work) for name in self.standard)):
            raise ValueError("made: [] is not accepted; there must be a set in made or sets, or one of standard in "
                             f"{self.data_root}")
        charting()

    def is_available(self, name: str, work: Work) -> bool:
        """Whether a standard set is on disk."""
        try:
            load_standard(name, self.data_root, count=1, shape=work.pipeline.shape, seed=self.seed)
        except FileNotFoundError:
            return False
        return True

    def __call__(self, work: Work) -> Figures | None:
        """The figures, on rank 0; all processes share the work."""
        images, skipped = self.images(work)
        there = work.world.all_gather([*images])  # a folder may be on one node alone
        images = {name: pixels for name, pixels in images.items() if all(name in names for names in there)}
        rows = {name: self.compute_readings(work, name, pixels) for name, pixels in images.items()}
        if not work.world.is_main:
            return None
        learnt = {kind: Typical.fit(array) for kind, array in rows[LEARNT].items()}
        scored = {name: {score: self.score(score, row, learnt) for score in self.scores_of(work)} for name, row in rows.items()}
        inliers, values = scored[REAL], dict[str, float]()
        others = [name for name in images if name not in (LEARNT, REAL)]
        for score in inliers:
            for name in others:
                pair = inliers[score], scored[name][score]
                values |= {f"auroc_{score}_{name}": auroc(*pair), f"auroc_{score}_{name}_stderr": auroc_stderr(*pair),
                           f"fpr95_{score}_{name}": fpr95(*pair)}
        profiles = {name: {kind: learnt[kind].standard(array).mean(0).tolist() for kind, array in row.items()}
                    for name, row in rows.items()}
        details = {
            "skipped": skipped, "profiles": profiles, "pitfalls": PITFALLS,
            "counts": {name: len(pixels) for name, pixels in images.items()},
            "held_out against train": {score: auroc(scored[LEARNT][score], inliers[score]) for score in inliers},
            "shrinkage": {kind: one.shrinkage for kind, one in learnt.items()}, "levels": self.sigmas,
            "levels beyond training's": self.untrained_levels(work)}
        return Figures(values=values, measure=self.measure(work, images), details=details, pictures={
            "table": self.plot_table(values, [*inliers], others), "profiles": self.plot_profiles(profiles)})

    def scores_of(self, work: Work) -> list[str]:
        """The scores that the model allows."""
        return [score for score in self.scores if has_energy(work.pipeline.model) or SCORES[score] == "norms"]

    def images(self, work: Work) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The sets by name, uint8 (n, C, H, W), and the reasons for which others were skipped."""
        assert work.held_out is not None
        shape, skipped = work.pipeline.shape, dict[str, str]()
        inliers = choose_images(work.held_out, self.count, seed=self.seed, name=REAL)
        images = {LEARNT: choose_images(work.train, self.calibration, seed=self.seed, name=LEARNT), REAL: inliers}
        for name in self.made:
            if name == "shapes" and work.train.manifest.source.startswith("shapes"):
                skipped[name] = "shapes: what the run was trained on"
            else:
                images[name] = MADE[name](inliers, seed=self.seed)
        for name in self.standard:
            try:
                images[name] = load_standard(name, self.data_root, count=self.count, shape=shape, seed=self.seed)
            except FileNotFoundError as error:
                skipped[name] = str(error)
        for score in self.scores:
            if score not in self.scores_of(work):
                skipped[score] = f"{score}: {type(work.pipeline.model).__name__} has no energy"
        for name, path in self.sets.items():
            images[name] = read_set(path, count=self.count, shape=shape, seed=self.seed)
        if work.world.is_main:
            for words in skipped.values():
                print(f"outliers: skipped: {words}", file=sys.stderr, flush=True)
        return images, skipped

    def compute_readings(self, work: Work, name: str, pixels: Tensor) -> Rows:
        """The model's readings of a set, in float32."""
        def compute(part: range) -> Rows:
            x = to_float(pixels[part.start:part.stop].to(work.pipeline.device))
            return {**readings(work.pipeline.model, x, levels=self.sigmas)}

        return work.compute_rows(f"outliers {name} {sha256(pixels)} {self.sigmas}", len(pixels), self.batch, compute)

    def score(self, score: str, row: Rows, learnt: dict[str, Typical]) -> Array:
        """The score of each image, (n,), higher for outliers."""
        kind = SCORES[score]
        if score == "energy":
            lowest: Array = row[kind][:, 0]
            return lowest
        return learnt[kind].distance(row[kind])

    def untrained_levels(self, work: Work) -> list[float]:
        """The levels that the run's schedule hardly draws, at which readings are not reliable."""
        schedule: NoiseSchedule = build(work.run_config.schedule, key="schedule")
        low, high = schedule.sigma(torch.tensor([0.01, 0.99], dtype=torch.float64)).tolist()
        return [sigma for sigma in self.sigmas if not low <= sigma <= high]

    def measure(self, work: Work, images: dict[str, Tensor]) -> dict[str, Any]:
        """The protocol."""
        return {"train": work.train.manifest.sha256, "levels": self.sigmas, "seed": self.seed,
                "sets": {name: {"count": len(pixels), "sha256": sha256(pixels)} for name, pixels in images.items()}}

    def plot_table(self, values: dict[str, float], scores: list[str], names: list[str]) -> bytes:
        """AUROC and FPR95 of every score on every set."""
        figure = charting()(figsize=(3 + 0.85 * len(names), 2.4 + 0.9 * len(scores)), layout="constrained")
        for axes, (kind, title, colours) in zip(figure.subplots(2, 1, sharex=True), (
                ("auroc", "AUROC: 0.5 is chance, 1 the best", "RdYlGn"), ("fpr95", "FPR95: 0 is the best", "RdYlGn_r")),
                strict=True):
            numbers = np.array([[values[f"{kind}_{score}_{name}"] for name in names] for score in scores])
            axes.imshow(numbers, vmin=0, vmax=1, cmap=colours, aspect="auto", alpha=0.75)
            for (row, column), number in np.ndenumerate(numbers):
                axes.text(column, row, f"{number:.2f}", ha="center", va="center", fontsize=9)
            axes.set_yticks(range(len(scores)), [score.replace("_", " ") for score in scores])
            axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
            axes.set_title(title, fontsize=10)
        return png(figure)

    def plot_profiles(self, profiles: dict[str, dict[str, list[float]]]) -> bytes:
        """Mean energies and score norms of each set by level, standardised by those of training images."""
        kinds = {"energies": "Energy E(x, σ)", "norms": "Score norm σ‖s(x, σ)‖/√d"}
        shown = [kind for kind in kinds if kind in profiles[LEARNT]]
        figure = charting()(figsize=(5.6 * len(shown), 4.4), layout="constrained")
        for axes, kind in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            axes.plot(self.sigmas, profiles[REAL][kind], color="black", lw=2.5, label="held-out images")
            for index, name in enumerate(name for name in profiles if name not in (LEARNT, REAL)):
                axes.plot(self.sigmas, profiles[name][kind], color=f"C{index}", marker="o.sx^v*"[index % 7], ms=4, label=name)
            axes.axhspan(-2, 2, color="grey", alpha=0.15, lw=0)
            axes.set_yscale("symlog", linthresh=2)
            axes.set(xscale="log", xlabel="noise level σ", ylabel="mean, in training images' deviations", title=kinds[kind])
        axes.legend(fontsize=8)
        return png(figure)


def choose_images(data: Dataset, count: int, *, seed: int, name: str) -> Tensor:
    """At most ``count`` images of a data set, uint8 (n, C, H, W), drawn by (seed, name), as files may be sorted by class."""
    order = torch.randperm(data.count, generator=generator("cpu", seed, "outliers", name))
    return data.pixels(order[:count].sort().values.numpy())


def sha256(pixels: Tensor) -> str:
    """SHA-256 of the images' bytes."""
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
