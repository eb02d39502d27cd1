from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import ChargeMismatch, InvalidSpend, PrivacyError
from fedlearn.privacy.correlated import LARGEST_SLACK, CorrelatedMechanism
from fedlearn.privacy.events import MatrixGaussian
from fedlearn.privacy.exact_normal import rounded_normal
from fedlearn.privacy.exact_scalar import ByteSource
from fedlearn.privacy.factorization import Blt, Factorization, Toeplitz, Tree
from fedlearn.privacy.grid import grid_step
from fedlearn.privacy.mechanisms import Mechanism
from fedlearn.privacy.recurrence import Recurrence, recurrence_for, state_from_bytes, state_to_bytes

_spec = importlib.util.spec_from_file_location("noise_town", Path(__file__).with_name("noise_town.py"))
town = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = town
_spec.loader.exec_module(town)

STEPS = 12
TOO_FAR = 7.0
"""Standard errors: of 144 entries of a covariance, one is farther off by chance once in 10^9 runs."""

EVERY = pytest.mark.parametrize("name", list(town.EVERY))
ROUNDED = pytest.mark.parametrize("name", ["banded", "full", "blt"])


def fixed_bytes(seed: int = 7) -> ByteSource:
    return np.random.Generator(np.random.Philox(key=seed)).bytes


# --- what is released ---


@EVERY
def test_the_released_noise_has_the_mechanisms_covariance(name: str, tmp_path: Path) -> None:
    mechanism = town.opened(town.event(town.EVERY[name]), tmp_path)
    checked: Mechanism = mechanism
    assert checked is mechanism
    noise = np.array([town.released_noise(mechanism) for _ in range(STEPS)])
    std = town.scale_of(mechanism.slack)
    maps = {other: town.noise_map(factorization, STEPS) for other, factorization in town.EVERY.items()}
    assert town.misfit(noise, maps[name], std) < TOO_FAR
    for other, wrong in maps.items():
        assert other == name or town.misfit(noise, wrong, std) > TOO_FAR
    assert town.misfit(noise, maps[name], 0.95 * std) > TOO_FAR


@EVERY
def test_the_reported_std_is_that_of_the_step(name: str, tmp_path: Path) -> None:
    mechanism = town.opened(town.event(town.EVERY[name]), tmp_path, dimension=5)
    mixing = town.noise_map(town.EVERY[name], STEPS)
    for step in range(STEPS):
        bounded = town.known_sum(step, 5)
        mean = mechanism.release(bounded, town.charge_for(bounded))
        std = town.NOISE * town.CLIP * (1 + mechanism.slack) * np.linalg.norm(mixing[step])
        assert mean.noise_std == pytest.approx(std / town.DENOMINATOR, rel=1e-9)


@EVERY
def test_the_added_noise_is_the_exact_map_up_to_the_proven_error(name: str, tmp_path: Path) -> None:
    """z = C zhat + e with |e| <= eta, in rational arithmetic over every released integer."""
    steps, size, factorization = 40, 6, town.EVERY[name]
    mechanism = town.opened(town.event(factorization, steps), tmp_path, dimension=size, byte_source=fixed_bytes())
    source = fixed_bytes()
    added: list[list[int]] = []
    worst = Fraction(0)
    for step in range(steps):
        added.append([int(value) for value in town.released_noise(mechanism, size)])
        assert mechanism.next_step == step + 1
        fresh = rounded_normal(size, mechanism._scale, source)
        for place in range(size):
            exact = exact_row(factorization, [row[place] for row in added])
            worst = max(worst, abs(int(fresh[place]) - exact))
    eta = mechanism._recurrence.error
    assert worst <= eta
    assert (worst == eta == 0) if name in {"tree", "independent"} else worst > Fraction(1, 4)
    assert eta < Fraction(6, 10)


