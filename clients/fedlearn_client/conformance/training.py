"""Training that nobody granted: nothing is prepared, nothing is spent, nothing leaves."""

from __future__ import annotations

from collections.abc import Iterator

from fedlearn.proto import device_pb2 as pb
from fedlearn_client.conformance.cases import Case, require
from fedlearn_client.conformance.phone import Phone
from fedlearn_client.conformance.town import CHAT, RECOMMEND, SURFACE, TRAIN


def cases(phone: Phone) -> Iterator[Case]:
    """Yield every case."""
    yield Case("training.no_grant", "A round that nobody granted leaves no entry in the egress log and spends nothing.",
               lambda: _leaves_nothing(phone))  # fmt: skip
    yield Case("training.other_purpose", "A grant for rankings is no grant for training.",
               lambda: _other_purpose(phone))  # fmt: skip
    yield Case("training.off_switch", "With the off switch nothing trains, whatever is granted.",
               lambda: _off_switch(phone))  # fmt: skip
    yield Case("training.unknown", "A purpose that is not installed is refused.", lambda: _unknown(phone))


def _leaves_nothing(phone: Phone) -> None:
    phone.ready()
    _require_nothing_leaves(phone)


def _other_purpose(phone: Phone) -> None:
    phone.ready()
    phone.set((CHAT, RECOMMEND, SURFACE))
    phone.push("chat", [phone.said()])
    _require_nothing_leaves(phone)


def _off_switch(phone: Phone) -> None:
    phone.ready()
    phone.set((CHAT, TRAIN, "kit-lab"))
    phone.push("chat", [phone.said()])
    phone.owner(off=True)
    try:
        _require_nothing_leaves(phone)
    finally:
        phone.owner(off=False)


def _unknown(phone: Phone) -> None:
    phone.ready()
    request = pb.TrainNowRequest(purpose="train-nothing")
    phone.refused("system", "Runtime/TrainNow", request, "a purpose that no bundle trains for")


def _require_nothing_leaves(phone: Phone) -> None:
    before = _account(phone)
    request = pb.TrainNowRequest(purpose=TRAIN)
    reply = phone.ask_or_refusal("system", "Runtime/TrainNow", request, "a round that nobody granted")
    if reply is not None:
        refused = reply.outcome.startswith(("refused", "abandoned"))
        require(refused, "an outcome that begins with refused or abandoned", reply.outcome)
    after = _account(phone)
    require(after == before, "no new egress entry and no spending", f"{before} became {after}")


def _account(phone: Phone) -> tuple[int, float, int]:
    entries = phone.ask("settings", "Audit/Egress", pb.EgressRequest(limit=1000)).entries
    budget = phone.ask("settings", "Audit/Budget")
    return len(entries), budget.rho, budget.participations
