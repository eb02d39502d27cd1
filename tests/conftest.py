"""Shared by all tests: nothing is read from or left in the user's own cache and state, and nobody is called."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl import logging as absl_logging

# Before torch and Flower are imported by any test: one thread a worker, no usage report.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"


# dp-accounting brings absl, whose log handler keeps the stderr of the moment it was imported: here a file of pytest's.
# Hydra closes all handlers when it sets up logging, and absl then closes that file, unless it is the real stderr.
absl_logging.get_absl_handler().python_handler.setStream(sys.__stderr__)


@pytest.fixture(scope="session", autouse=True)
def own_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache and a state directory of this test run; its workers share the cache, as runs of a user do."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDLEARN_CACHE", str(shared / "fedlearn-cache"))
        patch.setenv("FEDLEARN_STATE", str(base / "fedlearn-state"))
        yield shared


@pytest.fixture(autouse=True)
def loggers_that_speak() -> None:
    """Migrations of Flower and MLflow switch off all loggers of the process, and Hydra raises the root's level.

    What they did in one test ends with it.
    """
    if logging.root.level != logging.WARNING:
        logging.root.setLevel(logging.WARNING)
    ours = (found for name, found in logging.root.manager.loggerDict.items() if name.startswith("fedlearn"))
    for logger in ours:
        if isinstance(logger, logging.Logger) and logger.disabled:
            logger.disabled = False
            logger.setLevel(logger.level)  # by its method: what is enabled is cached


@pytest.fixture
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).parents[1]
