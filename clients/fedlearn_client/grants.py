"""What consent comes to at one moment: policy, grants, owner and streams together. Plain functions of their values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Final

from fedlearn.policy.canonical import canonical_bytes, sha256_hex
from fedlearn.policy.document import DataType, Policy, Purpose
from fedlearn.policy.times import parse_time
from fedlearn_client.store.streams import Stream

Use = tuple[str, DataType, str, str]
"""App, data type, purpose, recipient: what one switch is about."""


class Age(StrEnum):
    """What is known of the owner's age. Unknown counts as a minor."""

    UNKNOWN = "unknown"
    MINOR = "minor"
    ADULT = "adult"


@dataclass(frozen=True, slots=True)
class Owner:
    """Facts about the owner that consent depends on.

    Args:
        age: only an adult's data is used.
        personal_off: the off switch: nothing of the owner is used for anything.
    """

    age: Age
    personal_off: bool


@dataclass(frozen=True, slots=True)
class Given:
    """What the owner said to one switch, last.

    Args:
        on: granted.
        text_version: of the words that were on the screen.
        time: seconds since the Unix epoch.
        agreed: ``Standing.agreement`` of then; nothing else was agreed to.
    """

    on: bool
    text_version: int
    time: float
    agreed: str


@dataclass(frozen=True, slots=True)
class Switch:
    """One switch of the settings screen, as ``Grant`` in ``device.proto``; ``time`` in seconds, 0.0 if untouched."""

    app: str
    data_type: DataType
    purpose: str
    recipient: str
    on: bool
    text_version: int
    time: float
    text: str
    current_text_version: int
    blocked: str


UNTOUCHED: Final = Given(False, 0, 0.0, "")


@dataclass(frozen=True)
class Standing:
    """Everything that consent depends on, but the time.

    Args:
        policy: in force, or None: then nothing may be used.
        owner: facts about the owner.
        given: what the owner said, by switch.
        streams: what apps registered.
    """

    policy: Policy | None
    owner: Owner
    given: Mapping[Use, Given] = field(repr=False)
    streams: tuple[Stream, ...] = field(repr=False)

    @cached_property
    def uses(self) -> tuple[Use, ...]:
        """Every switch that the policy lists, each once."""
        found: dict[Use, None] = {}
        for source in () if self.policy is None else self.policy.sources:
            for purpose in self._purposes():
                for recipient in purpose.recipients if purpose.id in source.purposes else ():
                    found[source.app, source.data_type, purpose.id, recipient] = None
        return tuple(found)

    @cached_property
    def expires(self) -> float:
        """Seconds since the Unix epoch after which nothing may be used; long past where there is no policy."""
        return -math.inf if self.policy is None else parse_time(self.policy.expires, "policy.expires")

    def disputed(self, app: str, data_type: DataType) -> bool:
        """Whether somebody claims this data; one listing that says so is enough."""
        sources = () if self.policy is None else self.policy.sources
        return any(one.disputed for one in sources if (one.app, one.data_type) == (app, data_type))

    def expired(self, now: float) -> bool:
        """Whether the policy holds no longer, or there is none."""
        return not now < self.expires

    def hindrance(self, use: Use, now: float, stopped: bool = False) -> str:
        """Return why the switch cannot be switched on at all, "" where it can; ``stopped``: by a signed status."""
        if self.disputed(use[0], use[1]):
            return "disputed"
        if self.owner.age is not Age.ADULT:
            return "minor"
        if self.expired(now):
            return "expired"
        return "stopped" if stopped else ""

    def blocked(self, use: Use, now: float, stopped: bool = False) -> str:
        """Return why a switch that is on has no effect, or why it cannot be switched on; "" for neither."""
        hindrance = self.hindrance(use, now, stopped)
        given = self.given.get(use, UNTOUCHED)
        if hindrance or not given.on:
            return hindrance
        if given.agreed != self.agreement(use):  # whatever number the words have
            return "text_changed"
        mine = [stream for stream in self.streams if (stream.app, stream.data_type) == use[:2]]
        if not mine:
            return "not_registered"
        return "" if any(stream.serves(use[2]) for stream in mine) else "restricted"

    def serving(self, purpose: str, recipient: str, now: float) -> list[Stream]:
        """Return the streams that all three keys let serve just this, whatever the off switch says."""
        granted = (use for use in self.uses if use[2:] == (purpose, recipient) and self.given.get(use, UNTOUCHED).on)
        listed = {use[:2] for use in granted if not self.blocked(use, now)}
        return [one for one in self.streams if (one.app, one.data_type) in listed and one.serves(purpose)]

    def text_version(self, purpose: str) -> int:
        """Return the version of the words that the policy has for ``purpose`` now; 0 for a purpose it does not know."""
        return next((one.text_version for one in self._purposes() if one.id == purpose), 0)

    def agreement(self, use: Use) -> str:
        """Return SHA-256 (hex) of everything an owner agrees to with this switch, as the policy has it now.

        Purpose, words, recipient with its key, and who answers for the source. A change of any of them is a new
        question, whether or not ``text_version`` rose with it.
        """
        sources = () if self.policy is None else self.policy.sources
        recipients = () if self.policy is None else self.policy.recipients
        body = {
            "use": list(use),
            "purpose": [[one.kind, one.text, one.text_version] for one in self._purposes() if one.id == use[2]],
            "recipient": [[one.kind, one.name, one.task_key] for one in recipients if one.id == use[3]],
            "owner": sorted({one.owner for one in sources if (one.app, one.data_type) == use[:2]}),
        }
        return sha256_hex(canonical_bytes(body))

    def switch(self, use: Use, now: float, stopped: bool = False) -> Switch:
        """Return the switch for ``use`` as the settings screen shows it."""
        given = self.given.get(use, UNTOUCHED)
        purpose = next(one for one in self._purposes() if one.id == use[2])
        blocked = self.blocked(use, now, stopped)
        return Switch(*use, given.on, given.text_version, given.time, purpose.text, purpose.text_version, blocked)

    def _purposes(self) -> tuple[Purpose, ...]:
        return () if self.policy is None else self.policy.purposes
