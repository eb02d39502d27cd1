"""Structural probes: known-bad inputs and invariants that no canary shows. Each says what is wrong, or nothing.

Statistical ones (is the noise as large as declared, are two draws related) reject at six standard errors: a sound path
fails one of them in fewer than one of a million audits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np
from scipy import stats

from fedlearn.clip import joint_bound
from fedlearn.errors import ChargeMismatch
from fedlearn.lab.audit.pipeline import PhoneUpdates, Pipeline, PrivatePath
from fedlearn.lab.audit.simulation import AuditConfig, new_path, released_mean
from fedlearn.privacy.adaptive_clip import AdaptiveClipSettings
from fedlearn.rng import simulation_rng
from fedlearn.types import F64

STANDARD_ERRORS: Final = 6.0
IMPROBABLE: Final = 1e-9
RELEASES: Final = 4
_ADAPTIVE_ROUNDS: Final = 100


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe found.

    Args:
        name: stable name.
        invariant: what must hold.
        problem: what was seen instead; empty where it holds.
    """

    name: str
    invariant: str
    problem: str

    @property
    def passed(self) -> bool:
        """Whether the invariant held."""
        return not self.problem


@dataclass(frozen=True, slots=True)
class Bench:
    """What a probe works on."""

    pipeline: Pipeline
    config: AuditConfig

    def path(self) -> PrivatePath:
        """Return an unused path."""
        return new_path(self.pipeline, self.config)

    def updates(self, count: int, length: float, examples: int = 1) -> PhoneUpdates:
        """Return ``count`` random updates of ``length`` clip norms each."""
        drawn = simulation_rng(self.config.seed, -1, "", "probe").standard_normal((count, self.config.parameters))
        drawn *= length * self.path().l2_clip_norm / np.linalg.norm(drawn, axis=1, keepdims=True)
        return PhoneUpdates(drawn, np.full(count, examples, dtype=np.int64))

    def noise(self, phones: int) -> F64:
        """Return what a cohort of so many phones without any update releases."""
        return released_mean(self.path().run_round(self.updates(phones, 0.0)))


def run_probes(pipeline: Pipeline, config: AuditConfig) -> tuple[ProbeResult, ...]:
    """Run every probe; a stage that breaks down inside one fails it."""
    bench = Bench(pipeline, config)
    return tuple(ProbeResult(name, invariant, _problem(probe, bench)) for name, invariant, probe in _PROBES)


Probe = Callable[[Bench], str]


def _problem(probe: Probe, bench: Bench) -> str:
    try:
        return probe(bench)
    except Exception as error:  # noqa: BLE001 - whatever an audited stage raises is a finding, not a crash
        return f"a stage broke down: {type(error).__name__}: {error}"


def _not_finite(bench: Bench) -> str:
    sound = bench.updates(2, 0.5)
    expected = bench.path().bounded_sum(sound).values
    for bad in (math.nan, math.inf, -math.inf):
        row = sound.values[:1].copy()
        row[0, 0] = bad
        mixed = PhoneUpdates(np.concatenate([sound.values, row]), np.ones(3, dtype=np.int64))
        bounded = bench.path().bounded_sum(mixed)
        if bounded.count != 2 or not np.array_equal(bounded.values, expected):
            return f"an update with {bad} entered the sum"
    return ""


def _oversize(bench: Bench) -> str:
    bound = bench.path().l2_clip_norm
    for length in (1.5, 1e3, 1e200):
        norm = float(np.linalg.norm(bench.path().bounded_sum(bench.updates(1, length)).values))
        if not norm <= bound * (1.0 + 1e-12):
            return f"an update of {length:g} clip norms added {norm / bound:.6g} clip norms"
        if norm < 0.99 * bound:
            return f"an update of {length:g} clip norms added only {norm / bound:.6g} of one"
    return ""


def _weights(bench: Bench) -> str:
    one, many = (bench.path().bounded_sum(bench.updates(1, 0.5, examples)) for examples in (1, 1000))
    if one.count != 1 or many.count != 1:
        return f"a phone was counted {one.count} times with 1 example and {many.count} times with 1000"
    if np.array_equal(one.values, many.values):
        return ""
    ratio = float(np.linalg.norm(many.values) / np.linalg.norm(one.values))
    return f"1000 examples weigh {ratio:.4g} times as much as 1"


def _denominator(bench: Bench) -> str:
    few, many = bench.noise(1), bench.noise(16)
    ratio = float(many.std() / few.std()) if few.std() > 0 else 1.0
    tolerance = STANDARD_ERRORS * math.sqrt(1.0 / bench.config.parameters)
    if not abs(math.log(max(ratio, 1e-300))) <= tolerance:
        return f"16 phones instead of 1 scale what is released by {ratio:.4g}"
    return ""


def _noise_scale(bench: Bench) -> str:
    path = bench.path()
    declared = path.noise_multiplier * path.l2_clip_norm / path.denominator
    drawn = np.stack([bench.noise(1) for _ in range(RELEASES)])
    bare = int((~drawn.any(axis=0)).sum())
    if bare:
        return f"{bare} of {drawn.shape[1]} coordinates get no noise"
    ratio = math.sqrt(float(np.mean(drawn**2))) / declared
    # "not <=" rather than ">": NaN must not pass
    if not abs(ratio - 1.0) <= STANDARD_ERRORS / math.sqrt(2.0 * drawn.size):
        return f"the noise has {ratio:.4g} times the declared standard deviation"
    if stats.kstest(drawn.ravel() / declared, "norm").pvalue < IMPROBABLE:
        return "the noise is not normally distributed"
    return ""


