"""When rounds run: waits, jitter, caps, pause, restarts."""

from __future__ import annotations

import dataclasses
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.errors import OutOfRange
from fedlearn_client.conditions import Override, StricterConditions
from fedlearn_client.fakes import FIT, FakeConditions, Fault
from fedlearn_client.hooks import ConditionsNow, Method, Thermal
from fedlearn_client.outcomes import Outcome, Retry

_spec = importlib.util.spec_from_file_location("uplink_town", Path(__file__).with_name("uplink_town.py"))
assert _spec is not None
assert _spec.loader is not None
uplink_town: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(uplink_town)
town = uplink_town.town

OWNERS_OWN = "not ready: the owner's settings or data"
MINUTE = 60.0
HOUR = 3600.0


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Any]:
    made = uplink_town.Phone(tmp_path)
    yield made
    made.scheduler.stop()
    made.store.close()


def _left(phone: Any) -> float:
    return float(phone.facts.get(f"not_before:{town.TRAIN}")) - phone.clock.now()


def test_a_due_round_runs_once(phone: Any) -> None:
    assert phone.scheduler.why_not() is None
    phone.scheduler.tick()
    assert phone.outcomes() == ["acknowledged"]
    assert phone.scheduler.why_not() == "waits before it asks again"
    phone.scheduler.tick()
    assert phone.methods().count("CheckIn") == 1


@pytest.mark.parametrize(
    ("method", "fault", "least", "most"),
    [
        (Method.CHECK_IN, Fault.UNREACHABLE, 12 * MINUTE, 18 * MINUTE),
        (Method.CHECK_IN, Fault.BAD_SIGNATURE, 3.2 * HOUR, 4.8 * HOUR),
        (Method.CHECK_IN, Fault.NO_TASK, 900.0, 1080.0),  # as the gateway asked, and up to 20 % more
    ],
)
def test_waits(phone: Any, method: Method, fault: Fault, least: float, most: float) -> None:
    waits = set()
    for _ in range(5):
        phone.gateway.fail_next(method, fault)
        phone.scheduler.tick()
        waits.add(_left(phone))
        phone.clock.advance(_left(phone) + 1.0)
    assert all(least <= wait <= most for wait in waits)
    assert len(waits) == 5  # spread by chance


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [(1, 60.0, 72.0), (7200, 7200.0, 8640.0), (2**31, 86_400.0, 1.2 * 86_400.0)],
)
def test_what_the_gateway_asks_for_is_bounded(phone: Any, asked: int, least: float, most: float) -> None:
    phone.gateway.retry_after_s = asked
    phone.gateway.fail_next(Method.CHECK_IN, Fault.NO_TASK)
    phone.scheduler.tick()
    assert least <= _left(phone) <= most


def test_a_gateway_can_not_shorten_the_wait_after_a_refusal(phone: Any) -> None:
    phone.gateway.retry_after_s = 60
    phone.gateway.fail_next(Method.CHECK_IN, Fault.BAD_SIGNATURE)
    phone.scheduler.tick()
    assert _left(phone) >= 3.2 * HOUR


@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(list(Retry)), st.sampled_from(["no_task", "x"]))
def test_any_wait_is_finite_and_bounded(asked: float, retry: Retry, words: str) -> None:
    from fedlearn_client.scheduler import Scheduler

    class Rooms:
        clock_rng = uplink_town.FakeClock()

    scheduler = Scheduler(Rooms(), None, None)  # type: ignore[arg-type]  # the wait needs the generator alone
    wait = scheduler._pause_after(Outcome(words, retry, asked))
    assert 60.0 <= wait <= 1.2 * 86_400.0


def test_a_wait_outlives_a_restart_and_a_clock_that_was_ahead(phone: Any) -> None:
    phone.scheduler.tick()
    phone.restart()
    phone.scheduler.tick()
    assert phone.methods().count("CheckIn") == 1
    phone.facts.set(f"not_before:{town.TRAIN}", repr(phone.clock.now() + 400 * 86_400.0).encode())
    assert phone.scheduler.why_not() is None
    phone.facts.set(f"not_before:{town.TRAIN}", b"no number")
    assert phone.scheduler.why_not() is None


