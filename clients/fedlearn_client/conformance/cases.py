"""What a case is, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

import grpc

from fedlearn.errors import FedlearnError


class Verdict(StrEnum):
    """Of one case."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_SERVED = "not served"


class Differs(Exception):
    """A case that failed: what was expected, and what came."""

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(f"expected {expected}; came {came}")
        self.expected = expected
        self.came = came


class NotServed(Exception):
    """A case that could not be asked: the target has no such method, or the kit cannot be such a caller."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to find out.

    Args:
        id: dotted; its first words are the part it belongs to.
        sentence: what must hold.
        check: returns if it holds, else raises ``Differs`` or ``NotServed``.
    """

    id: str
    sentence: str
    check: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case: ``expected`` and ``came`` of a failed one; of one not served, ``came`` is the reason."""

    id: str
    sentence: str
    verdict: Verdict
    expected: str = ""
    came: str = ""


def in_part(case_id: str, part: str) -> bool:
    """Return whether a case belongs to a part: ``consent`` has ``consent.grid.chat``, and not ``consents.x``."""
    return case_id == part or case_id.startswith(f"{part}.")


def run(cases: Iterable[Case]) -> Iterator[Outcome]:
    """Ask each case in turn; whatever it raises fails that case alone."""
    for case in cases:
        try:
            case.check()
        except NotServed as error:
            yield Outcome(case.id, case.sentence, Verdict.NOT_SERVED, came=str(error))
        except Differs as error:
            yield Outcome(case.id, case.sentence, Verdict.FAILED, error.expected, error.came)
        except (FedlearnError, grpc.RpcError, ValueError, OSError) as error:
            # a reply that no decoder takes, or a target that went away in the middle
            yield Outcome(case.id, case.sentence, Verdict.FAILED, "an answer", f"{type(error).__name__}: {error}"[:300])
        else:
            yield Outcome(case.id, case.sentence, Verdict.PASSED)


def require(holds: bool, expected: str, came: str) -> None:
    """Raise Differs where something does not hold."""
    if not holds:
        raise Differs(expected, came)


def differs(expected: str, came: str) -> NoReturn:
    """Raise Differs."""
    raise Differs(expected, came)
