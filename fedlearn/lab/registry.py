"""Data sets, models and metrics by name: ours, and those that other packages bring through entry points.

==================  ===================================================================
group               an entry point names
==================  ===================================================================
fedlearn.data       ``(options) -> fedlearn.lab.dataset.SessionDataset``
fedlearn.models     ``(width, options) -> fedlearn.models.base.Model``
fedlearn.metrics    ``(cutoff or None) -> (ranks i64[n] -> f64[n])``
==================  ===================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from fedlearn.errors import ConfigError, UnknownSetting
from fedlearn.lab.config import CityData, CrossWozData, DataConfig, ModelConfig, Options, Scalar
from fedlearn.lab.dataset import SessionDataset
from fedlearn.lab.evaluation import Metric, MetricBuilder, hit_rate, ndcg, reciprocal_rank
from fedlearn.lab.validate import unknown
from fedlearn.models import MatchModel, Model

ModelBuilder = Callable[[int, Options], Model]
DataBuilder = Callable[[Options], SessionDataset]

DATA, MODELS, METRICS = "fedlearn.data", "fedlearn.models", "fedlearn.metrics"


def _match(width: int, options: Options) -> Model:
    _known_options("model", options, ("l2",))
    return MatchModel(width, **{key: float(value) for key, value in options.items()})


BUILT_IN_MODELS: Mapping[str, ModelBuilder] = {"match": _match}
BUILT_IN_METRICS: Mapping[str, MetricBuilder] = {"HR": hit_rate, "NDCG": ndcg, "MRR": reciprocal_rank}
BUILT_IN_DATA = ("city", "crosswoz")


def build_dataset(data: DataConfig) -> SessionDataset:
    """Return the data set a config names; raise UnknownSetting, or what its builder raises."""
    if isinstance(data, CityData):
        from fedlearn.lab.data.city import CityDataset  # noqa: PLC0415 - only the data set that is used

        return CityDataset(data)
    if isinstance(data, CrossWozData):
        from pathlib import Path  # noqa: PLC0415

        from fedlearn.lab.data.crosswoz import CrossWoz  # noqa: PLC0415

        return CrossWoz(Path(data.root), data.domain, data.file)
    found = _points(DATA)
    if data.name not in found:
        raise unknown("data.name", data.name, (*BUILT_IN_DATA, *found))
    return cast(DataBuilder, found[data.name].load())(data.options)


def build_model(model: ModelConfig, width: int) -> Model:
    """Return the model a config names, for ``width`` features."""
    if model.name in BUILT_IN_MODELS:
        return BUILT_IN_MODELS[model.name](width, model.options)
    found = _points(MODELS)
    if model.name not in found:
        raise unknown("model.name", model.name, (*BUILT_IN_MODELS, *found))
    return cast(ModelBuilder, found[model.name].load())(width, model.options)


def build_metric(name: str) -> Metric:
    """Return the metric called e.g. ``HR@10`` or ``MRR``."""
    stem, _, cutoff = name.partition("@")
    if cutoff and not (cutoff.isdigit() and int(cutoff) > 0):
        raise UnknownSetting(f"evaluation.metrics: {name!r} has no whole cutoff > 0 after '@', e.g. HR@10.")
    builders: dict[str, MetricBuilder] = dict(BUILT_IN_METRICS)
    builders.update({key: cast(MetricBuilder, point.load()) for key, point in _points(METRICS).items() if key == stem})
    if stem not in builders:
        raise unknown("evaluation.metrics", stem, (*BUILT_IN_METRICS, *_points(METRICS)))
    return builders[stem](int(cutoff) if cutoff else None)


def available() -> Mapping[str, Mapping[str, str]]:
    """Return group -> name -> where it comes from, for ``fedlearn list``."""
    built_in = {DATA: BUILT_IN_DATA, MODELS: tuple(BUILT_IN_MODELS), METRICS: tuple(BUILT_IN_METRICS)}
    return {
        group: {
            **dict.fromkeys(names, "fedlearn"),
            **{name: point.dist.name if point.dist else point.value for name, point in _points(group).items()},
        }
        for group, names in built_in.items()
    }


def _points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def _known_options(field: str, options: Mapping[str, Scalar], known: tuple[str, ...]) -> None:
    for key, value in options.items():
        if key not in known:
            raise unknown(f"{field}.options", key, known)
        if not isinstance(value, int | float):
            raise ConfigError(f"{field}.options.{key}={value!r}: must be a number.")
