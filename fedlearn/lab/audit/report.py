"""An audit for the terminal: one table, and in words what it shows and what not."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from fedlearn.lab.audit.result import AuditResult, Verdict

SHOWS = (
    "It shows: with 95 % confidence the audited path is not (epsilon, delta)-DP for any epsilon below a bound. A bound "
    "above the analytic epsilon, or a failed probe, means that the path does not do what is claimed."
)
SHOWS_NOT = (
    "It does not show: that the path is private. The estimate is no bound, the bound is far below what is spent, and "
    "only faults that these canaries and probes excite are seen. Not audited: sampling, correlated noise, nodes, "
    "phones, the ledger's file, the quality of the operating system's randomness."
)
SEEDED = (
    "The seed decides data, canaries and coins. The noise comes from the operating system: "
    "figures differ in each audit."
)
_STYLES = {Verdict.FINE: "bold green", Verdict.WARNING: "bold yellow", Verdict.ALARM: "bold white on red"}


def print_audit(result: AuditResult, console: Console) -> None:
    """Print figures, probes, verdict and limits."""
    console.print(_figures(result))
    console.print(_probes(result))
    for line in result.alarms:
        console.print(f"ALARM: {line}", style=_STYLES[Verdict.ALARM], markup=False, highlight=False)
    for line in result.warnings:
        console.print(f"WARNING: {line}", style=_STYLES[Verdict.WARNING], markup=False, highlight=False)
    console.print(_verdict_sentence(result), style=_STYLES[result.verdict], markup=False, highlight=False)
    for line in (SHOWS, SHOWS_NOT, SEEDED):
        console.print(line, markup=False, highlight=False)


def _figures(result: AuditResult) -> Table:
    config = result.config
    title = (
        f"Audit of the private path, simulated: noise multiplier {config.noise_multiplier:g}, delta {config.delta:g}, "
        f"{config.rounds} rounds, {config.parameters:,} parameters, {result.included.sum():,} of "
        f"{config.canaries:,} canaries took part. Epsilon of one participation:"
    )
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("the auditor sees")
    table.add_column("figure")
    table.add_column("epsilon", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("from")
    analytic, final = f"{result.analytic_epsilon:.3f}", f"{result.final_epsilon:.3f}"
    table.add_row("every round", "analytic", analytic, "", "the accountant", style="bold")
    for view in result.views:
        estimate, bound = view.estimate, view.bound
        interval = f"{estimate.low:.3f} to {estimate.high:.3f}"
        table.add_row(view.name, "estimate", f"{estimate.epsilon:.3f}", interval, "two normals")
        guessed = f"{bound.correct:,}/{bound.guesses:,} guesses"
        table.add_row(view.name, "valid bound", f"{bound.epsilon:.3f}", f"from {bound.epsilon:.3f}", guessed)
    table.add_row("final model", "to compare", final, "", "no claim", style="dim")
    return table


def _probes(result: AuditResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("probe", "what must hold", ""):
        table.add_column(name)
    for probe in result.probes:
        outcome, style = ("holds", "") if probe.passed else ("FAILED", "bold red")
        table.add_row(probe.name, probe.invariant, outcome, style=style)
    return table


def _verdict_sentence(result: AuditResult) -> str:
    match result.verdict:
        case Verdict.FINE:
            return "No alarm, no warning."
        case Verdict.WARNING:
            return "A warning: a sound path gives one in about 3 of 100 audits. Repeat it; if it stays, find the fault."
        case Verdict.ALARM:
            return "ALARM: do not train with this path."
