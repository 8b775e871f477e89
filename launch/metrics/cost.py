"""The cost of one image: passes through the network, seconds, and joules where the device reports them."""
from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tqdm import tqdm

from ebm.accepted import whole
from ebm.evaluate.power import Usage, joule_counter, measure_usage, total
from ebm.train.distributed import device_name
from launch.metrics.evaluation import Figures, Work

NFE = "passes forward through the network for an image; of an energy's, `gradients` were followed by a pass backward"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Draws ``batches`` batches on one device after ``warmup`` unmeasured ones; see configs/metric/cost.yaml."""

    warmup: int
    batches: int

    of_samples: ClassVar[bool] = True

    def check(self, work: Work) -> None:
        """Raises ValueError for unusable settings and for images of unknown origin."""
        whole(0, warmup=self.warmup)
        whole(1, batches=self.batches)
        if str(work.cfg.samples).endswith(".npz"):
            raise ValueError(f"samples: {work.cfg.samples} is not accepted by the metric cost; a file's images may come "
                             "from any sampler")

    def inputs(self, work: Work) -> list[str]:
        """Whether the score is replayed, which changes its time and nothing else."""
        return ["cuda_graph"] if work.pipeline.cuda_graph else []

    def __call__(self, work: Work) -> Figures | None:
        """The figures, on rank 0, whose device alone is measured while the others wait."""
        subject = work.samples().subject  # before the measurement, so that all processes have finished drawing
        if not work.world.is_main:
            return None
        counter, reason = joule_counter(work.pipeline.device)
        spent: list[Usage] = []
        for index in tqdm(range(self.warmup + self.batches), unit="batch", desc="cost", dynamic_ncols=True):
            part = range(index * work.batch, (index + 1) * work.batch)
            with measure_usage(work.pipeline.device, counter) as one:
                drawn = work.pipeline.draw(part)
            spent += [one] * (index >= self.warmup)
        whole_sampling = {key: subject[key] for key in ("n", "seconds", "joules") if key in subject}
        return Figures(
            values={"nfe": float(drawn.forward), "gradients": float(drawn.backward), **per_image(spent, work.batch)},
            measure={"device": device_name(work.pipeline.device), "processor": platform.processor() or platform.machine(),
                     "threads": torch.get_num_threads(), "batch": work.batch, "warmup": self.warmup, "batches": self.batches,
                     "precision": work.pipeline.precision.name, "torch": torch.__version__,
                     **({"cuda_graph": True} if work.pipeline.cuda_graph else {}),
                     "images": list(work.pipeline.shape)},
            details={"nfe": NFE, "batch_seconds": [one.seconds for one in spent], "batch_joules": [one.joules for one in spent],
                     "joules": "the whole GPU's, idle draw included" if not reason else f"not told: {reason}",
                     "all_samples": whole_sampling})


def per_image(spent: Sequence[Usage], batch: int) -> dict[str, Any]:
    """Mean seconds and joules per image for batches of ``batch``; with several batches, the standard error of the time."""
    seconds = [one.seconds / batch for one in spent]
    values = {"seconds_per_image": statistics.fmean(seconds), "images_per_s": 1 / statistics.fmean(seconds)}
    if len(spent) > 1:
        values["seconds_per_image_stderr"] = statistics.stdev(seconds) / math.sqrt(len(spent))
    joules = total([one.joules for one in spent])
    if joules is not None:
        values["joules_per_image"] = joules / (batch * len(spent))
    return values
