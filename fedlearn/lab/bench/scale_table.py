"""The figures of ``fedlearn bench scale`` for people."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedlearn.lab.bench.device_figures import Machine
from fedlearn.lab.bench.scale import ScaleBench, ScaleRow

MEBI = 2**20


def show_scale(console: Console, bench: ScaleBench) -> None:
    """Print the tables, what limits each path, the ratio to the stock path, and what was measured on; 80 columns do."""
    console.print(time_table(bench))
    for row in bench.rows:
        nodes = f"{row.nodes} node{'' if row.nodes == 1 else 's'}"
        console.print(f"{row.path}, {nodes}, {row.model_bytes:,} B: {row.bottleneck}", highlight=False)
    for table in (traffic_table(bench), memory_table(bench), idle_table(bench)):
        console.print()
        console.print(table)
    ratio = bench.stock_ratio
    if ratio is not None:
        console.print(f"A round over {bench.sizes.stock} stock SuperNodes takes {ratio:.1f} times as long as ours.")
    console.print(f"\n{bench.seconds:.0f} s on {_machine(bench.machine)}; code {bench.code}", highlight=False)


def time_table(bench: ScaleBench) -> Table:
    """Return seconds a round and CPU-seconds a node-round."""
    table = _table(
        "Seconds a round; CPU-seconds a node-round",
        *("path", "nodes", "model B", "round s", "spread", "SuperLink", "ServerApp", "node"),
    )
    for row in bench.rows:
        costs = (row.superlink, row.serverapp, row.hosts)
        spread = f"{row.least:.2f}-{row.most:.2f}"
        cpu = (f"{cost.cpu_s:.3f}" for cost in costs)
        table.add_row(*_head(row), f"{row.seconds:.2f}", spread, *cpu)
    return table


def traffic_table(bench: ScaleBench) -> Table:
    """Return requests and bytes a node-round, before TLS."""
    table = _table(
        "Requests and bytes a node-round between SuperLink and node",
        *("path", "nodes", "model B", "requests", "sent", "received", "waiting"),
    )
    for row in bench.rows:
        table.add_row(*_head(row), *_traffic(row))
    return table


def memory_table(bench: ScaleBench) -> Table:
    """Return resident memory."""
    table = _table("Resident memory, MiB", "path", "nodes", "model B", "SuperLink", "ServerApp", "node")
    for row in bench.rows:
        memory = (f"{cost.memory / MEBI:.0f}" for cost in (row.superlink, row.serverapp, row.hosts))
        table.add_row(*_head(row), *memory)
    return table


def idle_table(bench: ScaleBench) -> Table:
    """Return what nodes without work cost."""
    table = _table("Nothing to do", "nodes", "SuperLink, cores", "nodes, cores")
    for idle in bench.idle:
        table.add_row(str(idle.nodes), f"{idle.superlink:.2f}", f"{idle.hosts:.2f}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(
        *columns,
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for number, column in enumerate(table.columns):
        column.no_wrap = True
        column.justify = "right" if number else "left"
    return table


def _machine(machine: Machine) -> str:
    """Return what was measured on in words."""
    packages = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    before, after = machine.load
    return (
        f"{machine.cores} cores ({machine.processor}, {machine.system}); load {before:g} before, {after:g} after; "
        f"Python {machine.python}; {packages}"
    )


def _head(row: ScaleRow) -> tuple[str, str, str]:
    return row.path, str(row.nodes), f"{row.model_bytes:,}"


def _traffic(row: ScaleRow) -> tuple[str, ...]:
    found = row.traffic
    if found is None:
        return ("", "", "", "")
    return f"{found.requests:.1f}", f"{found.sent:,.0f}", f"{found.received:,.0f}", f"{found.waiting:.1f}"
