"""A plan as one picture: epsilon after each round, and the noise each mechanism leaves at the same epsilon."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fedlearn.errors import MissingDependency, OutOfRange
from fedlearn.privacy.choices import Kind
from fedlearn.report.guarantee import figure
from fedlearn.report.plan_result import PlanResult

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as err:
    raise MissingDependency("matplotlib is not installed: pip install 'fedlearn[report]'.") from err

FORMATS: Final = (".png", ".svg", ".pdf")
_INK, _ACCENT, _MUTED = "#222222", "#1f6f8b", "#b8c4c9"


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be written, before anything is computed.

    Raises:
        OutOfRange: its format is unknown or its folder does not exist.
    """
    if path.suffix.lower() not in FORMATS:
        raise OutOfRange(f"--picture {path}: the name must end with {' or '.join(FORMATS)}.")
    if not path.parent.is_dir():
        raise OutOfRange(f"--picture {path}: there is no folder {path.parent}; make it first.")


def write_picture(path: Path, result: PlanResult) -> None:
    """Draw the curve of epsilon and the error of each mechanism.

    Args:
        path: file to write, ending with .png, .svg or .pdf.
        result: the plan and what surrounds it.

    Raises:
        OutOfRange: the file cannot be written.
    """
    canvas = Figure(figsize=(9.0, 3.6), dpi=150, layout="constrained")
    left, right = canvas.subplots(1, 2)
    _draw_curve(left, result)
    _draw_errors(right, result)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(10)
    try:
        canvas.savefig(path)
    except OSError as error:
        raise OutOfRange(f"--picture {path}: cannot be written ({error}); name a file in a folder that can.") from error


def _draw_curve(axes: Axes, result: PlanResult) -> None:
    plan = result.plan
    rounds, values = zip(*result.curve, strict=True)
    axes.plot(rounds, values, color=_ACCENT, linewidth=1.8)
    axes.set_title(f"epsilon {figure(plan.epsilon)} at delta {plan.delta:g}, per {plan.unit}", loc="left")
    axes.set_xlabel("rounds")
    axes.set_ylabel("epsilon so far")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)


def _draw_errors(axes: Axes, result: PlanResult) -> None:
    rows = [(c.name, c.figures.max_error) for c in result.choices if c.kind is Kind.MECHANISM and c.figures is not None]
    errors = [(name, error) for name, error in reversed(rows) if error is not None]
    own = min(abs(error - result.max_error) for _, error in errors) if errors else 0.0
    colors = [_ACCENT if abs(error - result.max_error) == own else _MUTED for _, error in errors]
    axes.barh([name for name, _ in errors], [error for _, error in errors], color=colors)
    for place, (_, error) in enumerate(errors):
        axes.text(error, place, f" {error:.3g}", va="center", fontsize=8, color=_INK)
    axes.set_title("noise in the sum, same (epsilon, delta)", loc="left")
    axes.set_xlabel("largest std per coordinate, in clip norms")
    axes.margins(x=0.15)
