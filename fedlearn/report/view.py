"""What every output says about a run: figures as text, and the verdict. Shared by the page and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedlearn.report.guarantee import NO_GUARANTEE, PrivacyRecord, figure
from fedlearn.report.summary import GapClosed, Lift, MetricResult, ModelKind, ModelRow, Summary

DASH = "–"
MINUS = "−"


def decimal(value: float | None, digits: int = 3) -> str:
    """Print a figure with a fixed number of digits, a true minus sign, and a dash for None or NaN."""
    if value is None or math.isnan(value):
        return DASH
    return f"{value:,.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """Print a difference with its sign."""
    return ("" if value < 0 else "+") + decimal(value, digits)


def interval(lo: float | None, hi: float | None, digits: int = 3) -> str:
    """Print an interval, or nothing where none was computed."""
    if lo is None or hi is None:
        return ""
    between = " to " if lo < 0 or hi < 0 else DASH
    return f"{decimal(lo, digits)}{between}{decimal(hi, digits)}"


def percent(value: float) -> str:
    """Print a share as whole per cent."""
    return f"{100 * value:.0f} %".replace("-", MINUS)


def epsilon_text(epsilon: float | None) -> str:
    """Print a model's epsilon; a model without one has none, which is not zero."""
    return "none" if epsilon is None else figure(epsilon)


def capitalised(text: str) -> str:
    """Raise the first letter and leave the rest as it is."""
    return text[:1].upper() + text[1:]


def seconds_text(seconds: float) -> str:
    """Print a wall time: ``7.3 s``, ``2 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def metric_names(models: Sequence[ModelRow]) -> tuple[str, ...]:
    """Every metric of the table, in order of first appearance."""
    return tuple(dict.fromkeys(m.name for model in models for m in model.metrics))


def headline_row(summary: Summary) -> ModelRow:
    """Return the row the run is about."""
    return next(m for m in summary.models if m.name == summary.headline)


def headline_metric(summary: Summary) -> MetricResult | None:
    """Return the first metric of the headline row."""
    return next(iter(headline_row(summary).metrics), None)


def headline_gap(summary: Summary) -> GapClosed | None:
    """Return the gap closed by the headline row, if the task has a bound."""
    return next((g for g in summary.gaps if g.model == summary.headline), None)


def failed_checks(summary: Summary) -> tuple[Lift, ...]:
    """Return the lifts whose interval contradicts what was expected of them."""
    return tuple(lift for lift in summary.lifts if lift.ok is False)


def best_control(summary: Summary, metric: str) -> tuple[ModelRow, MetricResult] | None:
    """Return the strongest control and its metric, or None where there is no control."""
    found = [(m, r) for m in summary.models if m.kind is ModelKind.CONTROL if (r := m.metric(metric)) is not None]
    return max(found, key=lambda pair: pair[1].mean, default=None)


def verdict(summary: Summary) -> str:
    """Say in one line what came out: the headline metric, the strongest control, the gap closed."""
    metric = headline_metric(summary)
    if metric is None:
        return f"{summary.headline}: nothing was measured."
    text = f"{metric.name} {decimal(metric.mean)}"
    best = best_control(summary, metric.name)
    if best is not None:
        text += f", against {decimal(best[1].mean)} for {best[0].name}, the strongest control"
    gap = headline_gap(summary)
    if gap is not None:
        text += f"; {percent(gap.value)} of the gap from {gap.baseline} to {gap.bound} closed"
    return text + "."


def gap_sentence(gap: GapClosed) -> str:
    """Say one gap closed."""
    between = interval(gap.lo, gap.hi, 2)
    return (
        f"{gap.model} closes {decimal(gap.value, 2)}{f' ({between})' if between else ''} of the gap in {gap.metric} "
        f"from {gap.baseline} to {gap.bound}."
    )


def epsilon_line(privacy: PrivacyRecord) -> str:
    """Say the guarantee in the fewest words that are still true."""
    if privacy.epsilon is None or privacy.delta is None:
        return f"{NO_GUARANTEE} (privacy={privacy.mode})"
    return f"epsilon {figure(privacy.epsilon)} at delta {figure(privacy.delta)} per {privacy.unit}"


def published_sentence(privacy: PrivacyRecord) -> str | None:
    """Say what holds if every model of the study is published, or None where there is one model."""
    study = privacy.if_all_published
    if study is None:
        return None
    what = f"If all {study.models:,} models of this study were published"
    if study.epsilon is None or privacy.delta is None:
        return f"{what}: no guarantee."
    return f"{what}: epsilon {figure(study.epsilon)} at delta {figure(privacy.delta)} per {privacy.unit}."


def realised_sampling(privacy: PrivacyRecord) -> str:
    """Say the sampling as planned and as executed."""
    sampling = privacy.sampling
    text = sampling.method
    if sampling.planned_rate is not None:
        text += f", q = {sampling.planned_rate:g}"
    if sampling.realised_frequency is not None:
        text += f", realised {sampling.realised_frequency.value:.4g} (not protected)"
    return text
