"""Where experiments are made: configs, data, training, evaluation, reports. In a notebook: ``lab.train(config)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedlearn.lab.configs import compose
    from fedlearn.lab.run import resume, train

__all__ = ["compose", "resume", "train"]

_LATE = {"compose": "configs", "resume": "run", "train": "run"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - loads torch and flwr only when a name is used

    return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
