"""What apps and the phone maker's processes are told of the owner: nothing that they need not know."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fedlearn.policy.document import DataType
from fedlearn.proto import device_pb2 as pb
from fedlearn_client.hooks import Caller, Role
from fedlearn_client.readiness import OWNERS, WORDS, Obstacle, for_others, outcome_for_others
from fedlearn_client.receipts import Receipt
from fedlearn_client.services.runtime import RuntimeServicer
from fedlearn_client.services.signals import SignalsServicer
from fedlearn_client.store.streams import Stream

CHAT = Caller("chat", Role.APP)
SYSTEM = Caller("system", Role.SYSTEM)


def test_a_purge_tells_the_app_nothing() -> None:
    purged: list[Stream] = []
    stream = Stream(1, "chat", "main", DataType.MESSAGE_CONTENT, "alias", frozenset(), 0.0)

    def purge(one: Stream) -> Receipt:
        purged.append(one)
        return Receipt(b'{"rows_destroyed":5}', bytes(64), bytes(32))

    servicer = SignalsServicer(
        SimpleNamespace(of_app=lambda _: [stream]),  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        SimpleNamespace(purge=purge),  # type: ignore[arg-type]
        lambda: None,
        None,  # type: ignore[arg-type]
    )
    assert servicer.purge(CHAT, pb.PurgeRequest(stream="main")).SerializeToString() == b""
    assert purged == [stream]


def _train(outcome: str) -> str:
    servicer: Any = SimpleNamespace(
        installed=SimpleNamespace(bundle_for=lambda _: "bundle"), rounds=SimpleNamespace(train_now=lambda _: outcome)
    )
    return RuntimeServicer.train_now(servicer, SYSTEM, pb.TrainNowRequest(purpose="train")).outcome


@pytest.mark.parametrize("kind", ["refused", "abandoned"])
@pytest.mark.parametrize("reason", sorted(OWNERS))
def test_the_owners_reasons_are_one_word_for_others(kind: str, reason: Obstacle) -> None:
    assert outcome_for_others(f"{kind}: {reason}") == _train(f"{kind}: {reason}") == "refused: not_ready"
    assert WORDS[for_others(reason) or reason] == "not ready: the owner's settings or data"


@pytest.mark.parametrize(
    "outcome", ["acknowledged", "no_task", "refused: in_use", "refused: budget", "abandoned: worker"]
)
def test_other_outcomes_stay_as_they_are(outcome: str) -> None:
    assert outcome_for_others(outcome) == _train(outcome) == outcome


def test_other_obstacles_stay_as_they_are() -> None:
    assert {one for one in Obstacle if for_others(one) is one} == set(Obstacle) - OWNERS
    assert for_others(None) is None
