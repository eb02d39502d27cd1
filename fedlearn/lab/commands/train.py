"""``fedlearn train``: Hydra's command line, with our errors."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fedlearn.errors import FedlearnError
from fedlearn.lab.config import ExperimentConfig
from fedlearn.lab.configs import at_root, packaged_configs, searching_first, translated
from fedlearn.lab.door import from_hydra
from fedlearn.lab.run import train
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
    # Hydra prints and exits on its own errors unless told to raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    before = sys.argv
    _failure.clear()
    try:
        with searching_first(given) as rest:
            sys.argv = ["fedlearn train", *options_first(at_root(rest))]
            _hydra_main()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if isinstance(error, FedlearnError):
            raise
        cause = error.__cause__
        if isinstance(cause, FedlearnError):
            raise cause from error
        raise translated(error) from error
    finally:
        sys.argv = before
    if _failure:
        raise _failure[0]
    return 0


_failure: list[FedlearnError] = []
"""What ended a single run: carried around Hydra, which would print a line of its own about it."""


@hydra.main(version_base="1.3", config_path=str(packaged_configs()), config_name="config")
def _hydra_main(config: DictConfig) -> None:
    job = HydraConfig.get()
    try:
        train(_in_sweep(from_hydra(config), job), command=command_line(job.overrides.task))
    except FedlearnError as error:
        if job.mode is RunMode.MULTIRUN:
            raise
        _failure.append(error)


def options_first(arguments: Sequence[str]) -> list[str]:
    """Put flags such as ``-m`` before the overrides, which is where Hydra's parser wants them."""
    flags = [argument for argument in arguments if argument in {"-m", "--multirun"}]
    return [*flags, *(argument for argument in arguments if argument not in flags)]


def command_line(overrides: Sequence[str]) -> str:
    """Return the command that repeats one run, ready to paste."""
    plain = [override.replace("experiment@_global_=", "experiment=", 1) for override in overrides]
    return shlex.join(["fedlearn", "train", *plain])


def _in_sweep(config: ExperimentConfig, job: HydraConf) -> ExperimentConfig:
    """Give each run of a sweep a directory of its own below ``run.dir``."""
    if job.mode is not RunMode.MULTIRUN or config.run.dir is None:
        return config
    return replace(config, run=replace(config.run, dir=str(Path(config.run.dir) / f"{job.job.num:03d}")))
