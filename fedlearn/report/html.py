"""The page of a run: one self-contained file, readable without network, script or colour."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fedlearn.errors import MissingDependency
from fedlearn.report import view
from fedlearn.report.charts import Bar, Line, Point, bar_chart, epsilon_chart, line_chart
from fedlearn.report.compare import Comparison
from fedlearn.report.guarantee import figure
from fedlearn.report.rounds import RoundRecord
from fedlearn.report.summary import ModelKind, Summary

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape
except ImportError as err:
    raise MissingDependency("jinja2 is not installed: pip install 'fedlearn[report]'.") from err

Reading = Callable[[RoundRecord], float | None]


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart of the page with its caption."""

    title: str
    note: str
    svg: Markup


@cache
def environment() -> Environment:
    """Return the one template set, with every value escaped and every undefined name an error."""
    env = Environment(
        loader=PackageLoader("fedlearn.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "capitalised": view.capitalised,
        "decimal": view.decimal,
        "signed": view.signed,
        "figure": figure,
        "unbroken": _unbroken,
        "epsilon_text": view.epsilon_text,
        "seconds_text": view.seconds_text,
    }
    env.globals["interval"] = view.interval
    return env


def _unbroken(text: str) -> Markup:
    """Escape a sentence and keep figures such as 1e-4 on one line."""
    return Markup(re.sub(r"[\d.]+e-\d+", r'<span class="figure">\g<0></span>', str(escape(text))))  # noqa: S704


def write_report(path: Path, summary: Summary, rounds: Sequence[RoundRecord]) -> None:
    """Write ``report.html``: the same bytes for the same records.

    Args:
        path: file to write.
        summary: the run.
        rounds: its rounds, in order; without any, the charts over rounds are left out.
    """
    path.write_text(render_report(summary, rounds), encoding="utf-8")


def render_report(summary: Summary, rounds: Sequence[RoundRecord]) -> str:
    """Return the page as text."""
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=summary,
            verdict=view.verdict(summary),
            epsilon_line=view.epsilon_line(summary.privacy),
            failed=view.failed_checks(summary),
            seeds=f"{len(summary.seeds)} seed{'s' if len(summary.seeds) != 1 else ''}",
            metric_names=view.metric_names(summary.models),
            bars=_bars(summary),
            gaps=[view.gap_sentence(g) for g in summary.gaps],
            charts=_charts(summary, rounds),
            legend=_trained(summary, rounds),
            trainings=len({(r.seed, r.fold) for r in rounds}),
            rejected=_rejected(rounds),
            published=view.published_sentence(summary.privacy),
            sampling=view.realised_sampling(summary.privacy),
        )
    )


def _bars(summary: Summary) -> Markup | None:
    metric = view.headline_metric(summary)
    if metric is None:
        return None
    bars = [
        Bar(m.name, r.mean, r.lo, r.hi, m.name == summary.headline, m.kind is ModelKind.REFERENCE)
        for m in summary.models
        if (r := m.metric(metric.name)) is not None and math.isfinite(r.mean)
    ]
    if not bars:
        return None
    # The charts escape what they draw: matplotlib writes text as XML.
    return Markup(bar_chart("quality", f"{metric.name} of each model", bars))  # noqa: S704


def _charts(summary: Summary, rounds: Sequence[RoundRecord]) -> list[Chart]:
    names = dict.fromkeys(e.name for r in rounds for e in r.evaluation)
    plans: list[tuple[str, str, Reading, bool]] = [
        *((name, "on held-out choices; not protected", _evaluation(name), False) for name in names),
        ("Loss", "mean over the cohort, nats; not protected", lambda r: r.loss, False),
        ("Cohort", "accepted contributions; not protected", lambda r: r.cohort, True),
        ("Epsilon", "of one training, spent so far", lambda r: r.epsilon, True),
        ("Clipped", "share of updates over the clip norm; not protected", lambda r: r.clipped_fraction, True),
        (
            "Signal to noise",
            "mean update over its noise; not protected",
            lambda r: r.signal_to_noise,
            True,
        ),
    ]
    if len({r.clip for r in rounds}) > 1:
        plans.append(("Clip", "bound on one update, adapted from what was released", lambda r: r.clip, False))
    order = _trained(summary, rounds)
    charts = []
    for i, (title, note, reading, zero) in enumerate(plans):
        lines = _lines(order, rounds, reading)
        if lines:
            svg = line_chart(f"rounds{i}", f"{title} over rounds", lines, zero=zero)
            charts.append(Chart(title, note, Markup(svg)))  # noqa: S704
    return charts


def _evaluation(name: str) -> Reading:
    return lambda r: next((e.value for e in r.evaluation if e.name == name), None)


def _trained(summary: Summary, rounds: Sequence[RoundRecord]) -> list[str]:
    """Models with rounds, the headline first: it takes the page's accent colour."""
    names = dict.fromkeys(r.model for r in rounds)
    return sorted(names, key=lambda name: name != summary.headline)


def _lines(order: Sequence[str], rounds: Sequence[RoundRecord], reading: Reading) -> list[Line]:
    """One thin line per training and one thick mean per model; thin lines first, so that means lie on top."""
    faint: list[Line] = []
    means: list[Line] = []
    for color, model in enumerate(order):
        trainings: dict[tuple[int, int], dict[int, float]] = {}
        for r in rounds:
            value = reading(r) if r.model == model else None
            if value is not None:
                trainings.setdefault((r.seed, r.fold), {})[r.round] = value
        if len(trainings) > 1:
            faint += [Line(list(t), list(t.values()), color, faint=True) for t in trainings.values()]
        xs = sorted({x for t in trainings.values() for x in t})
        columns = [[t[x] for t in trainings.values() if x in t] for x in xs]
        if xs:
            means.append(Line(xs, [sum(c) / len(c) for c in columns], color))
    return faint + means


def _rejected(rounds: Sequence[RoundRecord]) -> str:
    total: Counter[str] = Counter()
    for r in rounds:
        total.update({reason.value: count for reason, count in r.rejected.items()})
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in total.most_common())


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write the comparison as one self-contained page with quality against epsilon."""
    path.write_text(render_comparison(comparison), encoding="utf-8")


def render_comparison(comparison: Comparison) -> str:
    """Return the page of a comparison as text."""
    name = comparison.metric
    groups = {
        group: [
            # An infinite epsilon guarantees as little as none.
            Point(row.epsilon if row.epsilon is not None and math.isfinite(row.epsilon) else None, m.mean, m.lo, m.hi)
            for row in comparison.rows
            if row.group == group and (m := row.metric(name)) is not None
        ]
        for group in comparison.groups()
    }
    chart = epsilon_chart("epsilon", f"{name} against epsilon", list(groups.values()))
    return (
        environment()
        .get_template("compare.html.j2")
        .render(comparison=comparison, names=comparison.run_names(), groups=list(groups), chart=Markup(chart))  # noqa: S704
    )
