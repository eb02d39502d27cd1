"""The append-only record of privacy spend: reserve, charge, commit."""

from __future__ import annotations

from fedlearn.ledger.entries import Budget, Charged, Committed, Entry, Opened, Reserved, Voided
from fedlearn.ledger.ledger import LEDGER_FILE, Ledger, Reservation

__all__ = [
    "LEDGER_FILE",
    "Budget",
    "Charged",
    "Committed",
    "Entry",
    "Ledger",
    "Opened",
    "Reservation",
    "Reserved",
    "Voided",
]
