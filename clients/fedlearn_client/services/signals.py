"""``Signals``: apps register streams and hand over signals. An app sees and changes its own streams only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedlearn.errors import SignalRefused
from fedlearn.policy.document import DataType, Policy
from fedlearn.proto import device_pb2 as pb
from fedlearn_client import limits
from fedlearn_client.hooks import Caller, ClockAndRng
from fedlearn_client.intake import Intake
from fedlearn_client.services import checks
from fedlearn_client.services.refusals import OtherType, UnknownName
from fedlearn_client.store.streams import Stream, Streams
from fedlearn_client.withdrawal import Withdrawals

ALL_PURPOSES = "*"


@dataclass(frozen=True, slots=True)
class SignalsServicer:
    """Checks every field before anything is done.

    Args:
        streams: what apps registered.
        intake: where signals go.
        withdrawals: destroys what was derived.
        policy: in force, or None.
        clock_rng: the phone's time.
    """

    streams: Streams
    intake: Intake
    withdrawals: Withdrawals
    policy: Callable[[], Policy | None]
    clock_rng: ClockAndRng

    def register(self, caller: Caller, request: pb.RegisterRequest) -> pb.RegisterReply:
        """Declare a stream."""
        name = checks.stream_name(request.stream)
        data_type = checks.data_type(request.data_type)
        if name == limits.FEEDBACK_STREAM and data_type is not DataType.CHOICE:
            raise SignalRefused(f'stream: "{name}" holds choices reported as feedback; choose another name.')
        found = _find(self.streams, caller.app, name)
        if found is not None and found.data_type != data_type:
            raise OtherType(f"data_type: the stream is registered for {found.data_type}; choose another name.")
        self.streams.register(caller.app, name, data_type)
        return pb.RegisterReply()

    def push(self, caller: Caller, request: pb.PushRequest) -> pb.PushReply:
        """Hand over signals; the reply says nothing about consent."""
        stream = self._stream(caller, request.stream)
        check_signals(request, stream.data_type, self.clock_rng.now())
        self.intake.take(stream, request.signals)
        return pb.PushReply(received=len(request.signals))

    def restrict(self, caller: Caller, request: pb.RestrictRequest) -> pb.RestrictReply:
        """Withhold a stream from purposes."""
        purposes = tuple(request.purposes)
        if len(purposes) > limits.PURPOSES_PER_RESTRICTION or len(set(purposes)) != len(purposes):
            raise SignalRefused(f"purposes: at most {limits.PURPOSES_PER_RESTRICTION}, each once.")
        policy = self.policy()
        known = {ALL_PURPOSES} | ({one.id for one in policy.purposes} if policy is not None else set())
        for position, purpose in enumerate(purposes):
            if purpose not in known:  # a misspelt one would withhold nothing
                raise SignalRefused(f'purposes[{position}]: not a purpose of the policy in force, and not "*".')
        self.streams.restrict(caller.app, self._stream(caller, request.stream).name, purposes)
        return pb.RestrictReply()

    def purge(self, caller: Caller, request: pb.PurgeRequest) -> pb.PurgeReply:
        """Destroy what was derived from a stream. The receipt is the owner's: it tells whether there was anything."""
        self.withdrawals.purge(self._stream(caller, request.stream))
        return pb.PurgeReply()

    def _stream(self, caller: Caller, name: str) -> Stream:
        found = _find(self.streams, caller.app, checks.stream_name(name))
        if found is None:
            raise UnknownName("stream: not registered by this app; call Register first.")
        return found


def check_signals(request: pb.PushRequest, data_type: DataType, now: float) -> None:
    """Check every field of a push.

    Raises:
        SignalRefused: names the first field that is wrong, by position.
    """
    if len(request.signals) > limits.SIGNALS_PER_PUSH:
        raise SignalRefused(f"signals: at most {limits.SIGNALS_PER_PUSH} in one push; send them in parts.")
    seen: set[str] = set()
    for position, signal in enumerate(request.signals):
        at = f"signals[{position}]"
        if not 1 <= len(signal.id.encode()) <= limits.SIGNAL_ID_BYTES:
            raise SignalRefused(f"{at}.id: must be 1 to {limits.SIGNAL_ID_BYTES} bytes.")
        if signal.id in seen:
            raise SignalRefused(f"{at}.id: stands twice in this push; give each signal an id of its own.")
        seen.add(signal.id)
        if signal.time_ms < 0:
            raise SignalRefused(f"{at}.time_ms: must be milliseconds since 1970, >= 0.")
        if signal.time_ms / 1000.0 > now + limits.FUTURE_S:
            raise SignalRefused(f"{at}.time_ms: more than {limits.FUTURE_S:.0f} s ahead of the phone's clock.")
        _check_body(signal, data_type, at)


def _check_body(signal: pb.Signal, data_type: DataType, at: str) -> None:
    body = signal.WhichOneof("body")
    needed = "message" if data_type is DataType.MESSAGE_CONTENT else "choice"
    if body != needed:
        raise SignalRefused(f"{at}: must hold `{needed}`, as the stream's data type says.")
    if body == "message":
        _check_message(signal.message, f"{at}.message")
        return
    key = signal.choice.item
    if len(key.encode()) > limits.ITEM_KEY_BYTES or not all(key.partition(":")):
        raise SignalRefused(f'{at}.choice.item: must be "domain:name", at most {limits.ITEM_KEY_BYTES} bytes.')


def _check_message(message: pb.MessageSignal, at: str) -> None:
    if len(message.text.encode()) > limits.TEXT_BYTES:
        raise SignalRefused(f"{at}.text: at most {limits.TEXT_BYTES} bytes; send it in parts, or leave it out.")
    if message.direction not in {pb.DIRECTION_OUTGOING, pb.DIRECTION_INCOMING}:
        raise SignalRefused(f"{at}.direction: must be DIRECTION_OUTGOING or DIRECTION_INCOMING.")
    if len(message.foreign_spans) > limits.FOREIGN_SPANS:
        raise SignalRefused(f"{at}.foreign_spans: at most {limits.FOREIGN_SPANS}; join those that touch.")
    for position, span in enumerate(message.foreign_spans):
        if not span.start < span.end <= len(message.text):
            raise SignalRefused(f"{at}.foreign_spans[{position}]: must satisfy start < end <= code points of the text.")


def _find(streams: Streams, app: str, name: str) -> Stream | None:
    return next((one for one in streams.of_app(app) if one.name == name), None)