def test_rounds_of_a_day_are_capped(tmp_path: Path) -> None:
    policy = town.city_policy()
    policy = dataclasses.replace(policy, device=dataclasses.replace(policy.device, max_rounds_per_day=2))
    phone = uplink_town.Phone(tmp_path, policy=policy)
    for _ in range(2):
        assert phone.scheduler.train_now(town.TRAIN) == "acknowledged"
        phone.gateway.advance(10)
        phone.clock.advance(HOUR)
    requests = len(phone.gateway.requests)
    assert phone.scheduler.train_now(town.TRAIN) == "refused: enough_today"
    phone.clock.advance(5 * HOUR)
    assert phone.scheduler.why_not() == "today's rounds are used up"
    phone.scheduler.tick()
    assert len(phone.gateway.requests) == requests
    phone.clock.advance(17 * HOUR + 1.0)
    phone.installed.update_status(town.signed_status(2, now=phone.clock.now()))
    assert phone.scheduler.train_now(town.TRAIN) == "acknowledged"


def test_pause_survives_a_restart(phone: Any) -> None:
    phone.scheduler.pause(True)
    phone.restart()
    assert phone.scheduler.paused
    assert phone.scheduler.why_not() == "training is paused"
    assert phone.scheduler.train_now(town.TRAIN) == "refused: paused"
    phone.scheduler.tick()
    assert phone.gateway.requests == []
    phone.scheduler.pause(False)
    phone.scheduler.tick()
    assert phone.outcomes() == ["acknowledged"]


def test_a_paused_phone_sends_nothing_that_was_prepared(phone: Any) -> None:
    phone.gateway.fail_next(Method.UPLOAD, Fault.UNREACHABLE)
    phone.scheduler.tick()
    phone.scheduler.pause(True)
    phone.clock.advance(20 * MINUTE)
    phone.scheduler.tick()
    assert phone.uploads() == []
    phone.scheduler.pause(False)
    phone.scheduler.tick()
    assert len(phone.uploads()) == 1


def test_train_now_passes_over_the_wait_alone(phone: Any) -> None:
    phone.scheduler.tick()
    phone.gateway.advance(10)
    assert phone.scheduler.train_now(town.TRAIN) == "acknowledged"
    assert phone.scheduler.train_now("nothing") == "refused: no_bundle"
    phone.conditions.state = dataclasses.replace(FIT, idle=False)
    assert phone.scheduler.train_now(town.TRAIN) == "refused: in_use"


def test_the_reasons_in_words(phone: Any) -> None:
    phone.conditions.state = dataclasses.replace(FIT, charging=False)
    assert phone.scheduler.why_not() == "waits until the phone is charging"
    phone.conditions.state = FIT
    phone.clock.advance(25 * HOUR)
    assert phone.scheduler.why_not() == "the signed status is over 24 hours old"
    phone.installed.update_status(town.signed_status(2, now=phone.clock.now(), stopped=["*"]))
    assert phone.scheduler.why_not() == "the signed status stopped it"
    phone.installed.update_status(town.signed_status(3, now=phone.clock.now()))
    phone.withdraw()
    assert phone.scheduler.why_not() == OWNERS_OWN
    phone.grant()
    assert phone.scheduler.why_not() is None
    phone.consent.set_owner(uplink_town.Age.ADULT, personal_off=True)
    assert phone.scheduler.why_not() == OWNERS_OWN
    phone.conditions.state = dataclasses.replace(FIT, idle=False)
    assert phone.scheduler.why_not() == "waits until nobody uses the phone", "tells the off switch from a missing grant"
    phone.conditions.state = FIT
    phone.consent.set_owner(uplink_town.Age.ADULT, personal_off=False)
    phone.clock.advance(31 * 86_400.0)
    assert phone.scheduler.why_not() == "no task bundle is installed"


