"""The report's plots, as Matplotlib writes SVG. The only file that imports it.

Text stays text: report.css gives it the page's font and colour. One palette reads on white and on dark. Nothing depends
on the clock or on global state: the same numbers give the same bytes.
"""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from nml_jax.reporting.blocks import Mark, Panel
from nml_jax.reporting.statistics.choose_method import Versus

WIDTH, HEIGHT = 340, 236  # points; the page scales a panel to its column
GREY = "#808890"
# Okabe and Ito's hues, and a ramp: both have a contrast of 3.3 or more to white and to the dark page.
HEADS = ("#0c7bb8", "#d06f00", "#0a9370", "#b5559a", "#4a90c9", "#b85c1e", "#8a7a00", "#7b858f")
RAMP = ("#3d6fdc", "#7a55e0", "#b04cc8", "#d4458f", "#e0523f", "#cc7a10")
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "<": "◀", ">": "▶", "P": "✚"}
POINTS = 120  # of a curve or spectrum that is drawn

_STYLE = {
    "svg.fonttype": "none",
    "path.simplify": False,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.edgecolor": GREY,
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "text.parse_math": False,
    "lines.solid_capstyle": "round",
}


class Axis(NamedTuple):
    """Where the conditions stand: positions, their labels, and what they are."""

    x: Sequence[float]
    ticks: Sequence[str]
    label: str


def choose_mark(i: int, name: str = "") -> Mark:
    """Return colour and marker of series i."""
    return Mark(name, HEADS[i % len(HEADS)], list(MARKERS.values())[i % len(MARKERS)])


def choose_colour(i: int, n: int) -> str:
    """Return the colour of condition i of n on the ramp."""
    at = (i / (n - 1) if n > 1 else 0.5) * (len(RAMP) - 1)
    low = min(int(at), len(RAMP) - 2)
    ends = (np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) for colour in RAMP[low : low + 2])
    first, second = ends
    return "#" + "".join(f"{round(c):02x}" for c in first + (at - low) * (second - first))


def place_series(x: np.ndarray, j: int, n: int) -> np.ndarray:
    """Return where the markers of series j of n stand: side by side, within a quarter of a gap of their tick."""
    gap = np.diff(x).min() if len(x) > 1 else 1.0
    return x + (j - (n - 1) / 2) * gap * min(0.13, 0.5 / n)


def draw_response(
    name: str,
    title: str,
    axis: Axis,
    series: dict[str, list[list[float]]],
    *,
    scale: float = 1,
    by_condition: bool = False,
) -> Panel:
    """Draw a measure against the condition: mean and sample sd, and every seed as a dot.

    Args:
        name: of the panel, unique on the page.
        title: measure, unit and direction.
        series: label -> values of the seeds at each condition.
        scale: factor of the values.
        by_condition: the colours tell conditions apart, not series.
    """
    with _style(name):
        figure, axes = _panel(title, axis.label)
        x, said = np.asarray(axis.x, float), []
        for j, (label, seeds) in enumerate(series.items()):
            values = [scale * np.asarray(v, float) for v in seeds]
            at = place_series(x, j, len(series))
            mean = np.array([v.mean() if v.size else np.nan for v in values])
            own, marker = choose_mark(j).colour, list(MARKERS)[j % len(MARKERS)]
            axes.plot(at, mean, "-", color=GREY if by_condition else own, lw=1.3, zorder=2)
            for i, v in enumerate(values):
                colour = choose_colour(i, len(x)) if by_condition else own
                sd = v.std(ddof=1) if v.size > 1 else None
                axes.plot(np.full(v.size, at[i]), v, "o", ms=3.6, mew=0, color=colour, alpha=0.45, zorder=1)
                bars = {"elinewidth": 1.1, "capsize": 2.5, "capthick": 1.1, "zorder": 3}
                axes.errorbar(at[i], mean[i], sd, fmt=marker, ms=5.5, mew=0, color=colour, **bars)
            said += [f"{label} {mean[0]:.4g} to {mean[-1]:.4g}"] if any(v.size for v in values) else []
        axes.set_xticks(x, axis.ticks)
        axes.margins(x=0.06, y=0.1)
        alt = f"{title}, by {axis.label}: {'; '.join(said)} (means, {axis.ticks[0]} to {axis.ticks[-1]})"
        return _draw(figure, alt)


# The sign of a Versus: its meaning and Matplotlib's marker.
VERDICTS = {1: Mark("better", HEADS[2], "▶"), 0: Mark("no difference shown", HEADS[7], "●"),
            -1: Mark("worse", HEADS[1], "◀")}  # fmt: skip
SIGNS = {1: ">", 0: "o", -1: "<"}


