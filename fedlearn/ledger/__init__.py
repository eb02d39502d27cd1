"""The append-only record of privacy spend: one budget scope, its runs, and for each release reserve, charge, commit."""

from __future__ import annotations

from fedlearn.ledger.account import Reservation, RunAccount
from fedlearn.ledger.book import Book, book_of
from fedlearn.ledger.entries import (
    Charged,
    Committed,
    Entry,
    Opened,
    Planned,
    Reserved,
    Rule,
    RunClosed,
    RunOpened,
    Voided,
)
from fedlearn.ledger.ledger import Ledger
from fedlearn.ledger.scope import GateKind, Kind, Scope, new_scope

LEDGER_FILE = "ledger.sqlite"

__all__ = [
    "LEDGER_FILE",
    "Book",
    "Charged",
    "Committed",
    "Entry",
    "GateKind",
    "Kind",
    "Ledger",
    "Opened",
    "Planned",
    "Reservation",
    "Reserved",
    "Rule",
    "RunAccount",
    "RunClosed",
    "RunOpened",
    "Scope",
    "Voided",
    "book_of",
    "new_scope",
]