def test_a_stopped_phone_asks_for_a_newer_status_every_four_hours(phone: Any) -> None:
    phone.installed.update_status(town.signed_status(2, stopped=["*"]))
    for _ in range(24):
        phone.scheduler.tick()
        phone.clock.advance(15 * MINUTE)
    assert phone.methods() == ["CheckIn"] * 2


def test_history_lost_just_keeps_asking(phone: Any) -> None:
    phone.gateway.step = 3
    phone.scheduler.tick()
    assert phone.outcomes() == ["refused: history_lost"]
    phone.gateway.step = 13
    phone.clock.advance(5 * HOUR)
    phone.scheduler.tick()
    assert phone.outcomes() == ["refused: history_lost", "acknowledged"]


def test_the_thread_wakes_on_a_change(phone: Any) -> None:
    done = threading.Event()
    phone.gateway.on_call = lambda method: done.set() if method is Method.UPLOAD else None
    phone.withdraw()
    phone.scheduler.start()
    phone.grant()
    phone.scheduler.wake()
    assert done.wait(30.0)
    phone.scheduler.stop()


def test_a_hook_that_raises_does_not_end_the_schedule(phone: Any) -> None:
    class Broken(Exception):
        pass

    raised, done = threading.Event(), threading.Event()

    def call(method: Method) -> None:
        if not raised.is_set():
            raised.set()
            phone.clock.advance(18 * MINUTE)  # it waits after this too
            raise Broken
        done.set()

    phone.gateway.on_call = call
    phone.scheduler.start()
    assert done.wait(30.0)
    phone.scheduler.stop()
    assert [event.fields for event in phone.audit.events if event.kind == "schedule_failed"] == [{"kind": "Broken"}]


def test_a_round_that_kills_the_daemon_does_not_run_in_a_loop(phone: Any) -> None:
    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    phone.workers.on_train = die
    with pytest.raises(Killed):
        phone.scheduler.tick()
    phone.restart()
    phone.scheduler.tick()
    assert phone.methods().count("CheckIn") == 1


def test_a_refusal_without_a_request_leaves_the_wait_as_it_was(phone: Any) -> None:
    phone.scheduler.tick()
    left = _left(phone)
    phone.conditions.state = dataclasses.replace(FIT, idle=False)
    assert phone.scheduler.train_now(town.TRAIN) == "refused: in_use"
    assert _left(phone) == left


def test_stop_abandons_the_round_under_way(phone: Any) -> None:
    training, stopped = threading.Event(), threading.Event()

    def train() -> None:
        training.set()
        assert stopped.wait(30.0)

    phone.workers.on_train = train
    phone.scheduler.start()
    assert training.wait(30.0)
    phone.round.end()
    stopped.set()
    phone.scheduler.stop()
    assert phone.outcomes() == ["abandoned: stopping"]
    assert phone.uploads() == []
    assert phone.participated() == [0]


_CONDITIONS = st.builds(
    ConditionsNow, st.booleans(), st.booleans(), st.booleans(), st.floats(0.0, 1.0), st.sampled_from(Thermal)
)
_OVERRIDES = st.builds(
    Override,
    st.none() | st.booleans(),
    st.none() | st.booleans(),
    st.none() | st.booleans(),
    st.none() | st.floats(0.0, 1.0),
    st.none() | st.sampled_from(Thermal),
)


@given(_CONDITIONS, _OVERRIDES)
def test_an_override_only_forbids(real: ConditionsNow, override: Override) -> None:
    conditions = StricterConditions(FakeConditions(real))
    conditions.override(override)
    now = conditions.now()
    assert now.charging <= real.charging
    assert now.idle <= real.idle
    assert now.unmetered <= real.unmetered
    assert now.battery <= real.battery
    warmth = list(Thermal)
    assert warmth.index(now.thermal) >= warmth.index(real.thermal)
    if override.battery is not None:
        assert now.battery <= override.battery
    conditions.override(Override())
    assert conditions.now() == real


@pytest.mark.parametrize("battery", [-0.1, 1.1, float("nan")])
def test_an_override_out_of_range(battery: float) -> None:
    with pytest.raises(OutOfRange, match="battery"):
        Override(battery=battery)