def exact_row(factorization: Factorization, added: list[int]) -> Fraction:
    """Return [C zhat]_t for the last step t."""
    *before, last = added
    match factorization:
        case Tree():
            step = len(before)
            size = (step + 1) & -(step + 1)
            return Fraction(sum(added[step + 1 - size :]))
        case Toeplitz():
            pairs = zip(factorization.coefficients[1:], reversed(before), strict=False)
            return last + sum((Fraction(weight) * value for weight, value in pairs), Fraction(0))
        case Blt():
            total = Fraction(last)
            for decay, scale in zip(factorization.decay, factorization.scale, strict=True):
                buffer = Fraction(0)
                for value in before:
                    buffer = Fraction(decay) * buffer + value
                total += Fraction(scale) * buffer
            return total


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    name=st.sampled_from(["banded", "full", "blt", "tree", "independent"]),
    start=st.integers(0, 3),
    seed=st.integers(0, 1 << 30),
    aligned=st.booleans(),
)
def test_the_almost_sure_bound_behind_the_charge(name: str, start: int, seed: int, aligned: bool) -> None:
    """Replay the outputs of one run on a neighbouring data set: the means never differ by more than was charged.

    The neighbour lacks one unit, which moves its three sums by vectors as long as the clip norm.
    """
    size, factorization = 16, town.EVERY[name]
    clip = Fraction(town.CLIP) / Fraction(town.STEP)
    recurrence = recurrence_for(factorization, STEPS, 3 * clip)
    rng = np.random.Generator(np.random.Philox(key=seed))
    moved = np.zeros((STEPS, size), np.int64)
    for at in range(start, STEPS, 4):
        direction = np.ones(size) if aligned else rng.standard_normal(size)
        moved[at] = np.trunc(direction / np.linalg.norm(direction) * float(clip))
    zero = np.zeros((recurrence.rows, size), np.int64)
    one, two, means = zero, zero, []
    for step in range(STEPS):
        fresh = rounded_normal(size, 2 * clip, fixed_bytes(seed + step))
        noise, one = recurrence.advance(one, step, fresh)
        other = fresh_for(recurrence, two, step, noise + moved[step])
        _, two = recurrence.advance(two, step, other)
        means.append(other - fresh)
    differences = np.array(means)
    matrix = np.linalg.inv(town.noise_map(factorization, STEPS)) if name != "tree" else fenwick(STEPS)
    rounding = 2 * float(recurrence.error) * math.sqrt(size * STEPS)
    assert np.linalg.norm(differences - matrix @ moved) <= rounding + 1e-3  # f64 over 2^32: the matrix product itself
    worst = max(np.linalg.norm(matrix[:, range(first, STEPS, 4)].sum(axis=1)) for first in range(4))
    assert np.linalg.norm(differences) <= float(clip) * worst + rounding


def fresh_for(recurrence: Recurrence, state: np.ndarray, step: int, noise: np.ndarray) -> np.ndarray:
    """Return the z_t with which this state adds exactly ``noise``."""
    shift, _ = recurrence.advance(state, step, np.zeros_like(noise))
    return noise - shift


def fenwick(steps: int) -> np.ndarray:
    """Return the blocks that prefixes are made of, one row per step."""
    matrix = np.zeros((steps, steps))
    for end in range(1, steps + 1):
        matrix[end - 1, end - (end & -end) : end] = 1.0
    return matrix


def test_the_trees_blocks_undo_its_map() -> None:
    released = fenwick(STEPS) @ town.tree_map(STEPS)  # the noise of each block, one step after another
    assert np.allclose(released @ released.T, np.eye(STEPS))


# --- slack ---


@pytest.mark.parametrize(
    ("min_separation", "most", "factorization"),
    [
        (100, 21, Blt((0.98822650, 0.61265134), (0.23558205, 0.27022327))),
        (400, 6, Blt((0.99586201, 0.80867818), (0.12404838, 0.33325889))),
    ],
)
def test_slack_at_full_size(min_separation: int, most: int, factorization: Blt) -> None:
    spent = MatrixGaussian(factorization, 2048, min_separation, most, 8.35)
    scale = Fraction(8.35) * 2**31
    recurrence = recurrence_for(spent.factorization, spent.steps, scale)
    slack = 2 * recurrence.error * math.isqrt(2048 * 10**6) / 2**30  # clip / step is in [2^30, 2^31)
    assert slack < Fraction(1, 10_000)


def test_noise_is_enlarged_by_the_slack(tmp_path: Path) -> None:
    mechanism = town.opened(town.event(town.BLT), tmp_path, dimension=1_000)
    ratio = mechanism._scale / (Fraction(town.NOISE) * Fraction(town.CLIP) / Fraction(town.STEP))
    eta = mechanism._recurrence.error
    assert (ratio - 1) * Fraction(town.CLIP) / Fraction(town.STEP) >= 2 * eta * Fraction(math.isqrt(12 * 1_000))
    assert float(ratio - 1) == mechanism.slack > 0
    assert town.opened(town.event(town.EVERY["tree"]), tmp_path / "tree", dimension=9).slack == 0


