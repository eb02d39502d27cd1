"""Local training: schedule and negatives in numpy, the step in torch, and two engines around it.

The numpy part is what a phone runs too, so importing this package imports no torch; the rest loads on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedlearn.engine.negatives import Candidates, sample_candidates
from fedlearn.engine.schedule import LocalTraining, schedule

if TYPE_CHECKING:
    from fedlearn.engine.base import Engine, LocalUpdates
    from fedlearn.engine.optimizers import IterateAverage, ServerOptimizer
    from fedlearn.engine.registry import make_engine
    from fedlearn.engine.step import local_step

__all__ = [
    "Candidates",
    "Engine",
    "IterateAverage",
    "LocalTraining",
    "LocalUpdates",
    "ServerOptimizer",
    "local_step",
    "make_engine",
    "sample_candidates",
    "schedule",
]

_LATE = {
    "Engine": "base",
    "LocalUpdates": "base",
    "IterateAverage": "optimizers",
    "ServerOptimizer": "optimizers",
    "local_step": "step",
    "make_engine": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
