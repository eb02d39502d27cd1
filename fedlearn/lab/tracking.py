"""Sends round figures to a tracker besides the run directory. A failing tracker warns once and never stops a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fedlearn.errors import MissingDependency
from fedlearn.lab.config import TrackingConfig
from fedlearn.report.rounds import RoundRecord

Observe = Callable[[RoundRecord], None]


class Tracker(Protocol):
    """Takes one figure of one round."""

    def log(self, series: str, value: float, step: int) -> None:
        """Record ``value`` of ``series`` at ``step``."""
        ...


class _TensorBoard:
    def __init__(self, uri: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional

        self._writer = SummaryWriter(str(uri))

    def log(self, series: str, value: float, step: int) -> None:
        self._writer.add_scalar(series, value, step)
        self._writer.flush()


class _MlFlow:
    def __init__(self, uri: str, run_id: str) -> None:
        from mlflow.tracking import MlflowClient  # noqa: PLC0415 - optional

        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name("fedlearn")
        experiment = found.experiment_id if found else self._client.create_experiment("fedlearn")
        self._run = self._client.create_run(experiment, run_name=run_id).info.run_id

    def log(self, series: str, value: float, step: int) -> None:
        self._client.log_metric(self._run, series.replace("@", "_at_").replace(",", ""), value, step=step)


def make_tracker(config: TrackingConfig, directory: Path, run_id: str) -> Tracker | None:
    """Return the tracker a config names, or None.

    Raises:
        MissingDependency: its package is not installed; the message is the install line.
    """
    if config.name == "none":
        return None
    try:
        if config.name == "tensorboard":
            return _TensorBoard(Path(config.uri or directory / "tensorboard"))
        return _MlFlow(config.uri or f"sqlite:///{(directory / 'mlflow.db').resolve()}", run_id)
    except ImportError as error:
        raise MissingDependency(f"tracking={config.name}: pip install 'fedlearn[{config.name}]'.") from error
    except Exception as error:  # noqa: BLE001 - a tracker that is down must not stop a run
        warnings.warn(f"no tracking: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
        return None


def tracked(
    tracker: Tracker | None, series: str, observe: Callable[[RoundRecord], None]
) -> Callable[[RoundRecord], None]:
    """Return ``observe`` that also tells the tracker; the first failure warns and silences the tracker."""
    if tracker is None:
        return observe
    alive = True

    def both(record: RoundRecord) -> None:
        nonlocal alive
        observe(record)
        if not alive:
            return
        try:
            for name, value in _figures(record).items():
                tracker.log(f"{series}/{name}", value, record.round)
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises must not stop the run
            alive = False
            warnings.warn(f"tracking stopped: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)

    return both


def _figures(record: RoundRecord) -> dict[str, float]:
    named = {
        "loss": record.loss,
        "cohort": None if record.cohort is None else float(record.cohort),
        "clipped_fraction": record.clipped_fraction,
        "signal_to_noise": record.signal_to_noise,
        "clip": record.clip,
        "update_norm": record.update_norm,
        "epsilon": record.epsilon,
        **{metric.name: metric.value for metric in record.evaluation},
    }
    return {name: value for name, value in named.items() if value is not None}