def test_a_grid_too_coarse_for_the_rounding_is_refused(tmp_path: Path) -> None:
    def coarse(bits: int) -> CorrelatedMechanism:
        return CorrelatedMechanism.open(
            "run",
            town.event(town.BLT),
            1.0,
            l2_sensitivity=1.0,
            grid_step=2.0**-bits,
            dimension=10_000,
            next_step=0,
            directory=tmp_path / str(bits),
        )

    assert 0 < coarse(17).slack < LARGEST_SLACK
    with pytest.raises(InvalidSpend, match="smaller grid step"):
        coarse(14)
    assert not (tmp_path / "14").exists()


@EVERY
def test_noise_too_wide_for_the_state_is_refused(name: str, tmp_path: Path) -> None:
    spent = town.event(town.EVERY[name], noise_multiplier=1e5)
    with pytest.raises(InvalidSpend, match="48-bit"):
        town.opened(spent, tmp_path, dimension=3)
    assert not list(tmp_path.iterdir())


def test_a_state_too_large_to_encrypt_at_once_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpend, match="2 GiB"):
        town.opened(town.event(town.BLT), tmp_path, dimension=1 << 28)
    assert not list(tmp_path.iterdir())


@EVERY
def test_noise_beyond_sixteen_deviations_ends_the_mechanism(name: str) -> None:
    scale = Fraction(2**32)
    recurrence = recurrence_for(town.EVERY[name], STEPS, scale)
    zero = np.zeros((recurrence.rows, 2), np.int64)
    recurrence.advance(zero, 0, np.array([15 * 2**32, -15 * 2**32]))
    for bad in (2**50, -(2**50)):
        with pytest.raises(PrivacyError, match="16 standard deviations"):
            recurrence.advance(zero, 0, np.array([0, bad]))


@ROUNDED
def test_whatever_state_is_accepted_is_stored_exactly(name: str) -> None:
    """Noise that pushes the state in one direction until it is refused never leaves 48 bits unseen."""
    push = np.array([15 * 2**32, -15 * 2**32])
    for signs in (np.ones(STEPS), (-1.0) ** np.arange(STEPS)):
        recurrence = recurrence_for(town.EVERY[name], STEPS, Fraction(2**32))
        state = np.zeros((recurrence.rows, 2), np.int64)
        accepted = 0
        with contextlib.suppress(PrivacyError):
            for step, sign in enumerate(signs):
                _, state = recurrence.advance(state, step, int(sign) * push)
                assert (state_from_bytes(state_to_bytes(state), *state.shape) == state).all()
                accepted += 1
        assert accepted >= 1


def test_noise_that_piles_up_in_a_buffer_ends_the_mechanism() -> None:
    """Each step's noise is within its limit, their sum outgrows 48 bits: refused, never wrapped around."""
    recurrence = recurrence_for(Blt((0.999, 0.4), (0.5, 0.3)), STEPS, Fraction(2**40))
    push = np.array([15 * 2**40])
    heights = [0.0]

    def pile_up() -> None:
        state = np.zeros((2, 1), np.int64)
        for step in range(STEPS):
            _, state = recurrence.advance(state, step, fresh_for(recurrence, state, step, push))
            assert (state_from_bytes(state_to_bytes(state), 2, 1) == state).all()
            heights.append(state.max() / 2**recurrence._fraction_bits)

    with pytest.raises(PrivacyError, match="16 standard deviations"):
        pile_up()
    assert push[0] <= heights[-1] < STEPS * push[0]


def test_a_tree_remembers_active_blocks_only() -> None:
    recurrence = recurrence_for(Tree(), STEPS, Fraction(2**32))
    state = np.zeros((recurrence.rows, 1), np.int64)
    for step in range(STEPS):
        _, state = recurrence.advance(state, step, np.array([step + 1]))
        assert (state[:, 0] > 0).tolist() == [bool((step + 1) >> level & 1) for level in range(recurrence.rows)]


def test_values_of_48_bits() -> None:
    edges = np.array([[0, 1, -1, 2**47 - 1], [-(2**47), 2**40 + 12345, -(2**40) - 1, 255]])
    content = state_to_bytes(edges)
    assert len(content) == 6 * edges.size
    assert (state_from_bytes(content, 2, 4) == edges).all()
    with pytest.raises(PrivacyError, match="bytes"):
        state_from_bytes(content[:-1], 2, 4)


# --- refusals ---


def test_steps_are_strictly_in_order(tmp_path: Path) -> None:
    mechanism = town.opened(town.event(town.BLT), tmp_path, dimension=4)
    town.released_noise(mechanism, 4)
    for wrong in (0, 2, -1):
        bounded = town.known_sum(wrong % 100, 4)
        bounded = dataclasses.replace(bounded, step=wrong)
        with pytest.raises(ChargeMismatch, match="out of order"):
            mechanism.release(bounded, town.charge_for(bounded))
    town.released_noise(mechanism, 4)  # no harm done
    assert mechanism.next_step == 2