def draw_differences(
    name: str, title: str, label: str, lines: dict[str, tuple[Versus, list[float]]], scale: float = 100
) -> Panel:
    """Draw differences to a reference: mean, two intervals (thick within thin), seeds as dots.

    Args:
        label: of the x axis.
        scale: factor of the values.
        lines: who differs -> by how much, and in every seed; from top to bottom.
    """
    with _style(name):
        height = 68 + 19 * len(lines)
        figure, axes = _panel(title, label, height, left=min(0.5, 0.03 + 0.0165 * max(map(len, lines))))
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=GREY, lw=0.9, zorder=1)
        said = []
        for y, (who, (versus, seeds)) in enumerate(lines.items()):
            verdict, colour, _ = VERDICTS[versus.sign]
            difference = scale * versus.plain.difference
            axes.plot(
                scale * np.array(seeds), [y + 0.3] * len(seeds), "o", ms=2.8, mew=0, color=colour, alpha=0.6, zorder=2
            )
            for c, width in ((versus.wide, 1.0), (versus.plain, 2.8)):
                axes.plot([scale * c.low, scale * c.high], [y, y], "-", color=colour, lw=width, zorder=3)
            axes.plot(difference, y, SIGNS[versus.sign], ms=6.5, mew=0, color=colour, zorder=4)
            said.append(f"{who} {difference:+.3g}, {verdict}")
        axes.set_yticks(range(len(lines)), list(lines))
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.margins(x=0.06)
        return _draw(figure, f"{title}, {label}: {'; '.join(said)}")


def draw_reliability(name: str, title: str, lines: Mapping[str, Sequence[ArrayLike]]) -> Panel:
    """Draw how often answers are right against how sure they are, in %; on the diagonal both are the same.

    Args:
        lines: what is drawn -> (confidence, accuracy) of its bins.
    """
    with _style(name):
        figure, axes = _panel(title, "confidence (%)")
        low = 100 * min((float(np.min(each)) for line in lines.values() for each in line), default=0.0)
        axes.plot([low, 100], [low, 100], "--", color=GREY, lw=0.9, zorder=1)
        for i, (x, y) in enumerate(lines.values()):
            mark, marker = choose_mark(i), list(MARKERS)[i % len(MARKERS)]
            axes.plot(100 * np.asarray(x), 100 * np.asarray(y), f"-{marker}", ms=5, mew=0, lw=1.2, color=mark.colour)
        axes.margins(x=0.04, y=0.06)
        last = {who: [100 * np.asarray(x)[-1] for x in line] for who, line in lines.items()}
        said = "; ".join(f"{who}: {x:.3g} sure, {y:.3g} right" for who, (x, y) in last.items())
        return _draw(figure, f"{title}: share of right answers against confidence (%). In the last bin, {said}")


def draw_curves(
    name: str,
    title: str,
    label: str,
    groups: dict[str, list[tuple[Sequence[float], Sequence[float]]]],
    *,
    log: str = "",
) -> Panel:
    """Draw lines, one colour per condition: every seed thin, and their mean if the seeds share the x values.

    Args:
        label: of the x axis.
        groups: condition -> (x, y) of each seed.
        log: the axes on a logarithmic scale, "", "y" or "xy".
    """
    with _style(name):
        figure, axes = _panel(title, label)
        for i, lines in enumerate(groups.values()):
            colour = choose_colour(i, len(groups))
            mean = len({tuple(x) for x, _ in lines}) == 1 and len(lines) > 1
            for x, y in lines:
                axes.plot(x, y, color=colour, lw=0.7 if mean else 1.5, alpha=0.5 if mean else 1)
            if mean:
                axes.plot(lines[0][0], np.mean([y for _, y in lines], axis=0), color=colour, lw=1.7)
        for side in log:
            getattr(axes, f"set_{side}scale")("log")
            getattr(axes, f"{side}axis").set_major_formatter(lambda value, _: f"{value:g}")
            getattr(axes, f"{side}axis").set_minor_locator(NullLocator())
            low, high = getattr(axes, f"get_{side}lim")()
            if high < 30 * low:  # powers of ten alone would leave an axis with a tick, or none
                getattr(axes, f"{side}axis").set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.margins(x=0.02, y=0.06)
        return _draw(figure, f"{title} against {label}, one colour for each of: {', '.join(groups)}")


def thin_shares(s: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return (i, share) of at most POINTS singular values, evenly spaced on a log scale."""
    s = np.asarray(s, np.float64)
    at = np.unique(np.geomspace(1, s.size, min(POINTS, s.size)).round().astype(int))
    share = s[at - 1] / s.sum()
    return at, np.where(share > 1e-9, share, np.nan)


def thin(x: ArrayLike, y: ArrayLike, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `points` points, each the mean of a block, so that a noisy curve keeps its level."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    edges = np.linspace(0, len(x), min(points, len(x)) + 1).astype(int)
    x, y = (np.add.reduceat(v, edges[:-1]) / np.diff(edges) for v in (x, y))
    return x, y


def _style(name: str) -> AbstractContextManager[None]:
    rc: dict[Any, Any] = {**_STYLE, "svg.hashsalt": name}  # from which ids are made: no two panels share one
    return matplotlib.rc_context(rc)


def _panel(title: str, label: str, height: float = HEIGHT, left: float = 0.125) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    below, above = 0.165 * HEIGHT / height, 0.11 * HEIGHT / height
    axes = figure.add_axes((left, below, 0.98 - left, 1 - below - above))
    axes.grid(axis="y")
    axes.tick_params(length=0, pad=5)
    axes.set_xlabel(label, labelpad=5)
    figure.text(0.005, 1 - 0.015 * HEIGHT / height, title, ha="left", va="top", fontweight="bold")
    return figure, axes


def _draw(figure: Figure, alt: str) -> Panel:
    """Return the figure as an element of a page, without the group ids and namespaces of a file."""
    out = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    return Panel(re.sub(r'(?<=<g) id="[^"]*"| xmlns\S*="[^"]*"', "", svg[svg.index("<svg") :]), alt)
