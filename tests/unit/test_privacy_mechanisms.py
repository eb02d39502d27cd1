from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import struct
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from threading import Barrier

import numpy as np
import pytest
from scipy.stats import kstest

from fedlearn.errors import ChargeMismatch, InvalidSpend
from fedlearn.privacy import mechanisms as module
from fedlearn.privacy.exact_normal import rounded_normal
from fedlearn.privacy.exact_scalar import ByteSource
from fedlearn.privacy.grid import grid_step
from fedlearn.privacy.mechanisms import GaussianMechanism, Mechanism, unprotected_mean
from fedlearn.types import BoundedSum, Charge

STEP = grid_step(2.0)


def fixed_bytes(seed: int = 7) -> ByteSource:
    return np.random.Generator(np.random.Philox(key=seed)).bytes


def zeros(size: int = 4, step: int = 3) -> BoundedSum:
    return BoundedSum(values=np.zeros(size), l2_sensitivity=2.0, grid_step=STEP, step=step, count=5)


def charge_for(bounded: BoundedSum, noise_multiplier: float = 1.5, identity: int = 11) -> Charge:
    return Charge(id=identity, step=bounded.step, noise_multiplier=noise_multiplier, sum_digest=bounded.digest)


def test_noise_is_scaled_by_the_sensitivity_that_travels_with_the_sum() -> None:
    bounded = zeros(size=1_000_000)
    mechanism: Mechanism = GaussianMechanism(1.5, 50.0, byte_source=fixed_bytes())
    mean = mechanism.release(bounded, charge_for(bounded))
    assert mean.noise_std == 1.5 * 2.0 / 50.0
    assert (mean.denominator, mean.charge_id) == (50.0, 11)
    assert kstest(mean.values, "norm", args=(0, mean.noise_std)).pvalue > 1e-3


def test_the_std_is_the_exact_product_of_multiplier_and_sensitivity(monkeypatch: pytest.MonkeyPatch) -> None:
    """In f64 0.1 * 0.7 / step may come out below; the rational never does."""
    asked: list[Fraction] = []

    def recorded(count: int, scale: Fraction, source: ByteSource) -> np.ndarray:
        asked.append(scale)
        return rounded_normal(count, scale, source)

    monkeypatch.setattr(module, "rounded_normal", recorded)
    bounded = dataclasses.replace(zeros(), l2_sensitivity=0.7)
    GaussianMechanism(0.1, 50.0).release(bounded, charge_for(bounded, 0.1))
    assert asked == [Fraction(0.1) * Fraction(0.7) / Fraction(STEP)]


def test_one_percent_less_noise_is_noticed() -> None:
    bounded = zeros(size=1_000_000)
    mean = GaussianMechanism(1.5, 50.0).release(bounded, charge_for(bounded))
    spread = mean.values.std() / mean.noise_std
    assert abs(spread - 1) < 6 / math.sqrt(2 * mean.values.size)  # 0.4 %
    assert abs(0.99 * spread - 1) > 6 / math.sqrt(2 * mean.values.size)


def test_two_releases_never_share_noise() -> None:
    mechanism = GaussianMechanism(1.5, 50.0)
    first, second = zeros(step=3), zeros(step=4)
    one = mechanism.release(first, charge_for(first, identity=1)).values
    two = mechanism.release(second, charge_for(second, identity=2)).values
    assert (one != two).any()


def test_the_release_lies_on_the_grid_around_the_sum() -> None:
    exact = BoundedSum(np.array([5.0, -3.0]) * STEP, 2.0, STEP, 0, 1)
    mean = GaussianMechanism(1.0, 1.0, byte_source=fixed_bytes()).release(exact, charge_for(exact, 1.0))
    assert (np.rint(mean.values / STEP) * STEP == mean.values).all()
    noise = rounded_normal(2, Fraction(2) / Fraction(STEP), fixed_bytes())
    assert (mean.values == exact.values + noise * STEP).all()


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("step", 4, "step 4"),
        ("noise_multiplier", 1.6, "noise multiplier"),
        ("sum_digest", "0" * 64, "another sum"),
    ],
)
def test_a_charge_for_something_else_is_refused(field: str, value: object, word: str) -> None:
    bounded = zeros()
    drawn: list[int] = []
    mechanism = GaussianMechanism(1.5, 50.0, byte_source=lambda count: drawn.append(count) or b"\x01" * count)
    with pytest.raises(ChargeMismatch, match=word):
        mechanism.release(bounded, dataclasses.replace(charge_for(bounded), **{field: value}))
    assert not drawn
    mechanism.release(bounded, charge_for(bounded))  # the refusal did not use the charge up


def test_a_charge_pays_once() -> None:
    bounded = zeros()
    mechanism = GaussianMechanism(1.5, 50.0)
    mechanism.release(bounded, charge_for(bounded))
    with pytest.raises(ChargeMismatch, match="used before"):
        mechanism.release(bounded, charge_for(bounded))