def test_no_step_past_the_analysed_ones(tmp_path: Path) -> None:
    mechanism = town.opened(town.event(town.BANDED, 4), tmp_path, dimension=4)
    for _ in range(4):
        town.released_noise(mechanism, 4)
    with pytest.raises(InvalidSpend, match="4 steps were analysed"):
        town.released_noise(mechanism, 4)
    for next_step in (-1, 5):
        with pytest.raises(InvalidSpend, match="next_step"):
            town.opened(town.event(town.BANDED, 4), tmp_path, dimension=4, next_step=next_step)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"l2_sensitivity": 2 * town.CLIP}, "adaptive clipping"),
        ({"l2_sensitivity": town.CLIP / 2}, "adaptive clipping"),
        ({"grid_step": town.STEP / 2}, "grid_step"),
        ({"grid_step": None}, "grid_step"),
        ({"values": np.zeros(5)}, "shape"),
        ({"values": np.full(4, math.nan)}, "not finite"),
        ({"values": np.full(4, town.STEP / 2)}, "multiples"),
    ],
)
def test_a_sum_of_another_kind_is_refused(change: dict[str, object], word: str, tmp_path: Path) -> None:
    mechanism = town.opened(town.event(town.BLT), tmp_path, dimension=4, byte_source=never)
    bounded = dataclasses.replace(town.known_sum(0, 4), **change)
    with pytest.raises(InvalidSpend, match=word):
        mechanism.release(bounded, town.charge_for(bounded))


def never(count: int) -> bytes:
    raise AssertionError(f"{count} bytes drawn")


def test_a_charge_pays_for_one_sum_once(tmp_path: Path) -> None:
    mechanism = town.opened(town.event(town.BLT), tmp_path, dimension=4)
    first, second = town.known_sum(0, 4), town.known_sum(0, 4)
    charge = town.charge_for(first)
    for wrong in (dataclasses.replace(charge, noise_multiplier=1.0), town.charge_for(second)):
        with pytest.raises(ChargeMismatch):
            mechanism.release(first, wrong)
    mechanism.release(first, charge)
    again = town.opened(town.event(town.BLT), tmp_path, dimension=4)
    with pytest.raises(ChargeMismatch, match="used before"):
        again.release(first, charge)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("denominator", 0.0),
        ("l2_sensitivity", -1.0),
        ("l2_sensitivity", math.inf),
        ("grid_step", math.nan),
        ("dimension", 0),
    ],
)
def test_arguments_out_of_range(argument: str, value: float, tmp_path: Path) -> None:
    arguments: dict[str, object] = {"l2_sensitivity": 1.0, "grid_step": grid_step(1.0), "dimension": 4}
    arguments |= {"denominator": 2.0, "next_step": 0, "directory": tmp_path, argument: value}
    with pytest.raises(InvalidSpend, match=argument):
        CorrelatedMechanism.open("run", town.event(town.BLT), **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        (lambda base: {**base, "l2_sensitivity": 0.5}, "l2_sensitivity"),
        (lambda base: {**base, "grid_step": base["grid_step"] / 2}, "grid_step"),
        (lambda base: {**base, "event": town.event(town.BLT, noise_multiplier=3.0)}, "event"),
        (lambda base: {**base, "event": town.event(town.BANDED)}, "event"),
        (lambda base: {**base, "dimension": 3}, "dimension"),
    ],
)
def test_nothing_may_change_within_a_run(
    changed: Callable[[dict[str, object]], dict[str, object]], word: str, tmp_path: Path
) -> None:
    base: dict[str, object] = {"event": town.event(town.BLT), "l2_sensitivity": town.CLIP, "grid_step": town.STEP}
    base |= {"dimension": 4, "next_step": 0, "directory": tmp_path, "denominator": 1.0, "run_id": "run"}
    CorrelatedMechanism.open(**base)
    with pytest.raises(InvalidSpend, match=f"{word}: changed within run"):
        CorrelatedMechanism.open(**changed(base))
    CorrelatedMechanism.open(**base)  # the refusal destroyed nothing


def test_nothing_secret_is_shown(tmp_path: Path) -> None:
    mechanism = town.opened(town.event(town.BLT), tmp_path, dimension=4)
    assert "_state" not in repr(mechanism)
    assert "array" not in repr(mechanism)
