"""Runs the kit: numbers first, then behaviour."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from fedlearn_client.conformance import behaviour
from fedlearn_client.conformance.callers import Callers
from fedlearn_client.conformance.cases import Case, Outcome, in_part, run
from fedlearn_client.conformance.keys import read_keys
from fedlearn_client.conformance.lines import Direct
from fedlearn_client.conformance.numbers import Numbers
from fedlearn_client.conformance.papers import Papers
from fedlearn_client.conformance.phone import Phone

NUMBERS = frozenset({"query", "rows", "update", "contribute", "rank", "guard"})
"""Parts that ``Numerics`` answers; every other part is behaviour."""


def kit(callers: Callers, numerics: str, now: float, part: str | None = None) -> Iterator[Outcome]:
    """Ask every case of a part, or all, and yield what came of each.

    Args:
        callers: how to reach the target; closed by who made them.
        numerics: address of ``fedlearn.conformance.v1.Numerics``.
        now: seconds since the Unix epoch: when the kit's documents are issued.
        part: beginning of case ids, e.g. ``consent``; or ``numbers`` or ``behaviour``.

    Raises:
        ConfigError: the keys that the callers file names cannot be read.
    """
    papers = None if callers.keys is None else Papers(read_keys(callers.keys), now)
    line = Direct(numerics)
    try:
        phone = Phone(callers, papers)
        cases = chain(Numbers(line).cases(), behaviour.cases(phone))
        yield from run(case for case in cases if part is None or _asked(case, part))
    finally:
        line.close()


def _asked(case: Case, part: str) -> bool:
    is_number = case.id.partition(".")[0] in NUMBERS
    if part == "numbers":
        return is_number
    if part == "behaviour":
        return not is_number
    return in_part(case.id, part)
