"""One local round with nothing faked but the gateway, the clock and the phone's conditions."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlearn.device.catalogue_file import catalogue_bytes
from fedlearn.policy.document import DataType
from fedlearn.proto import device_pb2
from fedlearn.proto import gateway_pb2 as pb
from fedlearn.wire import decode_contribution
from fedlearn_client.examples import StoredExamples
from fedlearn_client.hooks import Method
from fedlearn_client.linux.clock import LinuxClock
from fedlearn_client.store.signals import NewSignal, SignalStore
from fedlearn_client.workers import Workers

_spec = importlib.util.spec_from_file_location("uplink_town", Path(__file__).with_name("uplink_town.py"))
assert _spec is not None
assert _spec.loader is not None
uplink_town: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(uplink_town)
town = uplink_town.town

CANARY = "zanzibarquokka"
OVERFLOW = 3.4e38
NEUTRAL = "see you at noon"
TEXTS = ("今晚想吃麻辣火锅", f"{CANARY} sushi with parking please", "something cheap, dim sum")


class Household:
    """A phone with a chat app and a reading app, and the real trainer."""

    def __init__(self, directory: Path, texts: tuple[str, ...] = TEXTS) -> None:
        self.workers = Workers(LinuxClock(), allow_weak_sandbox=True)
        index = self.workers.load_catalogue(catalogue_bytes(town.catalogue())).index_digest
        self.phone = uplink_town.Phone(
            directory, workers=self.workers, examples=lambda phone: self._examples(phone, index)
        )
        self._push(index, texts)

    def _examples(self, phone: Any, index: str) -> StoredExamples:
        self.signals = SignalStore(phone.store, phone.streams, phone.clock)
        return StoredExamples(phone.consent, self.signals, phone.installed.domain, lambda: index, phone.clock)

    def _push(self, index: str, texts: tuple[str, ...]) -> None:
        phone = self.phone
        chat = phone.streams.register(town.CHAT, "messages", DataType.MESSAGE_CONTENT)
        phone.consent.set(town.CHAT, DataType.MESSAGE_CONTENT, town.TRAIN, town.OPERATOR, True, 1)
        shelf = phone.streams.find(town.READING, "shelf")
        items = [item.key for item in town.catalogue().items]
        for number, text in enumerate(texts):
            time = phone.clock.now() - 3600.0 * (len(texts) - number)
            message = device_pb2.MessageSignal(text=text, direction=device_pb2.DIRECTION_OUTGOING)
            body = self.workers.ingest([device_pb2.Signal(id=f"m{number}", time_ms=int(time * 1000), message=message)])
            assert bool(body[0]) == (text != NEUTRAL)
            if body[0]:
                self.signals.add(chat, [NewSignal(f"m{number}", time, 30, index, body[0])])
            key = items[7 * number].encode()
            self.signals.add(shelf, [NewSignal(f"c{number}", time + 60.0, 30, index, key)])

    def close(self) -> None:
        self.signals.close()
        self.workers.close()
        self.phone.store.close()


@pytest.fixture
def household(tmp_path: Path) -> Iterator[Household]:
    made = Household(tmp_path / "phone")
    yield made
    made.close()


def test_a_round_with_the_real_trainer(household: Household) -> None:
    phone = household.phone
    assert phone.run() == "acknowledged"
    (upload,) = phone.uploads()
    sent = decode_contribution(pb.UploadRequest.FromString(upload).contribution)
    assert sent.count == 1
    assert sent.values.any()
    assert float((sent.values.astype(float) ** 2).sum()) ** 0.5 * sent.scale <= 1.0
    (run,) = phone.runs.newest(1)
    assert run.examples == len(TEXTS)
    spent = phone.participations.spent()
    assert spent.participations == 1
    assert spent.rho == pytest.approx(1 / (2 * 2.0**2), rel=1e-6)  # independent noise: 1 / (2 z^2)


def test_no_byte_of_the_text_is_in_what_leaves_or_is_logged(household: Household) -> None:
    phone = household.phone
    assert phone.run() == "acknowledged"
    said = [text.encode() for text in (*TEXTS, CANARY)]
    left = phone.gateway.received() + b"".join(entry.body for entry in phone.egress.entries(100, with_bytes=True))
    left += pb.UploadRequest.FromString(phone.uploads()[0]).contribution
    log = repr(phone.audit.events).encode()
    for text in said:
        for start in range(len(text) - 7):
            assert text[start : start + 8] not in left
            assert text[start : start + 8] not in log


def test_a_withdrawal_kills_the_trainer_and_nothing_leaves(household: Household) -> None:
    phone = household.phone

    def withdraw(method: Method) -> None:
        if method is Method.FETCH:
            phone.withdraw()

    phone.gateway.on_call = withdraw
    assert phone.run() == "abandoned: consent_changed"
    assert phone.uploads() == []
    assert phone.participated() == []


def _round_with(directory: Path, text: str, weight_of: Any) -> Any:
    """A round with weights that a gateway chose, of an owner who wrote ``text``. Returns the phone."""
    household = Household(directory, (text,))
    phone = household.phone
    chosen = [weight_of(name) for name in phone.plan.features]
    phone.gateway.weights = struct.pack(f"<{len(chosen)}f", *chosen)
    assert phone.run() == "acknowledged"
    household.close()
    return phone


def test_weights_that_overflow_for_one_text_tell_nothing(tmp_path: Path) -> None:
    """A gateway that picks the weights so that training fails if the owner wrote of something sees no difference."""

    def trap(name: str) -> float:
        return OVERFLOW

    told, neutral = (
        _round_with(tmp_path / name, text, trap) for name, text in (("told", TEXTS[1]), ("neutral", NEUTRAL))
    )
    sent = pb.UploadRequest.FromString(told.uploads()[0]).contribution
    assert not decode_contribution(sent).values.any()
    assert told.methods() == neutral.methods() == ["CheckIn", "Fetch", "Upload"]
    sizes = [[len(seen.body) for seen in phone.gateway.requests] for phone in (told, neutral)]
    assert sizes[0] == sizes[1]
    lengths = {len(pb.UploadRequest.FromString(phone.uploads()[0]).contribution) for phone in (told, neutral)}
    assert len(lengths) == 1


def test_a_negative_control_of_the_trap(tmp_path: Path) -> None:
    """With weights of zero the same text does change what is sent: the zeros above come from the overflow."""
    phone = _round_with(tmp_path, TEXTS[1], lambda _: 0.0)
    sent = pb.UploadRequest.FromString(phone.uploads()[0]).contribution
    assert decode_contribution(sent).values.any()