def test_a_charge_pays_once_across_mechanism_objects() -> None:
    bounded = zeros()
    GaussianMechanism(1.5, 50.0).release(bounded, charge_for(bounded))
    for charge in (charge_for(bounded), charge_for(bounded, identity=12)):
        with pytest.raises(ChargeMismatch, match="used before"):
            GaussianMechanism(1.5, 50.0).release(bounded, charge)


@pytest.mark.parametrize("objects", [1, 8])
def test_a_charge_pays_once_across_threads(objects: int) -> None:
    """All eight wait inside the sum's digest, so that they come to the claim together."""
    barrier = Barrier(8, timeout=60)

    class Slow(BoundedSum):
        @property
        def digest(self) -> str:
            barrier.wait()
            return BoundedSum.digest.fget(self)

    plain = zeros()
    slow = Slow(**{field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)})
    mechanisms = [GaussianMechanism(1.5, 50.0) for _ in range(objects)]

    def release(number: int) -> bool:
        try:
            mechanisms[number % objects].release(slow, charge_for(plain))
        except ChargeMismatch:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(release, range(8))) == 1


def test_equal_sums_have_different_digests() -> None:
    """The digest is stored for ever; were it a function of the sum, it would tell who was in it."""
    one, two = zeros(), zeros()
    assert one.values.tobytes() == two.values.tobytes()
    assert one.digest == one.digest
    assert one.digest != two.digest
    public = struct.pack("<qdd", one.step, one.grid_step, one.l2_sensitivity) + one.values.tobytes()
    for guess in (public, bytes(32) + public):
        assert hashlib.sha256(guess).hexdigest() != one.digest
    assert hashlib.sha256(one.blind + public).hexdigest() == one.digest
    assert len(one.blind) == 32
    assert one.blind != two.blind
    assert "blind" not in repr(one)


def test_a_charge_does_not_pay_for_an_equal_sum() -> None:
    one, two = zeros(), zeros()
    with pytest.raises(ChargeMismatch, match="another sum"):
        GaussianMechanism(1.5, 50.0).release(two, charge_for(one))


def test_a_charge_is_used_up_even_if_the_draw_fails() -> None:
    def broken(count: int) -> bytes:
        raise OSError("no entropy")

    bounded = zeros()
    mechanism = GaussianMechanism(1.5, 50.0, byte_source=broken)
    with pytest.raises(OSError, match="no entropy"):
        mechanism.release(bounded, charge_for(bounded))
    with pytest.raises(ChargeMismatch, match="used before"):
        mechanism.release(bounded, charge_for(bounded))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sum_that_is_not_finite_is_refused(bad: float) -> None:
    bounded = dataclasses.replace(zeros(), values=np.array([0.0, bad]))
    with pytest.raises(InvalidSpend, match="not finite"):
        GaussianMechanism(1.5, 50.0).release(bounded, charge_for(bounded))
    with pytest.raises(InvalidSpend, match="not finite"):
        unprotected_mean(bounded, 50.0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"grid_step": None}, "integer grid"),
        ({"grid_step": 0.0}, "grid_step"),
        ({"grid_step": 3.0}, "power of two"),
        ({"values": np.array([STEP * 2.0**62])}, "2.62"),
        ({"values": np.array([1e300]), "grid_step": 2.0**-1000}, "2.62"),
        ({"values": np.array([5e-324]), "grid_step": 2.0**10}, "multiples"),
        ({"l2_sensitivity": 1e300}, "2.50"),
        ({"values": np.array([STEP / 2])}, "multiples"),
        ({"l2_sensitivity": 0.0}, "l2_sensitivity"),
        ({"l2_sensitivity": math.inf}, "l2_sensitivity"),
    ],
)
def test_a_sum_off_its_grid_is_refused(change: dict[str, object], word: str) -> None:
    bounded = dataclasses.replace(zeros(), **change)
    with pytest.raises(InvalidSpend, match=word):
        GaussianMechanism(1.5, 50.0).release(bounded, charge_for(bounded))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_parameters_out_of_range(bad: float) -> None:
    with pytest.raises(InvalidSpend, match="noise_multiplier"):
        GaussianMechanism(bad, 50.0)
    with pytest.raises(InvalidSpend, match="denominator"):
        GaussianMechanism(1.0, bad)
    with pytest.raises(InvalidSpend, match="denominator"):
        unprotected_mean(zeros(), bad)


def test_no_seed_can_reach_a_release() -> None:
    for function in (GaussianMechanism.__init__, GaussianMechanism.release, rounded_normal):
        assert not [name for name in inspect.signature(function).parameters if "seed" in name or "rng" in name]


def test_privacy_off_adds_nothing_and_says_so() -> None:
    bounded = BoundedSum(np.array([1.0, 2.0]), 2.0, None, 0, 4)
    mean = unprotected_mean(bounded, 4.0)
    assert mean.values.tolist() == [0.25, 0.5]
    assert (mean.noise_std, mean.charge_id) == (0.0, None)
