"""Sample quality in a feature space: torch-fidelity's figures, under their published names only in the published features."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ebm.evaluate.extractors import Extractor, check_images, import_fidelity
from ebm.randomness import generator, seed_of

Rows = Mapping[str, NDArray[Any]]  # "features" (n, D), for Inception "logits" (n, classes), and statistics of them

FIGURES = ("fid", "kid", "is", "precision_recall")
BLOCK = 2000  # rows of distances held at once


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The figures to compute and their settings; ``figures`` None: all that the extractor allows.

    fid: Fréchet distance of Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500). kid: squared maximum mean
    discrepancy, cubic kernel, mean over ``kid_subsets`` subsets (Bińkowski et al. 2018, arXiv 1801.01401). is: Salimans et al.
    2016, arXiv 1606.03498, mean over ``splits``. precision_recall: the shares inside the other set's balls, whose radius is
    the distance to the neighbour number ``neighbourhood`` (Kynkäänniemi et al. 2019, arXiv 1904.06991).
    """

    figures: Sequence[str] | None
    kid_subsets: int
    kid_subset_size: int
    neighbourhood: int
    splits: int
    halves: int  # random halves of the samples, for the standard error of the Fréchet distance; 0: none
    seed: int

    def __post_init__(self) -> None:
        if self.figures is not None and (not self.figures or not set(self.figures) <= set(FIGURES)):
            raise ValueError(f"figures: {self.figures!r} is not accepted; it must be a list of {', '.join(FIGURES)}, "
                             "or null for all")
        for key, least in (("kid_subsets", 1), ("kid_subset_size", 2), ("neighbourhood", 1), ("splits", 1), ("halves", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}: {getattr(self, key)!r} is not accepted; it must be at least {least}")
        if self.halves == 1:
            raise ValueError("halves: 1 is not accepted; a standard error needs 2, and 0 omits it")

    def selected(self, extractor: Extractor) -> list[str]:
        """The figures asked for; raises ValueError for an Inception score of another network."""
        if self.figures is None:
            return [name for name in FIGURES if name != "is" or extractor.published]
        if "is" in self.figures and not extractor.published:
            raise ValueError(f"figures: 'is' is not accepted; {extractor.name} does not have Inception's classes")
        return [name for name in FIGURES if name in self.figures]

    def check(self, *, n: int, count: int, extractor: Extractor) -> None:
        """Raises ValueError where ``n`` images, or ``count`` real ones, are too few for a figure."""
        import_fidelity()
        fewest = {"fid": 4 if self.halves else 2, "kid": self.kid_subset_size, "is": self.splits,
                  "precision_recall": self.neighbourhood + 1}
        reasons = {"fid": "a covariance", "kid": "kid_subset_size", "is": "splits", "precision_recall": "neighbourhood"}
        for name in self.selected(extractor):
            for key, images in (("n", n), ("reference_count", count if name != "is" else n)):
                if images < fewest[name]:
                    raise ValueError(f"{key}: {images!r} is not accepted; {name} needs at least {fewest[name]} images "
                                     f"({reasons[name]})")

    def __call__(self, samples: Rows, reference: Rows, *, extractor: Extractor, progress: bool) -> dict[str, float]:
        """The figures of ``samples`` by name, with standard errors; raises ValueError as `check` does."""
        self.check(n=len(samples["features"]), count=len(reference["features"]), extractor=extractor)
        values: dict[str, float] = {}
        for name in tqdm(self.selected(extractor), desc="compare", unit="figure", disable=not progress, leave=False):
            found = {"fid": self.frechet, "kid": self.kernel, "is": self.inception,
                     "precision_recall": self.precision_recall}[name](samples, reference, extractor.device)
            values |= {figure_name(key, extractor): value for key, value in found.items()}
        return values

    def frechet(self, samples: Rows, reference: Rows, _: torch.device) -> dict[str, float]:
        """The distance and its standard error, by half-samples, whose variance equals that of the estimate (Shao & Wu 1989)."""
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

        real = {key: reference[key] for key in ("mu", "sigma")} if "mu" in reference else statistics(reference)
        found = {"fid": fid_statistics_to_metric(statistics(samples), real, False)[KEY_METRIC_FID]}
        if self.halves:
            count, parts = len(samples["features"]), []
            for half in range(self.halves):
                rows = torch.randperm(count, generator=generator("cpu", self.seed, "half", half))[:count // 2].numpy()
                part = statistics({"features": samples["features"][rows]})
                parts.append(fid_statistics_to_metric(part, real, False)[KEY_METRIC_FID])
            found["fid_stderr"] = float(np.std(parts, ddof=1))
        return found

    def kernel(self, samples: Rows, reference: Rows, _: torch.device) -> dict[str, float]:
        """The discrepancy and, for subsets of at most half of the n images, a bound on its standard error.

        Subsets of m drawn without replacement have the variance s²/m · (1 − m/n), so that s²/n is m/(n − m) times that.
        """
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        made = kid_features_to_metric(to_tensor(samples), to_tensor(reference), kid_subsets=self.kid_subsets, verbose=False,
                                      kid_subset_size=self.kid_subset_size, rng_seed=self.library_seed)
        n, m = len(samples["features"]), self.kid_subset_size
        error = {"kid_stderr": made[KEY_METRIC_KID_STD] * (m / (n - m)) ** 0.5} if 2 * m <= n and self.kid_subsets > 1 else {}
        return {"kid": made[KEY_METRIC_KID_MEAN], **error}

    def inception(self, samples: Rows, _: Rows, __: torch.device) -> dict[str, float]:
        """The score and the standard error of its mean over the splits."""
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

        made = isc_features_to_metric(to_tensor(samples, "logits"), self.splits, True, self.library_seed)
        error = {"is_stderr": made[KEY_METRIC_ISC_STD] / (self.splits - 1) ** 0.5} if self.splits > 1 else {}
        return {"is": made[KEY_METRIC_ISC_MEAN], **error}

    def precision_recall(self, samples: Rows, reference: Rows, device: torch.device) -> dict[str, float]:
        """Precision and recall in [0, 1], of sets of equal size, on which they depend: the larger is subsampled."""
        from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

        fewer = min(len(samples["features"]), len(reference["features"]))
        sets = [subsample(to_tensor(rows), fewer, seed=self.seed).to(device) for rows in (samples, reference)]
        made = prc_features_to_metric(*sets, prc_neighborhood=self.neighbourhood, prc_batch_size=BLOCK, save_cpu_ram=True,
                                      verbose=False)
        return {"precision": made[KEY_METRIC_PRECISION], "recall": made[KEY_METRIC_RECALL]}

    @property
    def library_seed(self) -> int:
        """Seed for numpy's legacy generator, which the library uses."""
        return seed_of(self.seed, "quality") % 2**32

    @property
    def measure(self) -> dict[str, Any]:
        """What two figures must share to be comparable, besides the image sets and the extractor."""
        library = f"torch-fidelity {import_fidelity().__version__}"
        keys = ("kid_subsets", "kid_subset_size", "neighbourhood", "splits", "halves", "seed")
        return {"library": library, **{key: getattr(self, key) for key in keys}}


def figure_name(key: str, extractor: Extractor) -> str:
    """The name of a figure: the published one in the published features alone, so that nothing else is called FID."""
    if extractor.published:
        return key
    figure, _, error = key.partition("_")
    short = {"fid": "fd", "kid": "kd"}.get(figure, figure)
    return "_".join(filter(None, [short, extractor.name, error]))


def statistics(rows: Rows) -> dict[str, NDArray[np.float64]]:
    """Mean "mu" (D,) and covariance "sigma" (D, D) of features, in float64."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    found = fid_features_to_statistics(to_tensor(rows).double())
    return {"mu": found["mu"], "sigma": np.atleast_2d(found["sigma"])}


def subsample(rows: Tensor, count: int, *, seed: int) -> Tensor:
    """``count`` of the rows, drawn without replacement, in their order."""
    return rows[torch.randperm(len(rows), generator=generator("cpu", seed, "precision_recall"))[:count].sort().values]


def to_tensor(rows: Rows, key: str = "features") -> Tensor:
    """One array of the rows as a tensor, (n, D), on the CPU."""
    return torch.from_numpy(np.ascontiguousarray(rows[key]))


def features_of(images: Tensor, *, extractor: Extractor, batch: int, progress: bool) -> dict[str, NDArray[Any]]:
    """The features of images, uint8 (n, 3, H, W), float32 on the CPU; raises ValueError for other images."""
    check_images(images)
    parts = []
    with tqdm(total=len(images), desc="features", unit="img", disable=not progress, leave=False, dynamic_ncols=True) as bar:
        for part in images.split(batch):
            parts.append({key: rows.cpu().numpy() for key, rows in extractor(part).items()})
            bar.update(len(part))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def quality_of(
    images: Tensor, reference: Tensor | Rows, *, extractor: Extractor, comparison: Comparison, batch: int, progress: bool
) -> dict[str, float]:
    """The figures of images, uint8 (n, 3, H, W), against real images or their features.

    Raises ValueError for other images or too few, before any work.
    """
    real = len(reference) if isinstance(reference, Tensor) else len(reference["features"])
    comparison.check(n=len(images), count=real, extractor=extractor)
    rows = features_of(images, extractor=extractor, batch=batch, progress=progress)
    if isinstance(reference, Tensor):
        reference = features_of(reference, extractor=extractor, batch=batch, progress=progress)
    return comparison(rows, reference, extractor=extractor, progress=progress)
