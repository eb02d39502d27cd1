"""The factorization a mechanism uses: shipped, or optimised once and cached; believed only when its figures agree."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlearn.errors import InvalidSpend, UnknownSetting
from fedlearn.privacy import banded_optimizer, blt_optimizer, shipped
from fedlearn.privacy.error import max_error
from fedlearn.privacy.factorization import INDEPENDENT, Blt, Toeplitz, Tree, state_floats
from fedlearn.privacy.sensitivity import squared_sensitivity
from fedlearn.privacy.shipped import MOST_BANDS, best_factorization, shipped_settings, write_shipped

Record = dict[str, Any]


def digest(record: Record) -> str:
    body = {name: value for name, value in record.items() if name != "check"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "factorizations"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records for 20 steps and a separation of 5."""
    directory = tmp_path_factory.mktemp("made")
    write_shipped(directory, [(20, 5, 4)])
    return directory


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Shipped records of this test's own."""
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(shipped, "files", lambda package: tmp_path)
    shipped.shipped_records.cache_clear()
    yield tmp_path
    shipped.shipped_records.cache_clear()


@pytest.fixture
def no_optimizer(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("optimised")

    def apply() -> None:
        monkeypatch.setattr(blt_optimizer, "optimize_blt", refuse)
        monkeypatch.setattr(banded_optimizer, "optimize_banded", refuse)

    return apply


@pytest.mark.parametrize("mechanism", ["blt", "banded"])
def test_all_that_ships_is_true_and_beats_independent_noise(mechanism: str, no_optimizer: Callable[[], None]) -> None:
    no_optimizer()
    settings = shipped_settings(mechanism)
    assert {(2048, 100, 21), (2048, 400, 6), (2000, 314, 6)} <= set(settings)
    assert {bounds[0] for bounds in settings} >= {20, 60, 100, 200, 500, 1000, 2000}
    for bounds in settings:
        chosen = best_factorization(mechanism, *bounds)
        assert isinstance(chosen, Blt if mechanism == "blt" else Toeplitz)
        largest = max_error(chosen, bounds[0], squared_sensitivity(chosen, *bounds))
        assert largest < 0.8 * max_error(INDEPENDENT, bounds[0], bounds[2])


@pytest.mark.parametrize("mechanism", ["blt", "banded"])
def test_what_ships_is_what_the_optimiser_finds(mechanism: str, made: Path) -> None:
    """On another platform the last digits may differ, the error does not."""
    [record] = json.loads((made / f"{mechanism}.json").read_text())
    ours = best_factorization(mechanism, 20, 5, 4)
    assert record["max_error"] == pytest.approx(max_error(ours, 20, squared_sensitivity(ours, 20, 5, 4)), rel=1e-5)


def test_mechanisms_without_coefficients() -> None:
    assert best_factorization("gaussian", 50, 5, 10) == INDEPENDENT
    assert best_factorization("tree", 50, 5, 10) == Tree()


def test_an_unknown_mechanism_is_refused() -> None:
    with pytest.raises(UnknownSetting, match="choose one of gaussian, blt, banded, tree"):
        best_factorization("btl", 50, 5, 10)


@pytest.mark.parametrize("mechanism", shipped.MECHANISMS)
@pytest.mark.parametrize(("steps", "separation", "most"), [(0, 1, 1), (20, 0, 1), (20, 5, 0), (20, 5, 5)])
def test_bounds_out_of_range_are_refused(mechanism: str, steps: int, separation: int, most: int) -> None:
    with pytest.raises(InvalidSpend):
        best_factorization(mechanism, steps, separation, most)


def other_coefficients(record: Record) -> None:
    values = record["factorization"].get("coefficients") or record["factorization"]["scale"]
    values[-1] *= 1 - 1e-6


def nudged_coefficient(record: Record) -> None:
    """A last digit, too little for the figures to tell: the digest does."""
    values = record["factorization"].get("coefficients") or record["factorization"]["scale"]
    values[-1] *= 1 - 1e-15


def resealed(change: Callable[[Record], None]) -> Callable[[Record], None]:
    """Change the record and make its digest fit."""

    def apply(record: Record) -> None:
        change(record)
        record["check"] = digest(record)

    return apply


def with_value(name: str, value: object) -> Callable[[Record], None]:
    return resealed(lambda record: record.update({name: value}))


def rising(record: Record) -> None:
    record["factorization"] = {"kind": "toeplitz", "coefficients": [1.0, 0.2, 0.3]}


def negative(record: Record) -> None:
    record["factorization"] = {"kind": "blt", "decay": [0.5], "scale": [-0.5]}


TAMPERED = [
    pytest.param(other_coefficients, "changed after", id="coefficient"),
    pytest.param(nudged_coefficient, "changed after", id="last digit"),
    pytest.param(resealed(other_coefficients), "states sens2", id="coefficient, resealed"),
    pytest.param(with_value("sens2", 1.0), "states sens2=1.0", id="sensitivity"),
    pytest.param(with_value("sens2", None), "states sens2=None", id="no sensitivity"),
    pytest.param(with_value("sens2", math.nan), "states sens2=nan", id="sensitivity that is no number"),
    pytest.param(with_value("max_error", 1.0), "states max_error=1.0", id="error"),
    pytest.param(with_value("mechanism", "tree"), "other bounds", id="mechanism"),
    pytest.param(with_value("factorization", {"kind": "tree"}), "of a Tree", id="kind"),
    pytest.param(with_value("factorization", "blt"), "not a JSON object", id="no factorization"),
    pytest.param(resealed(rising), "increase", id="rising"),
    pytest.param(resealed(negative), "must be > 0", id="negative"),
    pytest.param(lambda record: record.pop("check"), "fields", id="no digest"),
    pytest.param(lambda record: record.update(note="hello"), "fields", id="surplus"),
]


@pytest.mark.parametrize("mechanism", ["blt", "banded"])
@pytest.mark.parametrize(("tamper", "message"), TAMPERED)
def test_a_tampered_record_is_refused(
    mechanism: str, tamper: Callable[[Record], None], message: str, folder: Path
) -> None:
    path = folder / f"{mechanism}.json"
    [record] = json.loads(path.read_text())
    tamper(record)
    path.write_text(json.dumps([record]))
    with pytest.raises(InvalidSpend, match=message):
        best_factorization(mechanism, 20, 5, 4)


def test_the_untouched_copy_is_accepted(folder: Path, no_optimizer: Callable[[], None]) -> None:
    """The control of the test above."""
    no_optimizer()
    assert isinstance(best_factorization("blt", 20, 5, 4), Blt)
    assert isinstance(best_factorization("banded", 20, 5, 4), Toeplitz)


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"steps": 20}]', "7"])
def test_a_damaged_file_is_refused(folder: Path, content: str) -> None:
    (folder / "blt.json").write_text(content)
    with pytest.raises(InvalidSpend, match=r"blt\.json: not the list"):
        best_factorization("blt", 20, 5, 4)


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "banded.json").unlink()
    with pytest.raises(InvalidSpend, match="reinstall"):
        best_factorization("banded", 20, 5, 4)


