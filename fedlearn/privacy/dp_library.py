"""What is taken from dp-accounting. Of the library, only this module imports it; the verifier does on its own.

Privacy loss distributions of single events (pessimistic: every rounding errs toward more epsilon) and the Renyi
divergence of the Poisson-sampled Gaussian. Composition, margins and conversions are in ``pld`` and ``renyi``.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from fedlearn.errors import MissingDependency
from fedlearn.privacy.hockey_stick import added_divergences, removed_divergences, replaced_divergences
from fedlearn.types import F64

Divergences = Callable[[float, float, F64], F64]
"""(mu, sampling probability, epsilons) -> hockey-stick divergences."""


class LossDistribution(Protocol):
    """The part of dp-accounting's PrivacyLossDistribution that is used here."""

    def self_compose(self, num_times: int) -> LossDistribution: ...
    def compose(self, privacy_loss_distribution: LossDistribution) -> LossDistribution: ...
    def compute_mixture(self, other: LossDistribution, self_weight: float) -> LossDistribution: ...
    def get_epsilon_for_delta(self, delta: float) -> float: ...
    def get_delta_for_epsilon(self, epsilon: float) -> float: ...


class _Library(NamedTuple):
    """dp-accounting's modules about privacy losses."""

    distribution: Any
    mechanism: Any
    pmf: Any


def accounting_version() -> str:
    """Return dp-accounting's version: part of every key under which a computed figure is cached.

    Raises:
        MissingDependency: dp-accounting is not installed.
    """
    try:
        return importlib.metadata.version("dp-accounting")
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing() from error


def gaussian_losses(
    noise_multiplier: float, sampling_probability: float, cell: float, *, replace_one: bool = False
) -> LossDistribution:
    """Return the losses of one Poisson-sampled Gaussian release on a grid of ``cell``.

    Args:
        noise_multiplier: std of the noise over the clip norm, > 0.
        sampling_probability: in (0, 1]; at 1 the plain Gaussian.
        cell: grid of privacy losses, > 0.
        replace_one: one unit's update is replaced by any other one, of the same norm at most; else add-or-remove.

    Raises:
        MissingDependency: dp-accounting is not installed.
    """
    library = _losses()
    q, kinds = sampling_probability, library.mechanism.AdjacencyType
    wrap = cast(Callable[..., LossDistribution], library.distribution.PrivacyLossDistribution)
    if replace_one:
        return wrap(_connected_dots(noise_multiplier, q, cell, kinds.REPLACE, replaced_divergences))
    removed = _connected_dots(noise_multiplier, q, cell, kinds.REMOVE, removed_divergences)
    if q == 1:
        return wrap(removed)
    return wrap(removed, _connected_dots(noise_multiplier, q, cell, kinds.ADD, added_divergences))


def _connected_dots(noise_multiplier: float, q: float, cell: float, kind: object, divergences: Divergences) -> Any:
    """Return one direction's losses: the library's grid and its connecting of dots, our divergences at the dots.

    The library finds each dot in a Python loop; this is the same in arrays, and small divergences keep their relative
    precision.
    """
    library = _losses()
    loss = library.mechanism.GaussianPrivacyLoss(noise_multiplier, sampling_prob=q, adjacency_type=kind)
    bounds = loss.connect_dots_bounds()
    lowest, highest = math.floor(bounds.epsilon_lower / cell), math.ceil(bounds.epsilon_upper / cell)
    deltas = divergences(1 / noise_multiplier, q, np.arange(lowest, highest + 1) * cell)
    return library.pmf.create_pmf_pessimistic_connect_dots_fixed_gap(cell, lowest, highest, deltas)


def no_losses(cell: float) -> LossDistribution:
    """Return the losses of an empty spend on a grid of ``cell``."""
    return cast(LossDistribution, _losses().distribution.identity(value_discretization_interval=cell))


def poisson_renyi(noise_multiplier: float, sampling_probability: float, orders: Sequence[float]) -> F64:
    """Return the Renyi divergences of one Poisson-sampled Gaussian release (Mironov, Talwar and Zhang 2019).

    Args:
        noise_multiplier: > 0.
        sampling_probability: in (0, 1].
        orders: each > 1.

    Returns:
        f64[orders], as the library rounds them: ``renyi`` adds the margin. ``inf`` where its series does not converge.

    Raises:
        MissingDependency: dp-accounting is not installed.
    """
    events, renyi = _renyi()
    accountant = renyi.RdpAccountant(list(orders))
    event = events.GaussianDpEvent(noise_multiplier)
    with np.errstate(all="ignore"):  # what is not a number is refused by the caller
        accountant.compose(events.PoissonSampledDpEvent(sampling_probability, event))
    return np.asarray(accountant.rdp, dtype=np.float64)


@lru_cache(maxsize=1)
def _losses() -> _Library:
    try:
        from dp_accounting.pld import (  # noqa: PLC0415  # optional, heavy
            pld_pmf,
            privacy_loss_distribution,
            privacy_loss_mechanism,
        )
    except ImportError as error:
        raise _missing() from error
    return _Library(privacy_loss_distribution, privacy_loss_mechanism, pld_pmf)


@lru_cache(maxsize=1)
def _renyi() -> tuple[Any, Any]:
    try:
        from dp_accounting import dp_event, rdp  # noqa: PLC0415  # optional, heavy
    except ImportError as error:
        raise _missing() from error
    # It warns of every order that it leaves out: a looser bound, not a wrong one.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return dp_event, rdp


def _missing() -> MissingDependency:
    return MissingDependency("Accounting needs dp-accounting: pip install 'fedlearn[privacy]'")
