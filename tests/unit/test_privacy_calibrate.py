from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fedlearn.errors import CannotCalibrate
from fedlearn.privacy import calibrate as module
from fedlearn.privacy.accountants import REPORTED, SEARCHING, epsilon
from fedlearn.privacy.calibrate import MIN_NOISE_MULTIPLIER, calibrate
from fedlearn.privacy.events import PoissonGaussian


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDLEARN_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("target", "delta", "q", "steps"), [(1.0, 1e-4, 0.05, 60), (0.05, 1e-6, 0.01, 100), (0.5, 1e-3, 1.0, 20)]
)
def test_certified_and_not_a_grid_point_more_than_needed(target: float, delta: float, q: float, steps: int) -> None:
    z = calibrate(target, delta, q, steps)
    unit = 10.0 ** (math.floor(math.log10(z)) - 4)
    assert epsilon([(PoissonGaussian(z, q), steps)], delta) <= target
    assert epsilon([(PoissonGaussian(z - unit, q), steps)], delta) > target
    assert z == float(f"{z:.5g}")


def test_a_pfl_row() -> None:
    # Apple pfl-research language-model baseline: population 1e6, cohort 5000, T=2000, (2, 1e-6). The known .8641 is
    # what the searching grid gives to four digits; the reported grid certifies slightly less noise, .86389 to five.
    def spent(noise: float, discretization: float) -> float:
        return epsilon([(PoissonGaussian(noise, 5000 / 1e6), 2000)], 1e-6, discretization=discretization)

    assert spent(0.8641, SEARCHING) == pytest.approx(2.0, rel=1e-4)
    assert spent(0.86389, REPORTED) <= 2.0 < spent(0.86388, REPORTED)


def smooth(noise: float, discretization: float) -> float:
    """A stand-in for epsilon: falls with noise, a little larger on the searching grid."""
    return (1 + 4 * discretization) / noise


@pytest.mark.parametrize("target", [1e-5, 0.013, 0.7, 3.0, 17.77])
def test_search_finds_the_least_point_of_five_digits(target: float) -> None:
    z = module._search(smooth, target)
    unit = 10.0 ** (math.floor(math.log10(z)) - 4)
    assert smooth(z, REPORTED) <= target < smooth(z - unit, REPORTED)


def test_search_recovers_when_the_searching_grid_misleads() -> None:
    def crossed(noise: float, discretization: float) -> float:
        return (1.01 if discretization == REPORTED else 1.0) / noise

    z = module._search(crossed, 0.5)
    assert crossed(z, REPORTED) <= 0.5 < crossed(z - 1e-4, REPORTED)


def test_a_loose_target_gets_the_least_noise_allowed() -> None:
    assert module._search(smooth, 1e6) == MIN_NOISE_MULTIPLIER


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the search by a constant and list its targets."""
    made: list[float] = []

    def search(_: object, target: float, discretization: float) -> float:
        made.append(target)
        return 1.25

    monkeypatch.setattr(module, "_search", search)
    return made


def test_second_call_reads_the_cache(cache: Path, searches: list[float]) -> None:
    assert [calibrate(3.0, 1e-4, 0.1, 5) for _ in range(3)] == [1.25] * 3
    assert searches == [3.0]
    assert len(list((cache / "calibrate").iterdir())) == 1


@pytest.mark.parametrize("change", ["delta", "q", "steps", "target", "grid", "version"])
def test_every_input_is_in_the_key(
    cache: Path, searches: list[float], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(3.0, 1e-4, 0.1, 5)
    if change == "version":
        monkeypatch.setattr(module, "accounting_version", lambda: "0.0.0")
    given = {"target": 3.0, "delta": 1e-4, "q": 0.1, "steps": 5, "grid": REPORTED}
    given |= {change: {"steps": 7, "grid": SEARCHING, "version": 0}.get(change, 0.2)}
    calibrate(given["target"], given["delta"], given["q"], int(given["steps"]), discretization=given["grid"])
    assert len(searches) == len(list((cache / "calibrate").iterdir())) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"noise_multiplier":"1"}', '{"noise_multiplier":0.06}', "\udc80"])
def test_a_corrupt_cache_is_ignored_and_rewritten(cache: Path, searches: list[float], content: str) -> None:
    # among them one that is well formed and names too little noise: an answer is verified, whoever wrote it
    calibrate(3.0, 1e-4, 0.1, 5)
    (path,) = (cache / "calibrate").iterdir()
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert calibrate(3.0, 1e-4, 0.1, 5) == 1.25
    assert len(searches) == 2
    assert json.loads(path.read_text())["noise_multiplier"] == 1.25


@pytest.mark.usefixtures("searches")
def test_an_unwritable_cache_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("FEDLEARN_CACHE", str(blocker))
    assert calibrate(3.0, 1e-4, 0.1, 5) == 1.25


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_target_out_of_range(target: float) -> None:
    with pytest.raises(CannotCalibrate, match="epsilon"):
        calibrate(target, 1e-4, 0.1, 5)


@pytest.mark.parametrize(
    ("delta", "q", "steps", "word"), [(0.0, 0.1, 5, "delta"), (1e-4, 1.5, 5, "sampling"), (1e-4, 0.1, 0, "steps")]
)
def test_other_inputs_out_of_range(delta: float, q: float, steps: int, word: str) -> None:
    with pytest.raises(CannotCalibrate, match=word):
        calibrate(1.0, delta, q, steps)


def test_a_target_no_noise_meets() -> None:
    with pytest.raises(CannotCalibrate, match="ask for a larger epsilon"):
        calibrate(1e-9, 1e-9, 1.0, 1000)
