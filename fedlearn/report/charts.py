"""Charts as inline SVG: the same bytes for the same figures, in the page's colours and type, light and dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedlearn.errors import MissingDependency

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator
except ImportError as err:
    raise MissingDependency("matplotlib is not installed: pip install 'fedlearn[report]'.") from err

# matplotlib writes literal colours; each of these stands for a CSS variable that the page defines twice.
INK, MUTED, HAIR, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#050505", "#060606", "#070707", "#080808")
ACCENT = SERIES[0]
_CSS = {INK: "ink", MUTED: "muted", HAIR: "hair", PAPER: "paper"} | {c: f"s{i}" for i, c in enumerate(SERIES, start=1)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": HAIR,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": HAIR,
    "grid.linewidth": 0.6,
    "xtick.color": HAIR,
    "ytick.color": HAIR,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0.0,
    "xtick.major.size": 3.0,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: a model over rounds, or one training of it.

    Args:
        x: rounds.
        y: figures, as long as ``x``.
        color: index into the page's series colours.
        faint: one training of many rather than their mean.
    """

    x: Sequence[float]
    y: Sequence[float]
    color: int
    faint: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of the quality chart: a mean, its interval, and whether the run is about it."""

    label: str
    mean: float
    lo: float | None
    hi: float | None
    accent: bool
    hollow: bool


@dataclass(frozen=True, slots=True)
class Point:
    """One model in the plane of epsilon and quality; ``epsilon`` None stands at the right edge."""

    epsilon: float | None
    mean: float
    lo: float | None
    hi: float | None


def line_chart(name: str, title: str, lines: Sequence[Line], *, zero: bool = False) -> str:
    """Draw figures over rounds; with ``zero`` the axis starts at 0."""

    def draw(ax: Axes) -> None:
        for line in lines:
            color = SERIES[line.color % len(SERIES)]
            width, alpha = (0.7, 0.35) if line.faint else (1.8, 1.0)
            marker = "o" if len(line.x) == 1 else ""
            ax.plot(line.x, line.y, color=color, linewidth=width, alpha=alpha, marker=marker, ms=4)
        ax.set_xlabel("round")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.margins(x=0.02, y=0.08)
        if zero:
            ax.set_ylim(bottom=0)

    return _svg(name, title, (4.4, 2.4), draw)


def bar_chart(name: str, title: str, bars: Sequence[Bar]) -> str:
    """Draw each model's quality with its interval, best seen against the controls."""

    def draw(ax: Axes) -> None:
        ax.grid(visible=False)
        ax.grid(visible=True, axis="x")
        halo = [withStroke(linewidth=3.2, foreground=PAPER)]
        for i, bar in enumerate(bars):
            y, color = len(bars) - 1 - i, ACCENT if bar.accent else MUTED
            fill, edge = ("none", color) if bar.hollow else (color, "none")
            ax.barh(
                y, bar.mean, height=0.56, color=fill, edgecolor=edge, linewidth=0.9, alpha=1 if bar.accent else 0.55
            )
            if bar.lo is not None and bar.hi is not None:
                ax.plot((bar.lo, bar.hi), (y, y), color=INK, linewidth=1.3, path_effects=halo)
        ax.set_yticks(range(len(bars)), [b.label for b in reversed(bars)])
        ax.tick_params(axis="y", labelcolor=INK, labelsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlim(left=min(0.0, *(b.mean for b in bars)))
        ax.set_ylim(-0.55, len(bars) - 0.45)

    return _svg(name, title, (4.7, 0.5 + 0.27 * len(bars)), draw)


def epsilon_chart(name: str, title: str, groups: Sequence[Sequence[Point]]) -> str:
    """Draw quality against epsilon on a log axis, a line per group; models without a guarantee stand at the right."""
    finite = [p.epsilon for points in groups for p in points if p.epsilon is not None and p.epsilon > 0]
    low, high = (min(finite), max(finite)) if finite else (1.0, 1.0)
    edge = high * max(2.0, (high / low) ** 0.25)

    def draw(ax: Axes) -> None:
        ax.set_xscale("log")
        for i, points in enumerate(groups):
            _draw_points(ax, [p for p in points if p.epsilon is None or p.epsilon > 0], SERIES[i % 4], edge)
        ticks: list[float] = []
        for e in sorted(finite):
            # Labels of epsilons closer than a quarter would lie on each other.
            if not ticks or e > 1.25 * ticks[-1]:
                ticks.append(e)
        open_end = any(p.epsilon is None for points in groups for p in points)
        labels = [f"{t:.3g}" for t in ticks] + (["no privacy"] if open_end else [])
        ax.set_xticks(ticks + ([edge] if open_end else []), labels)
        ax.set_xticks([], minor=True)
        ax.set_xlim(low / 1.4, (edge if open_end else high) * 1.4)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlabel("epsilon (log scale)")

    return _svg(name, title, (5.0, 3.0), draw)


def _draw_points(ax: Axes, points: Sequence[Point], color: str, edge: float) -> None:
    private = sorted((p.epsilon, p.mean) for p in points if p.epsilon is not None)
    ax.plot([e for e, _ in private], [mean for _, mean in private], color=color, linewidth=1.6)
    for p in points:
        x = edge if p.epsilon is None else p.epsilon
        if p.lo is not None and p.hi is not None:
            ax.plot((x, x), (p.lo, p.hi), color=color, linewidth=1.1)
        fill = PAPER if p.epsilon is None else color
        ax.plot([x], [p.mean], "o", ms=5.5, markerfacecolor=fill, markeredgecolor=color)


def _svg(name: str, title: str, inches: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """Render one chart; ``name`` makes its ids unique in the page."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"fedlearn-{name}"}):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        with warnings.catch_warnings():
            # The browser draws the text in its own fonts; matplotlib's lack of a Chinese glyph is no loss.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue(), name, title)


def _inline(svg: str, name: str, title: str) -> str:
    """Strip what only a stand-alone file needs, and hand colours and type over to the page."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for color, variable in _CSS.items():
        body = body.replace(color, f"var(--{variable})")
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", body)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    head = re.sub(r' (width|height)="[\d.]+pt"', "", body[: body.index(">")])
    return f'{head} role="img" aria-label="{label}"{body[body.index(">") :]}'
