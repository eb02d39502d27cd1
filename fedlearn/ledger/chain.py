"""The entries of a ledger as far as they are known and checked: chain, signatures and rules. No storage."""

from __future__ import annotations

from collections.abc import Sequence

from fedlearn.errors import LedgerDamaged, OutOfRange
from fedlearn.ledger.anchor import Mark
from fedlearn.ledger.book import REFUSALS, Book
from fedlearn.ledger.entries import GENESIS, Entry, Opened, Row, from_row, signed_bytes
from fedlearn.ledger.scope import Scope
from fedlearn.ledger.signing import verified
from fedlearn.ledger.store import UNUSABLE


class Chain:
    """Grows by rows that are checked, or by entries that were just made durable.

    Args:
        name: of the ledger, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.entries: list[Entry] = []
        self.book = Book()
        self.head = Mark(0, GENESIS)
        """Length and last hash."""
        self._hashes: list[str] = []

    @property
    def scope(self) -> Scope:
        """Whose budget this is."""
        return self.book.required_scope

    def contains(self, mark: Mark) -> bool:
        """Return whether the entry of ``mark`` is in the chain."""
        return mark.length <= len(self._hashes) and self._hashes[mark.length - 1] == mark.hash

    def take(self, rows: Sequence[Row]) -> None:
        """Check and re-enact rows that follow what is known.

        Raises:
            LedgerDamaged: a row is not in its place, not signed by the operator, or may not follow; it is named.
        """
        for row in rows:
            try:
                entry = from_row(row, self.head.hash)
                _require_signature(row, entry.scope if isinstance(entry, Opened) else self.scope)
                self.book.check(entry, certify=False)
            except (LedgerDamaged, OutOfRange, *REFUSALS) as error:
                raise LedgerDamaged(f"{self._name}: entry {len(self.entries)} is bad: {error} {UNUSABLE}") from error
            self.believe(entry, row.hash)

    def believe(self, entry: Entry, digest: str) -> None:
        """Take an entry over that was checked and is durable."""
        self.book.apply_checked(entry)
        self.entries.append(entry)
        self._hashes.append(digest)
        self.head = Mark(len(self._hashes), digest)


def _require_signature(row: Row, scope: Scope) -> None:
    if not verified(scope.operator_key, row.signature, signed_bytes(row.hash)):
        raise LedgerDamaged("its signature is not the operator's")
