"""Who may call what: every method, by every caller that may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from fedlearn_client.conformance.cases import Case
from fedlearn_client.conformance.phone import Phone
from fedlearn_client.conformance.town import STRANGER

APPS: Final = ("chat",)
READERS: Final = ("chat", "surface")
SETTINGS: Final = ("settings",)
SYSTEM: Final = ("system",)
ALL: Final = ("chat", "surface", "settings", "system")
"""One caller of each role."""

METHODS: Final = {
    "Signals/Register": APPS,
    "Signals/Push": APPS,
    "Signals/Restrict": APPS,
    "Signals/Purge": APPS,
    "Recommend/Get": READERS,
    "Recommend/Feedback": READERS,
    "Consent/List": SETTINGS,
    "Consent/Set": SETTINGS,
    "Consent/SetOwner": SETTINGS,
    "Consent/Watch": SETTINGS,
    "Audit/Runs": SETTINGS,
    "Audit/Budget": SETTINGS,
    "Audit/Egress": SETTINGS,
    "Audit/Receipts": SETTINGS,
    "Runtime/Status": SYSTEM,
    "Runtime/Conditions": SYSTEM,
    "Runtime/Pause": SYSTEM,
    "Runtime/TrainNow": SYSTEM,
    "Runtime/Install": SYSTEM,
    "Runtime/UpdateStatus": SYSTEM,
}
"""Method -> callers that may call it."""


def cases(phone: Phone) -> Iterator[Case]:
    """Yield a case for each method, and one for each method and a caller that nobody knows."""
    for method, allowed in METHODS.items():
        name = method.replace("/", ".")
        wrong = [caller for caller in ALL if caller not in allowed]
        sentence = f"{method} is denied to {', '.join(wrong)}."
        yield Case(f"roles.{name}", sentence, _denies(phone, method, wrong))
    for method in METHODS:
        name = method.replace("/", ".")
        yield Case(f"stranger.{name}", f"{method} is denied to an unknown caller.", _denies(phone, method, [STRANGER]))


def _denies(phone: Phone, method: str, callers: list[str]) -> Callable[[], None]:
    def check() -> None:
        for caller in callers:
            phone.denied(caller, method)

    return check
