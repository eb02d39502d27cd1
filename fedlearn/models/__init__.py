"""Models that phones can train. The package itself imports no torch, so a phone can rank with ``MatchModel``."""

from fedlearn.models.base import (
    ClientExamples,
    Columns,
    Model,
    Parameters,
    flatten,
    parameter_count,
    parameter_schema,
    unflatten,
)
from fedlearn.models.match import MatchModel

__all__ = [
    "ClientExamples",
    "Columns",
    "MatchModel",
    "Model",
    "Parameters",
    "flatten",
    "parameter_count",
    "parameter_schema",
    "unflatten",
]
