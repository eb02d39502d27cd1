"""``Consent``: the settings screen lists, grants, withdraws and watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedlearn.errors import ConsentRefused
from fedlearn.proto import device_pb2 as pb
from fedlearn_client.consent import Age, Consent, Switch
from fedlearn_client.hooks import Caller
from fedlearn_client.services import checks
from fedlearn_client.services.wire import milliseconds, receipt_message

_AGES = {pb.AGE_CLASS_UNKNOWN: Age.UNKNOWN, pb.AGE_CLASS_MINOR: Age.MINOR, pb.AGE_CLASS_ADULT: Age.ADULT}
_AGE_NUMBERS = {age: number for number, age in _AGES.items()}


@dataclass(frozen=True, slots=True)
class ConsentServicer:
    """Checks requests and hands them to the consent engine.

    Args:
        consent: the engine.
        changed: called after every change.
    """

    consent: Consent
    changed: Callable[[], None]

    def list(self, caller: Caller, request: pb.ListRequest) -> pb.ListReply:  # noqa: ARG002
        """Return every switch."""
        return self._state()

    def watch(self, caller: Caller, request: pb.WatchRequest) -> pb.ListReply:  # noqa: ARG002
        """Return every switch; called at the start and after each change."""
        return self._state()

    def set(self, caller: Caller, request: pb.SetRequest) -> pb.SetReply:  # noqa: ARG002
        """Grant, or withdraw and destroy."""
        app = checks.short_name(request.app, "app")
        data_type = checks.data_type(request.data_type)
        purpose = checks.short_name(request.purpose, "purpose")
        recipient = checks.short_name(request.recipient, "recipient")
        receipt = self.consent.set(app, data_type, purpose, recipient, request.on, request.text_version)
        self.changed()
        return pb.SetReply(receipt=None if receipt is None else receipt_message(receipt))

    def set_owner(self, caller: Caller, request: pb.SetOwnerRequest) -> pb.SetOwnerReply:  # noqa: ARG002
        """Set the owner's age class and the off switch."""
        age = _AGES.get(request.age)
        if age is None:
            raise ConsentRefused("age: must be AGE_CLASS_UNKNOWN, AGE_CLASS_MINOR or AGE_CLASS_ADULT.")
        self.consent.set_owner(age, request.personal_off)
        self.changed()
        return pb.SetOwnerReply()

    def _state(self) -> pb.ListReply:
        owner = self.consent.owner()
        return pb.ListReply(
            grants=[_grant(one) for one in self.consent.switches()],
            age=_AGE_NUMBERS[owner.age],
            personal_off=owner.personal_off,
        )


def _grant(switch: Switch) -> pb.Grant:
    return pb.Grant(
        app=switch.app,
        data_type=checks.DATA_TYPE_NUMBERS[switch.data_type],
        purpose=switch.purpose,
        recipient=switch.recipient,
        on=switch.on,
        text_version=switch.text_version,
        time_ms=milliseconds(switch.time),
        text=switch.text,
        current_text_version=switch.current_text_version,
        blocked=switch.blocked,
    )
