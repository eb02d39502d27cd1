"""An audit as one picture: the scores of canaries in and out, and the figures on one axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedlearn.errors import DataMissing, MissingDependency, OutOfRange
from fedlearn.lab.audit.result import AuditResult, View

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as err:
    raise MissingDependency("matplotlib is not installed: pip install 'fedlearn[report]'.") from err

FORMATS = (".png", ".svg", ".pdf")
_OUT, _IN, _INK = "#9aa3ad", "#2f6db3", "#20262d"


def require_writable(path: Path) -> None:
    """Refuse a picture that could not be written, before any work.

    Raises:
        OutOfRange: the file's ending is none of .png, .svg, .pdf.
        DataMissing: its folder does not exist.
    """
    if path.suffix.lower() not in FORMATS:
        raise OutOfRange(f"--picture={path}: must end in one of {', '.join(FORMATS)}.")
    if not path.absolute().parent.is_dir():
        raise DataMissing(f"--picture={path}: the folder {path.absolute().parent} does not exist; make it first.")


def draw_audit(result: AuditResult, path: Path) -> None:
    """Write the picture; the ending of ``path`` decides the format. A training that broke down has none of the scores.

    Raises:
        OutOfRange: the ending is unknown, or the file cannot be written.
        DataMissing: the folder does not exist.
    """
    require_writable(path)
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1.0))
    if result.views:
        _histograms(left, result.views[0], result)
    _intervals(right, result)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise OutOfRange(f"--picture={path}: cannot be written ({error}); name a file in a folder that can.") from error


def _histograms(ax: Axes, view: View, result: AuditResult) -> None:
    bins = np.linspace(view.scores.min(), view.scores.max(), 31).tolist()
    ax.hist(view.scores[~result.included], bins, density=True, color=_OUT, alpha=0.7, label="took no part")
    ax.hist(view.scores[result.included], bins, density=True, color=_IN, alpha=0.6, label="took part")
    line = np.linspace(bins[0], bins[-1], 200)
    for mean, color in ((0.0, _OUT), (1.0 / result.config.noise_multiplier, _IN)):
        ax.plot(line, np.exp(-((line - mean) ** 2) / 2) / np.sqrt(2 * np.pi), color=color, linewidth=1.6)
    ax.set_title("canaries, every round seen; lines: as claimed", fontsize=9, loc="left")
    ax.set_xlabel("score, in standard deviations")
    ax.set_yticks([])
    ax.legend(frameon=False, fontsize=8)


def _intervals(ax: Axes, result: AuditResult) -> None:
    labels: list[str] = []
    for view in result.views:
        y = -len(labels)
        ax.plot((view.estimate.low, view.estimate.high), (y, y), color=_IN, linewidth=2)
        ax.plot([view.estimate.epsilon], [y], "o", color=_IN)
        labels.append(f"estimate,\n{view.name}")
        ax.plot([view.bound.epsilon], [y - 1], ">", color=_INK)
        labels.append(f"lower bound,\n{view.name}")
    ax.axvline(result.analytic_epsilon, color=_INK, linestyle="--", linewidth=1.2)
    title = f"dashed: analytic {result.analytic_epsilon:.2f}; verdict: {result.verdict.value}"
    ax.set_title(title, fontsize=9, loc="left")
    ax.set_yticks([-index for index in range(len(labels))], labels, fontsize=8)
    ax.set_xlabel(f"epsilon at delta {result.config.delta:g}")
    ax.set_xlim(left=0)
    ax.set_ylim(-len(labels) + 0.4, 0.6)
