"""A plan in the terminal: what it is, how epsilon grows, and what each other choice would cost."""

from __future__ import annotations

import math
from typing import Final

from fedlearn.errors import MissingDependency
from fedlearn.privacy.choices import Choice, Kind
from fedlearn.report import view
from fedlearn.report.guarantee import figure
from fedlearn.report.plan_result import PlanResult

try:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ImportError as err:
    raise MissingDependency("rich is not installed: pip install 'fedlearn[report]'.") from err

_BARS: Final = " ▁▂▃▄▅▆▇█"
_BAR_COUNT: Final = 20
_TITLES: Final = {
    Kind.SIZE: "other sizes, this noise",
    Kind.MECHANISM: "other mechanisms, this epsilon",
    Kind.ASSUMPTION: "if an assumption fails, this noise",
    Kind.TUNING: "tuning on these devices, this noise",
}
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")


def print_plan(result: PlanResult, console: Console) -> None:
    """Print the plan, the curve, the table of choices, days and traffic, and what the guarantee says.

    Args:
        result: the plan and what surrounds it.
        console: where to print.
    """
    console.print(_plan_table(result))
    console.print(_curve_line(result), markup=False, highlight=False)
    console.print(_choices_table(result))
    for label, text in (
        ("Days to finish", f"{_days(result.days.value)}. {result.days.arithmetic}"),
        ("Traffic", f"{bytes_text(result.traffic.value)} a phone and month. {result.traffic.arithmetic}"),
    ):
        console.print(f"{label}: {text}", markup=False, highlight=False)
    console.print(result.guarantee, style="bold", markup=False, highlight=False)
    if result.caveat:
        console.print(view.capitalised(result.caveat) + ".", style="bold", markup=False, highlight=False)


def bytes_text(value: float) -> str:
    """Print bytes with a decimal unit: ``8 MB``."""
    power = min(int(math.log10(value) // 3), len(_UNITS) - 1) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {_UNITS[power]}"


def _plan_table(result: PlanResult) -> Table:
    plan, bounds = result.plan, result.plan.participation
    table = Table(box=box.SIMPLE, show_header=False, title="Plan", title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        ("mechanism", plan.mechanism),
        ("epsilon", f"{figure(plan.epsilon)} (certified {figure(plan.certified_epsilon)}) at delta {plan.delta:g}"),
        ("noise multiplier", f"{plan.noise_multiplier:g} x clip norm {plan.l2_clip_norm:g}"),
        ("population, cohort, rounds", f"{plan.population:,}, {plan.cohort:,.6g}, {plan.steps:,}"),
        ("sampling", plan.sampling),
        ("noise in the model's sum", f"{result.max_error:.4g} clip norms, largest std per coordinate"),
        ("unit, relation", f"{plan.unit}, {plan.neighboring_relation.replace('_', '-')}"),
        ("accountant", result.accounting.accountant),
        ("conversion", plan.conversion),
        ("cross-check", result.accounting.cross_check),
    ]
    if bounds is not None:
        rows.insert(3, ("sensitivity", f"{plan.sensitivity:.6g} x clip norm"))
    if plan.mu is not None and plan.rho is not None:
        rows.insert(3, ("mu (Gaussian DP), rho (zCDP)", f"{plan.mu:.6g}, {plan.rho:.6g}"))
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _curve_line(result: PlanResult) -> str:
    top = max(epsilon for _, epsilon in result.curve)
    shown = [epsilon for _, epsilon in result.curve[:: -(-len(result.curve) // _BAR_COUNT)]]
    bars = "".join(_BARS[round(epsilon / top * (len(_BARS) - 1))] if top else " " for epsilon in shown)
    half = next(index for index, (rounds, _) in enumerate(result.curve) if 2 * rounds >= result.plan.steps)
    rounds, epsilon = result.curve[half]
    return (
        f"  epsilon by round  {bars}  {figure(epsilon)} after {rounds:,}, {figure(top)} after {result.plan.steps:,}\n"
    )


def _choices_table(result: PlanResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="What each choice costs", title_justify="left")
    table.add_column("choice", min_width=30, overflow="fold")
    for name in ("epsilon", "noise", "error", "state"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, title in _TITLES.items():
        table.add_section()
        table.add_row(Text(title, style="bold"))
        for choice in (c for c in result.choices if c.kind is kind):
            what = Text(choice.name).append(f"\n{choice.explanation}", style="dim")
            table.add_row(what, *_cells(result, choice))
    return table


def _cells(result: PlanResult, choice: Choice) -> tuple[str, str, str, str]:
    figures, state = choice.figures, result.state_bytes(choice)
    if figures is None:
        return (view.DASH,) * 4
    return (
        figure(figures.epsilon),
        f"{figures.noise_multiplier:.4g}",
        "" if figures.max_error is None else f"{figures.max_error:.4g}",
        "" if state is None else bytes_text(state),
    )


def _days(value: float) -> str:
    return f"{value:,.1f} days" if value < 1000 else f"{value:,.0f} days ({value / 365:,.1f} years)"
