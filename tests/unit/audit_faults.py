"""Faulty private paths, each the project's own with one stage replaced: what an audit must notice."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedlearn.clip import ClippedRows, clip_rows
from fedlearn.errors import ChargeMismatch
from fedlearn.fold import Fold, FoldTerms
from fedlearn.lab.audit.pipeline import PhoneUpdates, Pipeline, Publication, Published, publish_mean
from fedlearn.privacy.adaptive_clip import AdaptiveClipSettings, append_fit
from fedlearn.privacy.mechanisms import GaussianMechanism
from fedlearn.types import F64, BoundedSum, Charge, Contribution, NoisyMean

LAYERS = 10


class CarelessFold(Fold):
    """Adds whatever it gets, however long."""

    def __init__(self, terms: FoldTerms) -> None:
        super().__init__(replace(terms, l2_clip_norm=1e300))

    def _require_room(self, contribution: Contribution) -> None:
        del contribution


class Distorted:
    """The real mechanism, whose noise is changed on the way out."""

    def __init__(self, change: Callable[[F64], F64], z: float, denominator: float) -> None:
        self._real = GaussianMechanism(z, denominator)
        self._change = change

    def release(self, bounded: BoundedSum, charge: Charge) -> NoisyMean:
        mean = self._real.release(bounded, charge)
        noise = self._change(mean.values * mean.denominator - bounded.values)
        return replace(mean, values=(bounded.values + noise) / mean.denominator)


def last_bare(noise: F64) -> F64:
    return np.concatenate([noise[:-1], [0.0]])


def uniform(noise: F64) -> F64:
    """Noise of the same standard deviation that cannot exceed 1.73 of them."""
    return noise.std() * np.random.default_rng().uniform(-(3**0.5), 3**0.5, noise.size)


class Repeated:
    """Draws noise once and uses it in every release."""

    def __init__(self, z: float, denominator: float) -> None:
        self._kept: F64 | None = None
        self._inner = Distorted(self._keep, z, denominator)
        self.release = self._inner.release

    def _keep(self, noise: F64) -> F64:
        if self._kept is None:
            self._kept = noise
        return self._kept


class DividesByCount:
    """Divides by how many took part, and still declares the public constant."""

    def __init__(self, z: float, denominator: float) -> None:
        self._real = GaussianMechanism(z, denominator)

    def release(self, bounded: BoundedSum, charge: Charge) -> NoisyMean:
        mean = self._real.release(bounded, charge)
        return replace(mean, values=mean.values * mean.denominator / max(bounded.count, 1))


class AcceptsAnyCharge:
    """Releases as often as asked, whatever the charge paid for before."""

    def __init__(self, z: float, denominator: float) -> None:
        self._real = GaussianMechanism(z, denominator)

    def release(self, bounded: BoundedSum, charge: Charge) -> NoisyMean:
        again = replace(bounded, blind=secrets.token_bytes(32))
        return self._real.release(again, replace(charge, step=again.step, sum_digest=again.digest))


class AcceptsAnyOnce(AcceptsAnyCharge):
    """Releases once under each charge, but does not look which sum the charge paid for."""

    _used: ClassVar[set[str]] = set()

    def release(self, bounded: BoundedSum, charge: Charge) -> NoisyMean:
        if charge.sum_digest in self._used:
            raise ChargeMismatch("used before")
        self._used.add(charge.sum_digest)
        return super().release(bounded, charge)


def no_clip(updates: PhoneUpdates, bound: float) -> ClippedRows:
    return replace(clip_rows(updates.values, bound), values=updates.values)


def clip_doubled(updates: PhoneUpdates, bound: float) -> ClippedRows:
    return clip_rows(updates.values, 2 * bound)


def clip_per_layer(updates: PhoneUpdates, bound: float) -> ClippedRows:
    whole = clip_rows(updates.values, bound)
    if updates.values.shape[1] % LAYERS:
        return whole
    parts = np.split(updates.values, LAYERS, axis=1)
    return replace(whole, values=np.concatenate([clip_rows(part, bound).values for part in parts], axis=1))


def weigh_by_examples(updates: PhoneUpdates, bound: float) -> ClippedRows:
    rows = clip_rows(updates.values, bound)
    return replace(rows, values=rows.values * (updates.examples / 10.0)[:, None])


def nan_becomes_zero(updates: PhoneUpdates, bound: float) -> ClippedRows:
    return clip_rows(np.nan_to_num(updates.values, nan=0.0, posinf=1.0, neginf=-1.0), bound)


def nan_goes_on(updates: PhoneUpdates, bound: float) -> ClippedRows:
    """Clip by min(1, C / norm), which is 1 for a norm of NaN."""
    with np.errstate(all="ignore"):
        norms = np.sqrt(np.sum(updates.values**2, axis=1))
        factors = np.minimum(np.nan_to_num(bound / norms, nan=1.0), 1.0)
        values = updates.values * factors[:, None]
    return ClippedRows(values, norms, norms > bound, np.ones(len(norms), dtype=np.bool_), bound)


def publish_count_too(mean: NoisyMean, bounded: BoundedSum) -> Publication:
    return {**publish_mean(mean, bounded), "cohort": Published(np.array([float(bounded.count)]), None)}


def publish_twice(mean: NoisyMean, bounded: BoundedSum) -> Publication:
    return {**publish_mean(mean, bounded), "mean again": Published(mean.values, mean.charge_id)}


def publish_uncharged(mean: NoisyMean, bounded: BoundedSum) -> Publication:
    return publish_mean(replace(mean, charge_id=None), bounded)


def fit_too_long(rows: ClippedRows, trained: NDArray[np.bool_], scale: float) -> F64:
    return append_fit(rows, trained, 4 * scale)


def wrong_sign(settings: AdaptiveClipSettings, clip: float, released: float, scale: float) -> float:
    return clip * clip / settings.next_clip(clip, released, scale)


FAULTS: dict[str, Pipeline] = {
    "no noise": Pipeline(new_mechanism=lambda z, d: Distorted(np.zeros_like, z, d)),
    "noise halved": Pipeline(new_mechanism=lambda z, d: Distorted(lambda noise: noise / 2, z, d)),
    "noise misses a coordinate": Pipeline(new_mechanism=lambda z, d: Distorted(last_bare, z, d)),
    "noise uniform": Pipeline(new_mechanism=lambda z, d: Distorted(uniform, z, d)),
    "noise is NaN": Pipeline(new_mechanism=lambda z, d: Distorted(lambda noise: noise * np.nan, z, d)),
    "noise reused": Pipeline(new_mechanism=Repeated),
    "no clip": Pipeline(clip=no_clip),
    "no clip, fold careless": Pipeline(clip=no_clip, new_fold=CarelessFold),
    "clip doubled": Pipeline(clip=clip_doubled),
    "clip doubled, fold careless": Pipeline(clip=clip_doubled, new_fold=CarelessFold),
    "clip per layer": Pipeline(clip=clip_per_layer),
    "clip per layer, fold careless": Pipeline(clip=clip_per_layer, new_fold=CarelessFold),
    "weight by examples": Pipeline(clip=weigh_by_examples),
    "weight by examples, fold careless": Pipeline(clip=weigh_by_examples, new_fold=CarelessFold),
    "divided by the count": Pipeline(new_mechanism=DividesByCount),
    "NaN passes as zero": Pipeline(clip=nan_becomes_zero),
    "NaN goes on": Pipeline(clip=nan_goes_on),
    "count unaccounted": Pipeline(publish=publish_count_too),
    "mean uncharged": Pipeline(publish=publish_uncharged),
    "two releases, one charge": Pipeline(new_mechanism=AcceptsAnyCharge),
    "charge of another sum": Pipeline(new_mechanism=AcceptsAnyOnce),
    "count coordinate too long": Pipeline(append_fit=fit_too_long),
    "published twice": Pipeline(publish=publish_twice),
    "adaptive clip of wrong sign": Pipeline(next_clip=wrong_sign),
}

LEAKS = (
    "no noise",
    "noise halved",
    "no clip, fold careless",
    "clip doubled, fold careless",
    "clip per layer, fold careless",
    "weight by examples, fold careless",
)
"""Faults that canaries alone must show, without any probe."""