@pytest.mark.parametrize("mechanism", ["blt", "banded"])
def test_what_does_not_ship_is_optimised_once(mechanism: str, cache: Path, no_optimizer: Callable[[], None]) -> None:
    first = best_factorization(mechanism, 12, 3, 4)
    assert len(list(cache.iterdir())) == 1
    no_optimizer()
    assert best_factorization(mechanism, 12, 3, 4) == first
    for other in ((13, 3, 4), (12, 4, 3), (12, 3, 3)):
        with pytest.raises(RuntimeError, match="optimised"):
            best_factorization(mechanism, *other)


@pytest.mark.parametrize("tamper", ["coefficient", "cut off", "of other bounds"])
def test_a_cached_record_that_is_not_true_is_made_again(
    tamper: str, cache: Path, no_optimizer: Callable[[], None]
) -> None:
    good = best_factorization("blt", 12, 3, 4)
    [path] = cache.iterdir()
    text = path.read_text()
    record = json.loads(text)
    changed = copy.deepcopy(record)
    changed["factorization"]["decay"][0] *= 0.9
    changed["check"] = digest(changed)
    moved = {**record, "steps": 13}
    moved["check"] = digest(moved)
    path.write_text(
        {"coefficient": json.dumps(changed), "cut off": text[:-9], "of other bounds": json.dumps(moved)}[tamper]
    )
    assert best_factorization("blt", 12, 3, 4) == good
    assert json.loads(path.read_text()) == record
    path.write_text(json.dumps(changed))
    no_optimizer()
    with pytest.raises(RuntimeError, match="optimised"):
        best_factorization("blt", 12, 3, 4)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FEDLEARN_CACHE", str(tmp_path / "file"))
    assert isinstance(best_factorization("blt", 12, 3, 4), Blt)


def test_bands_are_cut_off_where_they_would_fill_the_memory(cache: Path) -> None:
    chosen = best_factorization("banded", MOST_BANDS + 20, MOST_BANDS + 10, 2)
    assert isinstance(chosen, Toeplitz)
    assert 1 < len(chosen.coefficients) <= MOST_BANDS


def test_mechanisms_in_order_of_their_error() -> None:
    chosen = {name: best_factorization(name, 2048, 100, 21) for name in shipped.MECHANISMS}
    assert {name: state_floats(matrix, 2048) for name, matrix in chosen.items()} == {
        "gaussian": 0,
        "blt": 2,
        "banded": 99,
        "tree": 12,
    }
    error = {
        name: max_error(matrix, 2048, squared_sensitivity(matrix, 2048, 100, 21)) for name, matrix in chosen.items()
    }
    assert error["banded"] < error["blt"] < 28 < error["tree"] < error["gaussian"]
