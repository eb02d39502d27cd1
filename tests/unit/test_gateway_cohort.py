"""A gateway as a cohort host: full, too late, too few, asked again, dead in between, and its database away."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedlearn.errors import GatewayStoreFailed, MalformedMessage, OutOfRange, RoundFailed
from fedlearn.fold import Fold, FoldTerms
from fedlearn.types import Level
from fedlearn.wire import decode_reply, encode_reply, encode_task, task_digest
from fedlearn_server.gateway.cohort import PATIENCE_S, GatewayHost, reply_of
from fedlearn_server.gateway.state import GatewayState
from fedlearn_server.gateway.terms import read_terms
from fedlearn_server.message import Question, pack_question, unpack_answer
from fedlearn_server.node_answers import Answering

_spec = importlib.util.spec_from_file_location("gateway_fleet", Path(__file__).with_name("gateway_fleet.py"))
fleet = sys.modules.setdefault(_spec.name, importlib.util.module_from_spec(_spec))
if not hasattr(fleet, "Fleet"):
    _spec.loader.exec_module(fleet)


class Street:
    """A host whose time passes by sleeping; in each sleep one of ``events`` happens."""

    def __init__(self, state: GatewayState, **changes) -> None:
        self.phones = fleet.Fleet(state, fleet.terms(**changes))
        self.events: list[Callable[[], object]] = []
        self.slept = 0.0
        self.leaving = False
        self.host = self.another(state)

    def another(self, state: GatewayState) -> GatewayHost:
        return GatewayHost(state, lambda: self.phones.now, self.sleep, lambda: self.leaving)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept += seconds
        self.phones.now += seconds
        if self.events:
            self.events.pop(0)()

    def ask(self, step: int = 0, attempt: int = 0, host: GatewayHost | None = None, part: int = 0, parts: int = 1):
        answering = (host or self.host)(self.phones.terms.to_json(), part, parts)
        return answering(fleet.round_task(step, attempt))

    def bring(self, *numbers: int) -> Callable[[], object]:
        return lambda: self.phones.send(*[self.phones.upload(number) for number in numbers])


@pytest.fixture
def where(tmp_path: Path) -> str:
    return str(tmp_path / "gateway.sqlite")


@pytest.fixture
def state(where: str) -> Iterator[GatewayState]:
    opened = GatewayState.open(where)
    yield opened
    opened.disconnect()


@pytest.fixture
def street(state: GatewayState) -> Street:
    made = Street(state)
    made.phones.enrol(*range(8))
    return made


def canaries(*numbers: int) -> np.ndarray:
    return sum(fleet.canary(number) for number in numbers)


class TestAnswer:
    def test_when_it_is_full(self, street: Street) -> None:
        street.events = [street.bring(0), street.bring(1, 2), lambda: pytest.fail("it was full")]
        reply = street.ask()
        contribution, task = reply.contribution, fleet.round_task()
        assert np.array_equal(contribution.values, canaries(0, 1, 2))
        assert (contribution.count, contribution.l2_bound, contribution.level) == (3, 3 * fleet.CLIP, Level.COHORT)
        assert (reply.loss_sum, reply.trained, reply.clipped, reply.norm_sum, reply.rejected) == (0, 0, 0, 0, {})
        fold = Fold(FoldTerms(task_digest(task), task.dimension, task.l2_bound, task.grid_step, Level.COHORT))
        assert fold.offer(lambda: contribution, reserved=3) is contribution  # as the server does

    def test_at_the_deadline_with_enough(self, street: Street) -> None:
        street.events = [street.bring(0, 1)]
        assert street.ask().contribution.count == 2
        assert street.slept == pytest.approx(600)

    def test_too_few_and_asked_again(self, street: Street) -> None:
        street.events = [street.bring(0)]
        with pytest.raises(RoundFailed, match="too few phones") as failed:
            street.ask()
        assert "1 phone" not in str(failed.value)
        street.events = [street.bring(1, 2, 3)]
        assert np.array_equal(street.ask().contribution.values, canaries(1, 2, 3))
        assert street.phones.ask(0) == "no_task"

    def test_the_same_bytes_again(self, street: Street, where: str) -> None:
        street.events = [street.bring(0, 1, 2)]
        first = encode_reply(street.ask())
        assert encode_reply(street.ask()) == first
        beside = GatewayState.open(where)
        assert encode_reply(street.ask(host=street.another(beside))) == first
        beside.disconnect()

    def test_a_gateway_that_died_before_it_answered(self, street: Street, state: GatewayState, where: str) -> None:
        collection = street.phones.open()
        street.bring(0, 1, 2)()
        closed = state.close(collection, fleet.NOW)
        after = GatewayState.open(where)
        reply = street.ask(host=street.another(after))
        assert np.array_equal(reply.contribution.values, canaries(0, 1, 2))
        assert encode_reply(reply) == encode_reply(reply_of(collection, *closed))
        assert street.slept == 0
        after.disconnect()

    def test_two_gateways_wait_for_one_collection(self, street: Street, where: str) -> None:
        """Each is asked the same part; phones come to both; both answer the same."""
        beside = GatewayState.open(where)
        other = fleet.Fleet(beside, street.phones.terms)
        said: list[bytes] = []
        street.events = [
            street.bring(0),
            lambda: other.send(other.upload(1), other.upload(2)),
            lambda: pytest.fail("it was full"),
        ]
        said.append(encode_reply(street.ask()))
        said.append(encode_reply(street.ask(host=street.another(beside))))
        assert said[0] == said[1]
        assert np.array_equal(decode_reply(said[0]).contribution.values, canaries(0, 1, 2))
        beside.disconnect()

    def test_another_gateway_answered_in_between(self, street: Street, state: GatewayState) -> None:
        def meanwhile() -> None:
            collection = street.phones.open()
            street.bring(0, 1)()
            state.answer(collection, encode_reply(reply_of(collection, *state.close(collection, street.phones.now))))

        street.events = [meanwhile]
        assert street.ask().contribution.count == 2

    def test_parts_add_up(self, street: Street) -> None:
        street.phones.terms = fleet.terms(target=4, over_selection=1.0)
        street.phones.open(part=0, parts=2)
        street.phones.open(part=1, parts=2)
        street.bring(0, 1, 2, 3)()
        replies = [street.ask(part=part, parts=2) for part in (0, 1)]
        assert [reply.contribution.count for reply in replies] == [2, 2]
        assert replies[0].contribution.nonce != replies[1].contribution.nonce
        assert np.array_equal(sum(reply.contribution.values for reply in replies), canaries(0, 1, 2, 3))

    def test_steps_follow(self, street: Street) -> None:
        for step in range(3):
            street.events = [street.bring(*range(step, step + 3))]
            assert street.ask(step).contribution.count == 3
        with pytest.raises(RoundFailed, match="gone on"):
            street.ask(1)

    def test_behind_a_node(self, street: Street) -> None:
        task = fleet.round_task()
        question = Question(street.phones.terms.to_json(), encode_task(task), 0, 1, b"c" * 16)
        street.events = [street.bring(0, 1, 2)]
        answering = Answering(street.host)
        payload = unpack_answer(answering(pack_question(question)), question.challenge)
        assert decode_reply(payload).contribution.count == 3
        assert unpack_answer(answering(pack_question(question)), question.challenge) == payload


class TestRefused:
    def test_a_task_for_which_nothing_was_answered(self, street: Street) -> None:
        street.events = [street.bring(0, 1, 2)]
        street.ask()
        answering = street.host(street.phones.terms.to_json(), 0, 1)
        with pytest.raises(RoundFailed, match="answered for another task"):
            answering(fleet.round_task(seed=8))

    def test_another_run(self, street: Street) -> None:
        answering = street.host(street.phones.terms.to_json(), 0, 1)
        with pytest.raises(RoundFailed, match="approved"):
            answering(fleet.round_task(run_id="another"))

    def test_leaving(self, street: Street, state: GatewayState) -> None:
        street.events = [lambda: setattr(street, "leaving", True)]
        with pytest.raises(RoundFailed, match="leaving"):
            street.ask()
        assert state.figures().collections == 1
        street.bring(0, 1, 2)()
        street.leaving = False
        assert street.ask().contribution.count == 3


class Away:
    """A state whose database is away for some calls."""

    def __init__(self, state: GatewayState, calls: int) -> None:
        self._state = state
        self._calls = calls

    def __getattr__(self, name: str):
        def call(*arguments: object):
            if self._calls > 0:
                self._calls -= 1
                raise GatewayStoreFailed("away")
            return getattr(self._state, name)(*arguments)

        return call


class TestDatabaseAway:
    def test_for_a_while(self, street: Street, state: GatewayState) -> None:
        street.phones.open()
        street.bring(0, 1, 2)()
        for calls in (1, 20):
            host = GatewayHost(Away(state, calls), lambda: street.phones.now, street.sleep)
            assert street.ask(host=host).contribution.count == 3

    def test_for_too_long(self, street: Street, state: GatewayState) -> None:
        host = GatewayHost(Away(state, 10**6), lambda: street.phones.now, street.sleep)
        with pytest.raises(GatewayStoreFailed, match="away"):
            street.ask(host=host)
        assert street.slept == pytest.approx(PATIENCE_S, abs=1.0)


class TestTerms:
    def test_there_and_back(self) -> None:
        terms = fleet.terms(over_selection=1.25)
        assert read_terms(terms.to_json()) == terms
        assert read_terms(terms.to_json()).to_json() == terms.to_json()

    @pytest.mark.parametrize(
        "change",
        [
            {"round_size": 0},
            {"round_size": 4},
            {"over_selection": 0.9},
            {"over_selection": float("nan")},
            {"over_selection": float("inf")},
            {"attempt_s": 0.0},
            {"task_s": float("nan")},
            {"attempt_s": float("inf")},
            {"bundle_digest": "00"},
            {"plan_digest": "A" * 64},
            {"run_id": ""},
        ],
    )
    def test_out_of_range(self, change: dict[str, object]) -> None:
        with pytest.raises(OutOfRange, match=next(iter(change))):
            fleet.terms(**change)

    @pytest.mark.parametrize(
        "edit",
        [
            lambda text: "",
            lambda text: "[]",
            lambda text: "{}",
            lambda text: text.replace("fedlearn-enrolled-cohort", "other"),
            lambda text: text.replace('"version":1', '"version":2'),
            lambda text: text.replace('"round_size":2', '"round_size":"2"'),
            lambda text: text.replace('"round_size":2', '"round_size":2.5'),
            lambda text: text.replace('"round_size":2', '"round_size":true'),
            lambda text: text.replace('"round_size":2', '"round_size":0'),
            lambda text: text.replace('"run_id":"run-1"', '"run_id":7'),
            lambda text: text.replace('"target":3', '"target":3,"more":1'),
            lambda text: text.replace('"target":3,', ""),
            lambda text: text.replace('"steps":40', '"steps":0'),
        ],
    )
    def test_what_is_none(self, street: Street, edit: Callable[[str], str]) -> None:
        text = edit(fleet.terms().to_json())
        assert text != fleet.terms().to_json()
        with pytest.raises(MalformedMessage):
            street.host(text, 0, 1)

    @pytest.mark.parametrize(("whole", "parts"), [(10, 1), (10, 3), (1, 4), (7, 7)])
    def test_shares_add_up_to_at_least_the_whole(self, whole: int, parts: int) -> None:
        shares = [fleet.terms().share(whole, part, parts) for part in range(parts)]
        assert sum(shares) >= whole
        assert min(shares) >= 1