def _fresh_noise(bench: Bench) -> str:
    path = bench.path()
    draws = [released_mean(path.run_round(bench.updates(1, 0.0))) for _ in range(RELEASES)]
    if any(not draw.any() for draw in draws):
        return "a release without noise"
    for left, right in combinations(draws, 2):
        cosine = float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))
        if not abs(cosine) <= STANDARD_ERRORS / math.sqrt(left.size):
            return f"the noise of two releases has correlation {cosine:.3g}"
    return ""


def _charge_once(bench: Bench) -> str:
    path = bench.path()
    bounded = path.bounded_sum(bench.updates(1, 0.5))
    charge = path.charges.charge(bounded)
    path.mechanism.release(bounded, charge)
    for mechanism in (path.mechanism, bench.path().mechanism):
        try:
            mechanism.release(bounded, charge)
        except ChargeMismatch:
            continue
        return "one charge paid for two releases"
    return ""


def _charge_own(bench: Bench) -> str:
    path = bench.path()
    first, second = (path.bounded_sum(bench.updates(1, 0.5)) for _ in range(2))
    # Same step, so that only the digest tells the two sums apart.
    charge = path.charges.charge(replace(first, step=second.step))
    try:
        path.mechanism.release(second, charge)
    except ChargeMismatch:
        return ""
    return "the charge of one sum paid for another"


def _paid_numbers(bench: Bench) -> str:
    path = bench.path()
    small, large = (path.run_round(bench.updates(count, 0.5)) for count in (3, 5))
    problem = unpaid(path)
    if problem:
        return problem
    if small.keys() != large.keys():
        return "what is published depends on the cohort"
    for name, published in small.items():
        if published.charge_id is None and not np.array_equal(published.value, large[name].value):
            return f"{name!r} has no charge, yet it depends on the cohort"
    return ""


def unpaid(path: PrivatePath) -> str:
    """Say which published number lacks a charge of its own among those of the path."""
    used: set[int] = set()
    for number, publication in enumerate(path.publications):
        for name, published in publication.items():
            paid_by = published.charge_id
            if name == "mean" and paid_by is None:
                return f"round {number}: the mean has no charge"
            if paid_by is None:
                continue
            if paid_by not in path.charges.ids:
                return f"round {number}: {name!r} names charge {paid_by}, which was never made"
            if paid_by in used:
                return f"round {number}: {name!r} was released under charge {paid_by}, which paid before"
            used.add(paid_by)
    return ""


def _fit_bounded(bench: Bench) -> str:
    bound, scale = bench.path().l2_clip_norm, 0.3
    rows = bench.pipeline.clip(bench.updates(2, 10.0), bound)
    joint = bench.pipeline.append_fit(rows, np.ones(2, dtype=np.bool_), scale)
    norm = float(np.linalg.norm(joint, axis=1).max())
    if norm > joint_bound(bound, scale) * (1.0 + 1e-12):
        return f"an update with its coordinate has norm {norm:.6g}, over the bound {joint_bound(bound, scale):.6g}"
    return ""


def _clip_adapts(bench: Bench) -> str:
    norms = np.exp(np.linspace(-0.5, 0.5, 101))  # median 1
    for start in (0.1, 10.0):
        end = _adapted(bench.pipeline, start, norms)
        if not (end > 0 and abs(math.log(end)) < 0.5 * abs(math.log(start))):
            return f"for norms around 1, the clip norm went from {start:g} to {end:.3g}"
    return ""


def _adapted(pipeline: Pipeline, start: float, norms: F64) -> float:
    """Run the loop of an adaptive clip over phones whose norms never change, without noise."""
    settings, clip = AdaptiveClipSettings(initial=start), start
    updates = PhoneUpdates(norms[:, None], np.ones(len(norms), dtype=np.int64))
    for _ in range(_ADAPTIVE_ROUNDS):
        scale = settings.ratio(1.0) * clip
        joint = pipeline.append_fit(pipeline.clip(updates, clip), np.ones(len(norms), dtype=np.bool_), scale)
        clip = pipeline.next_clip(settings, clip, float(joint[:, -1].mean()), scale)
    return clip


_PROBES: Final[tuple[tuple[str, str, Probe], ...]] = (
    ("not_finite_refused", "an update with NaN or infinity stays out; the others are summed", _not_finite),
    ("oversize_clipped", "an update of any length adds at most the clip norm", _oversize),
    ("one_unit_a_phone", "a phone's number of examples does not change its weight", _weights),
    ("public_denominator", "the divisor does not depend on who took part", _denominator),
    ("noise_as_declared", "every coordinate gets normal noise of the declared size", _noise_scale),
    ("fresh_noise", "no two releases share noise", _fresh_noise),
    ("charge_pays_once", "a charge pays for one release", _charge_once),
    ("charge_pays_its_own", "a charge pays for its own sum only", _charge_own),
    ("numbers_are_paid", "what depends on phones has a charge of its own; the rest is constant", _paid_numbers),
    ("fit_bounded", "an update with the coordinate of an adaptive clip keeps its joint bound", _fit_bounded),
    ("clip_adapts", "an adaptive clip norm moves toward the norms that it sees", _clip_adapts),
)
