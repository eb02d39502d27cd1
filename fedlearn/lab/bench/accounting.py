"""Every published figure beside ours under the same conversion, and beside today's tight figure for the same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from fedlearn.lab.bench.published import Claim, Run, claims
from fedlearn.lab.crosscheck import opacus_prv
from fedlearn.privacy.accountants import accounting_for, epsilon
from fedlearn.privacy.events import PoissonGaussian

EQUAL: Final = "equal"
NEAR: Final = "near miss"
DIFFERS: Final = "DIFFERS"


@dataclass(frozen=True, slots=True)
class AccountingRow:
    """One published figure and what we make of it.

    Args:
        source: where the figure is from.
        configuration: the run.
        conversion: how the published figure was made, and ours beside it.
        published: as printed.
        ours: with as many decimals, or one more where it is no match.
        agreement: ``equal`` to the last printed digit, ``near miss`` with a reason in the note, or ``DIFFERS``.
        tight: today's epsilon for the same run, rounded up; None where the row has no run.
        tight_by: the accountant behind it.
        prv: Opacus's PRV upper bound for the same run; None where it has none.
        note: reason of a near miss, or what to know.
    """

    source: str
    configuration: str
    conversion: str
    published: str
    ours: str
    agreement: str
    tight: float | None
    tight_by: str
    prv: float | None
    note: str


def bench_accounting(advance: Callable[[str], None] = lambda _: None) -> list[AccountingRow]:
    """Return the table; calls ``advance`` with each row's source before it is computed.

    Raises:
        MissingDependency: dp-accounting or Opacus is not installed.
    """
    rows: list[AccountingRow] = []
    for claim in claims():
        advance(claim.source)
        rows.append(_row(claim))
    return rows


def reproduced(rows: Sequence[AccountingRow]) -> bool:
    """Return whether no row differs."""
    return all(row.agreement != DIFFERS for row in rows)


def show_accounting(console: Console, rows: Sequence[AccountingRow]) -> None:
    """Print the table, with numbered notes below it."""
    table = Table(title="Published figures, ours under the same conversion, and today's")
    for heading in ("source", "configuration", "conversion", "published", "ours", "", "today", "by", "PRV", "note"):
        numeric = heading in {"published", "ours", "today", "PRV"}
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    for row in rows:
        table.add_row(
            row.source,
            row.configuration,
            row.conversion,
            row.published,
            row.ours,
            row.agreement,
            "" if row.tight is None else f"{row.tight:.4f}",
            row.tight_by,
            "" if row.prv is None else f"{row.prv:.4f}",
            f"{notes.index(row.note) + 1}" if row.note else "",
        )
    console.print(table)
    for number, note in enumerate(notes, start=1):
        console.print(f"{number}. {note}", highlight=False)


def run_bench(console: Console) -> list[AccountingRow]:
    """Compute the table under a progress bar."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        console=console,
        transient=True,
    )
    with progress:
        task = progress.add_task("", total=sum(1 for _ in claims()))
        done = -1

        def advance(source: str) -> None:
            nonlocal done
            done += 1
            progress.update(task, completed=done, description=source)

        return bench_accounting(advance)


def _row(claim: Claim) -> AccountingRow:
    value = claim.figure()
    decimals = -int(Decimal(claim.published).as_tuple().exponent)
    rounded = f"{value:.{decimals}f}"
    if rounded == claim.published:
        agreement = EQUAL
    else:
        agreement = NEAR if claim.within and abs(value - float(claim.published)) <= claim.within else DIFFERS
    tight, tight_by = _tight(claim.run)
    return AccountingRow(
        source=claim.source,
        configuration=claim.configuration,
        conversion=claim.conversion,
        published=claim.published,
        ours=rounded if agreement == EQUAL else f"{value:.{decimals + 1}f}",
        agreement=agreement,
        tight=tight,
        tight_by=tight_by,
        prv=_prv(claim.run),
        note=claim.note if agreement != DIFFERS or claim.note else "unexplained",
    )


def _tight(run: Run | None) -> tuple[float | None, str]:
    if run is None:
        return None, ""
    value = epsilon(run.spend, run.delta, neighboring_relation=run.relation)
    accountant = accounting_for(run.spend, run.relation).accountant
    return math.ceil(value * 1e4) / 1e4, accountant.split(" (")[0].split(":")[0]


def _prv(run: Run | None) -> float | None:
    if run is None:
        return None
    spend = tuple((event, count) for event, count in run.spend if isinstance(event, PoissonGaussian))
    return _cached_prv(spend, run.delta) if len(spend) == len(run.spend) else None


@lru_cache(maxsize=64)
def _cached_prv(spend: tuple[tuple[PoissonGaussian, int], ...], delta: float) -> float:
    return opacus_prv(spend, delta)
