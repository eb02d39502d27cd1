"""``ExampleIterator`` over the encrypted store: exactly what is granted for one purpose and one recipient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from fedlearn.policy.document import FEATURE_SOURCE, DataType
from fedlearn_client.hooks import ClockAndRng, Occasion
from fedlearn_client.occasions import EARLIER, MESSAGES, MESSAGES_S, ChoiceRow, is_of, occasion_at, training_positions

if TYPE_CHECKING:
    from fedlearn_client.consent import Consent
    from fedlearn_client.store.signals import SignalStore
    from fedlearn_client.store.streams import Stream

CATALOGUE: Final = "catalogue"
_LONG_AGO: Final = -float("inf")


class StoredExamples:
    """Makes occasions (``fedlearn_client.occasions``) from granted streams; others do not exist here.

    Consent is asked anew for every occasion: a stream that is withdrawn while examples are read ends them.

    Args:
        consent: says which streams are granted for what.
        signals: the store.
        domain: returns the target domain of the installed catalogue; "" where there is none, and so no occasion.
        catalogue: returns the digest of the present index; messages read with another one are not used.
        clock_rng: says what now is.
    """

    def __init__(
        self,
        consent: Consent,
        signals: SignalStore,
        domain: Callable[[], str],
        catalogue: Callable[[], str],
        clock_rng: ClockAndRng,
    ) -> None:
        self._consent = consent
        self._signals = signals
        self._domain = domain
        self._catalogue = catalogue
        self._clock_rng = clock_rng

    def occasions(self, purpose: str, recipient: str, limit: int) -> Iterator[Occasion]:
        """See ``ExampleIterator``. Ends early if what is granted changes meanwhile."""
        granted, domain = self._consent.effective(purpose, recipient), self._domain()
        choices = self._choices(granted, domain, self._clock_rng.now(), limit)
        for position in training_positions(choices, domain, limit):
            if self._consent.effective(purpose, recipient) != granted:
                return
            row = choices[position]
            yield occasion_at(row.time, row.item, domain, choices[:position], self._messages(granted))

    def present(self, purpose: str, recipient: str) -> Occasion:
        """See ``ExampleIterator``."""
        granted, domain, now = self._consent.effective(purpose, recipient), self._domain(), self._clock_rng.now()
        return occasion_at(now, "", domain, self._choices(granted, domain, now, 0), self._messages(granted))

    def sources(self, purpose: str, recipient: str) -> frozenset[str]:
        """See ``ExampleIterator``."""
        granted = self._consent.effective(purpose, recipient)
        return frozenset({CATALOGUE, *(FEATURE_SOURCE[stream.data_type] for stream in granted)})

    def _choices(self, granted: Sequence[Stream], domain: str, before: float, occasions: int) -> list[ChoiceRow]:
        """Return as many of the newest choices as ``occasions`` examples, and one wish, can depend on."""
        streams = _of(granted, DataType.CHOICE)
        if not streams:
            return []
        newest = 4 * (EARLIER + occasions)
        while True:
            rows = self._signals.read(streams, _LONG_AGO, before, self._catalogue(), newest)
            choices = [ChoiceRow(row.time, row.body.decode(), row.app) for row in rows]
            if len(rows) < newest or _enough(choices, domain, before, occasions):
                return choices
            newest *= 4

    def _messages(self, granted: Sequence[Stream]) -> Callable[[float, float], Sequence[bytes]]:
        streams = _of(granted, DataType.MESSAGE_CONTENT)
        catalogue = self._catalogue()

        def between(after: float, before: float) -> Sequence[bytes]:
            rows = self._signals.read(streams, after, before, catalogue, MESSAGES) if streams else []
            return [row.body for row in rows]

        return between


def _of(granted: Sequence[Stream], data_type: DataType) -> frozenset[int]:
    return frozenset(stream.id for stream in granted if stream.data_type is data_type)


def _enough(choices: Sequence[ChoiceRow], domain: str, now: float, occasions: int) -> bool:
    """Whether choices before the first of ``choices`` could change nothing."""
    positions = training_positions(choices, domain, occasions) if occasions else []
    if len(positions) < occasions:
        return False
    first = positions[0] if positions else len(choices)
    time = choices[first].time if positions else now
    before = choices[:first]
    known = sum(row.time < time for row in before) >= EARLIER
    bounded = any(is_of(domain, row.item) for row in before) or choices[0].time <= time - MESSAGES_S
    return known and bounded
