"""For every set of grants, what reaches a use is exactly what was granted for it: nothing more, and nothing less."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_UNIT = Path(__file__).parents[1] / "unit"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, _UNIT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


world, oracle = _load("store_world"), _load("occasion_oracle")
NOW, CHAT, SOURCES, USES = world.NOW, world.CHAT, world.SOURCES, world.USES
EVERY = [(*source, *use) for source in SOURCES for use in USES]
GRID = [("chat", CHAT, "rank", "surface"), *[(*source, "train", "operator") for source in SOURCES]]
"""Four switches: three of one use, and one of another."""


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    phone = world.open_phone(tmp_path_factory.mktemp("phone"))
    for app, _ in SOURCES:
        phone.stream(app)
    yield phone
    phone.close()


def _empty(phone) -> None:
    for use in EVERY:
        phone.withdrawals.withdraw(*use)


def _rows(times: list[tuple[int, int]]) -> list:
    rows = []
    for number, (place, ago) in enumerate(times):
        app, kind = SOURCES[place]
        message = kind is CHAT
        body = f"{app}-said-{number}" if message else f"{('restaurant', 'museum')[number % 2]}:{app}-{number}"
        rows.append(oracle.Row(number, NOW - ago, app, "message" if message else "choice", body.encode()))
    return rows


def _check(phone, rows: list, on: list[tuple]) -> None:
    for use in USES:
        granted = {(app, kind) for app, kind, *pair in on if tuple(pair) == use}
        mine = [one for one in rows if any(one.app == app for app, _ in granted)]
        assert phone.examples.present(*use) == oracle.present(mine, "restaurant", NOW)
        assert list(phone.examples.occasions(*use, 100)) == oracle.training(mine, "restaurant", NOW, 100)
        names = {"chat" if kind is CHAT else "choices" for _, kind in granted}
        assert phone.examples.sources(*use) == names | {"catalogue"}


@pytest.mark.parametrize("mask", range(2 ** len(GRID)))
def test_two_to_the_four_sets_of_grants(phone, mask: int) -> None:
    on = [use for bit, use in enumerate(GRID) if mask >> bit & 1]
    _empty(phone)
    for use in on:
        phone.grant(*use)
    rows = _rows([(number % 3, 5 * number + 1) for number in range(24)])
    rows = world.push_rows(phone, rows)
    _check(phone, rows, on)
    kept = {(app, kind) for app, kind, *_ in on}
    expected = sum(any(one.app == app for app, _ in kept) for one in rows)
    assert phone.database.rows("SELECT count(*) FROM signals") == [(expected,)], "kept though nothing may use it"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mask=st.integers(0, 2 ** len(EVERY) - 1),
    later=st.integers(0, 2 ** len(EVERY) - 1),
    times=st.lists(st.tuples(st.integers(0, 2), st.integers(-5, 200)), max_size=25),
)
def test_any_grants_taken_back_in_part(phone, mask: int, later: int, times: list[tuple[int, int]]) -> None:
    """Grants, data, then only some of the grants: what is left reaches what is left of the uses, unchanged."""
    on = [use for bit, use in enumerate(EVERY) if mask >> bit & 1]
    left = [use for bit, use in enumerate(EVERY) if mask & later & 1 << bit]
    _empty(phone)
    for use in on:
        phone.grant(*use)
    rows = _rows(times)
    rows = world.push_rows(phone, rows)
    _check(phone, rows, on)
    for use in on:
        if use not in left:
            assert phone.withdrawals.withdraw(*use) is not None
    _check(phone, rows, left)


def test_the_grid_notices_a_leak(phone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a consent engine that forgets the recipient fails."""
    _empty(phone)
    phone.grant("chat", CHAT, "rank", "surface")
    rows = _rows([(0, 5)])
    phone.push("chat", [("id", NOW - 5, rows[0].body)])
    effective = phone.consent.effective
    monkeypatch.setattr(phone.consent, "effective", lambda purpose, recipient: effective(purpose, "surface"))
    with pytest.raises(AssertionError):
        _check(phone, rows, [("chat", CHAT, "rank", "surface")])


@pytest.mark.parametrize("product_of", [2])
def test_without_a_stream_is_like_without_a_grant(tmp_path: Path, product_of: int) -> None:
    """An app without a grant cannot tell whether the chat stream exists, is full, or was never there."""
    seen = set()
    for chat, granted in product([False, True], repeat=product_of):
        phone = world.open_phone(tmp_path / f"{chat}{granted}")
        phone.stream("maps")
        phone.grant("maps", dict(SOURCES)["maps"], "rank", "maps")
        if chat:
            phone.stream("chat")
        if granted:
            phone.grant("chat", CHAT, "rank", "surface")
        if chat:
            phone.push("chat", [("a", NOW - 1, b"said")])
        phone.push("maps", [("a", NOW - 2, b"restaurant:x")])
        use = ("rank", "maps")
        seen.add((phone.examples.present(*use), phone.examples.sources(*use), tuple(phone.examples.occasions(*use, 9))))
        phone.close()
    assert len(seen) == 1
