"""A ledger as tables for the terminal, and its budget as JSON."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fedlearn.errors import MissingDependency
from fedlearn.ledger.budget import BudgetLine, Holding
from fedlearn.ledger.entries import KIND_OF, Entry, Opened, Planned, RunOpened
from fedlearn.privacy.events import Event, MatrixGaussian, kind_of

try:
    from rich.markup import escape
    from rich.table import Table
except ImportError as err:
    raise MissingDependency("rich is not installed: pip install 'fedlearn[report]'.") from err

if TYPE_CHECKING:
    from rich.console import Console

    from fedlearn.ledger.ledger import Ledger

_DIGEST_DIGITS = 64
_SHOWN_DIGITS = 12


def print_entries(ledger: Ledger, console: Console) -> None:
    """Print every entry: number, time, kind, content."""
    table = Table(box=None, pad_edge=False)
    for name, justify in (("entry", "right"), ("time", "left"), ("kind", "left"), ("content", "left")):
        table.add_column(name, justify="right" if justify == "right" else "left", overflow="fold")
    for entry in ledger.entries():
        when = datetime.fromtimestamp(entry.time, UTC).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(str(entry.sequence), when, KIND_OF[type(entry)], escape(plain(_content(entry))))
    console.print(table)
    counts = Counter(KIND_OF[type(entry)] for entry in ledger.entries())
    console.print(", ".join(f"{count} {kind}" for kind, count in counts.items()), highlight=False)


def print_budget(ledger: Ledger, lines: tuple[BudgetLine, ...], console: Console) -> None:
    """Print cap and quotas with what is held and spent of them."""
    scope = ledger.scope
    console.print(
        f"{plain(scope.population)} ({scope.kind}), {scope.neighboring_relation.replace('_', '-')}, "
        f"delta {scope.delta:g}, gate {scope.gate}{'' if scope.order is None else f' at order {scope.order:g}'}",
        markup=False,
        highlight=False,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("purpose / epoch")
    for name in ("granted", "held", "by filter", "of capacity", "spent", "by filter", "runs (open)"):
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(
            "cap, lifetime spend" if line.quota is None else escape(plain(" / ".join(line.quota))),
            "-" if line.granted is None else f"{line.granted:g}",
            rounded_up(line.held.epsilon),
            _optional(line.held.filter_epsilon),
            _share(line),
            rounded_up(line.spent.epsilon),
            _optional(line.spent.filter_epsilon),
            f"{line.runs} ({line.open_runs})",
        )
    console.print(table)
    console.print(
        "Figures are epsilon. A run is admitted by the filter, whose figure holds also where runs are chosen by looking"
        " at earlier ones; the other, by the accountant of record, holds for runs that were fixed beforehand.",
        highlight=False,
    )
    if ledger.restored:
        console.print("RESTORED: charges made from this machine are missing; nothing can be spent.", style="bold red")


def budget_json(ledger: Ledger, lines: tuple[BudgetLine, ...]) -> dict[str, object]:
    """Return the budget as JSON values."""
    scope = ledger.scope
    return {
        "ledger_id": scope.ledger_id,
        "population": scope.population,
        "kind": scope.kind,
        "neighboring_relation": scope.neighboring_relation,
        "epsilon": scope.epsilon,
        "delta": scope.delta,
        "gate": scope.gate,
        "order": scope.order,
        "restored": ledger.restored,
        "lines": [_line_json(line) for line in lines],
    }


def _line_json(line: BudgetLine) -> dict[str, object]:
    return {
        "purpose": None if line.quota is None else line.quota[0],
        "epoch": None if line.quota is None else line.quota[1],
        "granted": line.granted,
        "capacity": line.capacity,
        "held": _holding_json(line.held),
        "spent": _holding_json(line.spent),
        "runs": line.runs,
        "open_runs": line.open_runs,
    }


def _holding_json(holding: Holding) -> dict[str, object]:
    return {
        "events": [{"event": _event_words(part.event), "count": part.count} for part in holding.events],
        "cost": holding.cost,
        "filter_epsilon": holding.filter_epsilon,
        "epsilon": holding.epsilon,
    }


def _share(line: BudgetLine) -> str:
    if line.capacity is None or line.held.cost is None:
        return "-"
    return f"{line.held.cost / line.capacity:.1%}" if line.capacity > 0 else "-"


def _optional(value: float | None) -> str:
    return "-" if value is None else rounded_up(value)


def plain(text: str) -> str:
    """Return text of a record, which may be somebody else's, without characters that could steer a terminal."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def rounded_up(epsilon: float) -> str:
    """Print an epsilon with four digits, never rounded down."""
    if epsilon <= 0 or not math.isfinite(epsilon):
        return f"{epsilon:g}"
    unit = 10.0 ** (math.floor(math.log10(epsilon)) - 3)
    return f"{math.ceil(epsilon / unit - 1e-6) * unit:.4g}"  # the slack keeps a last bit from turning 3 into 3.001


def _content(entry: Entry) -> str:
    if isinstance(entry, Opened):
        scope = entry.scope
        return (
            f"{scope.population} ({scope.kind}), epsilon {scope.epsilon:g} at delta {scope.delta:g}, "
            f"{scope.neighboring_relation}, gate {scope.gate}"
        )
    shown = [
        f"{item.name}={_shown(getattr(entry, item.name))}"
        for item in fields(entry)
        if item.name not in {"sequence", "time", "plan", "authority_signature"}
    ]
    if isinstance(entry, RunOpened):
        shown.append("plan=" + " + ".join(_planned_words(part) for part in entry.plan))
    return " ".join(shown)


def _shown(value: object) -> str:
    text = str(value)
    return f"{text[:_SHOWN_DIGITS]}..." if len(text) == _DIGEST_DIGITS else text


def _planned_words(part: Planned) -> str:
    return f"{part.count} x {_event_words(part.event)}"


def _event_words(event: Event) -> str:
    values = []
    for name in event.__slots__:
        value = getattr(event, name)
        if isinstance(event, MatrixGaussian) and name == "factorization":
            value = type(value).__name__.lower()
        if not isinstance(value, int | float | str):
            value = f"({_event_words(value)})"
        values.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    return f"{kind_of(event)}: {', '.join(values)}"
