"""Hydra's launcher for a multirun, derived from hydra-submitit-launcher's: it submits a study and returns."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import DictConfig, OmegaConf, open_dict

from launch.study.submit import Study


@dataclass
class StudyConf(SlurmQueueConf):  # type: ignore[misc]
    """hydra-submitit-launcher's options for SLURM, and additional arguments of srun."""

    _target_: str = "hydra_plugins.ebm.StudyLauncher"
    submitit_folder: str = ""
    srun_args: list[str] = field(default_factory=list)


class StudyLauncher(SlurmLauncher):  # type: ignore[misc]
    """Submits those points of a multirun that are neither done nor queued, and returns."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Returns one empty result per point: it does not wait for them."""
        assert self.config is not None
        study = Study(cfg=self.config, params=dict(self.params), compose=self.compose)
        study.launch([list(overrides) for overrides in job_overrides])
        return [JobReturn(status=JobStatus.COMPLETED) for _ in job_overrides]

    def compose(self, name: str, overrides: Sequence[str]) -> DictConfig:
        """Another entry's config, as its own command line would make it."""
        assert self.hydra_context is not None
        cfg: DictConfig = self.hydra_context.config_loader.load_configuration(config_name=name, overrides=list(overrides),
                                                                  run_mode=RunMode.RUN)
        with open_dict(cfg):
            del cfg["hydra"]
        OmegaConf.resolve(cfg)
        return cfg


# The class that Hydra's plugin search has registered: the search imports the module a second time.
BasicSweeper: Any = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_sweeper.BasicSweeper"]


class StudySweeper(BasicSweeper):  # type: ignore[misc]
    """Hydra's basic sweeper without its check, which composes every point: `make_points` checks them."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Does nothing; see `make_points`."""


@dataclass
class StudySweeperConf(BasicSweeperConf):
    """Hydra's options: max_batch_size and params."""

    _target_: str = "hydra_plugins.ebm.StudySweeper"


# Hydra accepts launchers and sweepers only under names of this form.
Plugins.instance().class_name_to_class.update({StudyConf._target_: StudyLauncher, StudySweeperConf._target_: StudySweeper})
ConfigStore.instance().store(group="hydra/launcher", name="study", node=StudyConf(), provider="ebm")
ConfigStore.instance().store(group="hydra/sweeper", name="study", node=StudySweeperConf(), provider="ebm")
