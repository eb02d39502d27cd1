"""``fedlearn train``: Hydra's command line, with our errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fedlearn.errors import FedlearnError
from fedlearn.lab.config import ExperimentConfig
from fedlearn.lab.configs import at_root, packaged_configs, search_first, translated
from fedlearn.lab.door import from_hydra
from fedlearn.lab.run import train, typed_command
from fedlearn.lab.schemas import register_schemas

HELP = """\
usage: fedlearn train [GROUP=CHOICE ...] [KEY=VALUE ...] [-m] [--config-dir DIR]

  fedlearn train experiment=city_quick
  fedlearn train experiment=city_quick privacy=none cohort.rounds=20 seeds=[0,1]
  fedlearn train -m experiment=city_quick privacy.epsilon=1,3,8        a sweep, run side by side
  fedlearn train --config-dir DIR experiment=mine                      DIR is searched before the built-in configs
  fedlearn train experiment=city_quick --cfg job                       print the config and stop

fedlearn list shows groups and choices; fedlearn init DIR copies the configs to edit.
"""


def main(arguments: Sequence[str]) -> int:
    """Train from a config; several runs with ``-m``."""
    given = list(arguments)
    if any(argument in {"-h", "--help"} for argument in given):
        print(HELP, end="")  # noqa: T201 - the command's own output
        return 0
    register_schemas()
    given = at_root(search_first(given))
    # Hydra prints and exits on its own errors unless told to raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    before = sys.argv
    sys.argv = ["fedlearn train", *given]
    try:
        _hydra_main()
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__
        if isinstance(cause, FedlearnError):
            raise cause from error
        raise translated(error) from error
    finally:
        sys.argv = before
    return 0


@hydra.main(version_base="1.3", config_path=str(packaged_configs()), config_name="config")
def _hydra_main(config: DictConfig) -> None:
    experiment = from_hydra(config)
    train(_in_sweep(experiment), command=typed_command())


def _in_sweep(config: ExperimentConfig) -> ExperimentConfig:
    """Give each run of a sweep a directory of its own below ``run.dir``."""
    job = HydraConfig.get()
    if job.mode is not RunMode.MULTIRUN or config.run.dir is None:
        return config
    return replace(config, run=replace(config.run, dir=str(Path(config.run.dir) / f"{job.job.num:03d}")))
