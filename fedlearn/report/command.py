"""``fedlearn compare RUN...``: a table, a page and a plot of several runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedlearn.errors import OutOfRange
from fedlearn.report.compare import compare
from fedlearn.report.tables import print_comparison

PAGE = Path("compare.html")


def main(arguments: Sequence[str]) -> int:
    """Compare finished runs."""
    parser = argparse.ArgumentParser(prog="fedlearn compare", description="Table and plot of several runs.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories")
    parser.add_argument("--metric", help="metric to compare; the runs' headline metric by default")
    parser.add_argument("--page", type=Path, default=PAGE, help=f"page to write (default: {PAGE})")
    parser.add_argument("--json", action="store_true", help="for a machine to read; writes no page")
    parsed = parser.parse_args(arguments)
    comparison = compare(parsed.runs, parsed.metric)
    console = Console()
    if parsed.json:
        console.print_json(comparison.to_json())
        return 0
    print_comparison(comparison, console)
    from fedlearn.report.html import write_comparison  # noqa: PLC0415 - loads matplotlib, which --json does without

    try:
        write_comparison(parsed.page, comparison)
    except OSError as error:
        raise OutOfRange(f"--page {parsed.page}: cannot be written ({error}); name a file elsewhere.") from error
    console.print(f"Page: {parsed.page}", markup=False)
    return 0
