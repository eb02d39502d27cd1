"""Tables for the terminal: what a run, or a comparison of runs, ends with."""

from __future__ import annotations

from pathlib import Path

from fedlearn.errors import MissingDependency
from fedlearn.report import view
from fedlearn.report.compare import Comparison
from fedlearn.report.guarantee import NO_GUARANTEE, figure
from fedlearn.report.summary import MetricResult, ModelKind, Summary

try:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text
except ImportError as err:
    raise MissingDependency("rich is not installed: pip install 'fedlearn[report]'.") from err

LOUD = "bold white on red"
MODEL_WIDTH = 25
"""Wide enough for the longest usual row name, so that a terminal of 80 columns shows a row in two lines."""


def print_result_table(summary: Summary, console: Console, report: Path | None = None) -> None:
    """Print the result table, the gap closed, the epsilon sentence and the report's name.

    Args:
        summary: the run.
        console: where to print.
        report: the page that was written, or None.
    """
    console.print(_result_table(summary))
    for gap in summary.gaps:
        console.print(view.capitalised(view.gap_sentence(gap)), markup=False, highlight=False)
    for lift in view.failed_checks(summary):
        line = f"Not as expected: {lift.name} {view.signed(lift.lift)} ({view.interval(lift.lo, lift.hi)})."
        console.print(line, style="bold red", markup=False, highlight=False)
    if summary.rejected:
        counted = ", ".join(f"{r.reason} {r.count:,}" for r in summary.rejected)
        line = f"Left out of the sums, over all rounds: {counted}. docs/errors.md, FL400, says what each means."
        console.print(line, style="bold red", markup=False, highlight=False)
    privacy = summary.privacy
    console.print(privacy.guarantee, style=LOUD if privacy.epsilon is None else "bold", markup=False, highlight=False)
    small = (
        view.published_sentence(privacy),
        *(view.capitalised(t) + "." for t in (privacy.stamp, privacy.caveat) if t),
    )
    for line in filter(None, small):
        console.print(line, markup=False, highlight=False)
    if report is not None:
        console.print(f"Report: {report}", markup=False, highlight=False, soft_wrap=True)


def _result_table(summary: Summary) -> Table:
    names = view.metric_names(summary.models)
    table = Table(box=box.SIMPLE_HEAD, title=escape(f"{summary.task}: {summary.data}"), title_justify="left")
    table.add_column("model", min_width=MODEL_WIDTH)
    for name in names:
        table.add_column(escape(name), justify="right", no_wrap=True)
    table.add_column("epsilon", justify="right", no_wrap=True)
    for model in summary.models:
        what = Text(model.name)
        what.append(f"\n{model.note}", style="not bold dim")
        epsilon = view.epsilon_text(model.epsilon) if model.kind is ModelKind.FEDERATED else ""
        style = "bold" if model.name == summary.headline else ""
        table.add_row(what, *(_cell(model.metric(n)) for n in names), epsilon, style=style)
    return table


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print runs side by side with what differs between them, and what to know before ranking them."""
    names = comparison.run_names()
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("run, model, settings that differ", overflow="fold", min_width=MODEL_WIDTH)
    for name in (*comparison.metrics, "epsilon", "delta"):
        table.add_column(escape(name), justify="right", no_wrap=True)
    groups = comparison.groups()
    for group in groups:
        if len(groups) > 1:
            table.add_section()
            table.add_row(Text(group, style="bold"))
        for row in (r for r in comparison.rows if r.group == group):
            what = Text(names[row.run], style="bold").append(f"  {row.model}", style="not bold")
            if row.differs:
                what.append("\n" + "\n".join(f"{s.key}={s.value}" for s in row.differs), style="not bold dim")
            cells = (_cell(row.metric(n), between=n == comparison.metric) for n in comparison.metrics)
            delta = view.DASH if row.delta is None else figure(row.delta)
            table.add_row(what, *cells, view.epsilon_text(row.epsilon), delta)
    console.print(table)
    for note in comparison.notes:
        console.print(note, style=LOUD if NO_GUARANTEE in note else "", markup=False, highlight=False)


def _cell(metric: MetricResult | None, *, between: bool = True) -> Text:
    if metric is None:
        return Text(view.DASH)
    cell = Text(view.decimal(metric.mean))
    interval = view.interval(metric.lo, metric.hi)
    if between and interval:
        cell.append(f"\n{interval}", style="dim")
    return cell
