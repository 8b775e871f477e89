"""The metrics that a config asks for."""
from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from omegaconf import DictConfig, OmegaConf

from ebm.evaluate.quality import FIGURES
from launch.config.build import build
from launch.metrics.evaluation import Metric


def select_metrics(cfg: DictConfig) -> dict[str, Metric]:
    """The metrics asked for, by name; raises ValueError for unknown names and unusable settings."""
    asked = requested_names(cfg)
    figures = [name for name in asked if name in FIGURES]
    settings = OmegaConf.create({"metric": cfg.metric, "extractor": cfg.extractor})
    if figures and "quality" not in asked:
        settings.metric.quality.figures = figures
    names = dict.fromkeys("quality" if name in FIGURES else name for name in asked)
    for name in names:
        if not (isinstance(settings.metric[name], DictConfig) and "_target_" in settings.metric[name]):
            raise ValueError(f"metric.{name}: {settings.metric[name]!r} is not accepted; it must have a _target_ that builds a "
                             "metric")
    return {name: build(settings.metric[name], key=f"metric.{name}") for name in names}


@contextlib.contextmanager
def naming_argument(name: str, metric: Metric) -> Iterator[None]:
    """Context in which an error that begins with an argument of the metric is raised with its full key, `metric.<name>.`."""
    try:
        yield
    except (ValueError, OSError) as error:
        argument = re.split(r"[:.\[]", str(error), maxsplit=1)[0]
        if is_dataclass(metric) and argument in {one.name for one in fields(metric)}:
            raise ValueError(f"metric.{name}.{error}") from error
        raise


def requested_names(cfg: DictConfig) -> list[str]:
    """The names in `metrics`."""
    asked = OmegaConf.to_container(cfg.metrics) if OmegaConf.is_list(cfg.metrics) else cfg.metrics
    asked = [asked] if isinstance(asked, str) else asked  # one alone
    accepted = [*map(str, cfg.metric), *FIGURES]
    if not isinstance(asked, list) or not asked or not all(name in accepted for name in asked):
        raise ValueError(f"metrics: {asked!r} is not accepted; it must be a list of {', '.join(accepted)}")
    return asked
