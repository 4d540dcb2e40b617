"""The report's plots as inline SVG. The only file that imports matplotlib.

Text stays text and takes the page's font. Colours are names that report.css resolves, so that a plot follows the page
into dark mode and print: matplotlib draws with reserved colour values, which become `var(--name)` in the SVG. Nothing
depends on the clock or on global state: the same numbers give the same bytes.
"""

import html
import io
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import ArrayLike

WIDTH, HEIGHT = 340, 236  # points; the page scales a panel to its column
INK, MUTED, GRID = "#000001", "#000002", "#000003"
MARKERS = "os^Dv<>P"
RAMP = 12  # colours of conditions, --n0 ... --n11 of report.css
HEADS = len(MARKERS)  # colours of heads, --m0 ... --m7

_STYLE = {
    "svg.fonttype": "none",
    "path.simplify": False,
    "font.size": 10,
    "axes.titlesize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
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


def head_colour(i: int) -> str:
    return f"#0001{i % HEADS:02x}"


def head_marker(i: int) -> str:
    return MARKERS[i % HEADS]


def condition_colour(i: int, n: int) -> str:
    """Colour of condition i of n on the ramp."""
    return f"#0002{round(i / (n - 1) * (RAMP - 1)) if n > 1 else RAMP // 2:02x}"


def response(
    name: str,
    title: str,
    axis: Axis,
    series: dict[str, list[list[float]]],
    *,
    scale: float = 1,
    by_condition: bool = False,
) -> str:
    """A measure against the condition: mean and sample sd, and every seed as a dot.

    Args:
        name: of the panel, unique on the page.
        title: measure, unit and direction.
        series: label -> values of the seeds at each condition.
        scale: factor of the values.
        by_condition: the colours tell conditions apart, not series.

    Returns:
        An SVG element.
    """
    with _style(name):
        figure, axes = _panel(title, axis.label)
        x, k = np.asarray(axis.x, float), len(series)
        gap = np.diff(x).min() if len(x) > 1 else 1.0
        said = []
        for j, (label, seeds) in enumerate(series.items()):
            values = [scale * np.asarray(v, float) for v in seeds]
            at = x + (j - (k - 1) / 2) * gap * min(0.13, 0.5 / k)
            mean = np.array([v.mean() if v.size else np.nan for v in values])
            axes.plot(at, mean, "-", color=MUTED if by_condition else head_colour(j), lw=1.3, zorder=2)
            for i, v in enumerate(values):
                colour = condition_colour(i, len(x)) if by_condition else head_colour(j)
                sd = v.std(ddof=1) if v.size > 1 else None
                axes.plot(np.full(v.size, at[i]), v, "o", ms=3.6, mew=0, color=colour, alpha=0.45, zorder=1)
                bars = {"elinewidth": 1.1, "capsize": 2.5, "capthick": 1.1, "zorder": 3}
                axes.errorbar(at[i], mean[i], sd, fmt=head_marker(j), ms=5.5, mew=0, color=colour, **bars)
            said.append(f"{label} {mean[0]:.4g} to {mean[-1]:.4g}")
        axes.set_xticks(x, axis.ticks)
        axes.margins(x=0.06, y=0.1)
        alt = f"{title}, by {axis.label}: {'; '.join(said)} (means, {axis.ticks[0]} to {axis.ticks[-1]})"
        return _svg(figure, name, alt)


class Whisker(NamedTuple):
    """A difference with what stands around it."""

    difference: float
    plain: tuple[float, float]
    wide: tuple[float, float]
    seeds: Sequence[float]
    sign: int  # 1 better, -1 worse, 0 neither is shown


# Of the signs of a Whisker: colours and markers.
VERDICTS = {1: ("better", head_colour(2), ">"), 0: ("no difference shown", head_colour(7), "o"),
            -1: ("worse", head_colour(1), "<")}  # fmt: skip


def differences(name: str, title: str, label: str, lines: dict[str, Whisker], *, scale: float = 1) -> str:
    """Differences to a reference at 0, a line for each: mean, two intervals (thick within thin), every seed as a dot.

    Args:
        label: of the x axis.
        lines: who differs -> by how much; from top to bottom.
        scale: factor of the values.

    Returns:
        An SVG element.
    """
    with _style(name):
        height = 68 + 19 * len(lines)
        figure, axes = _panel(title, label, height, left=min(0.5, 0.03 + 0.0165 * max(map(len, lines))))
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=INK, lw=0.9, zorder=1)
        said = []
        for y, (who, line) in enumerate(lines.items()):
            verdict, colour, marker = VERDICTS[line.sign]
            at = [scale * x for x in line.seeds]
            axes.plot(at, [y + 0.3] * len(at), "o", ms=2.8, mew=0, color=colour, alpha=0.6, zorder=2)
            for ends, width in ((line.wide, 1.0), (line.plain, 2.8)):
                axes.plot([scale * end for end in ends], [y, y], "-", color=colour, lw=width, zorder=3)
            axes.plot(scale * line.difference, y, marker, ms=6.5, mew=0, color=colour, zorder=4)
            said.append(f"{who} {scale * line.difference:+.3g}, {verdict}")
        axes.set_yticks(range(len(lines)), list(lines))
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.margins(x=0.06)
        return _svg(figure, name, f"{title}, {label}: {'; '.join(said)}")


def curves(
    name: str,
    title: str,
    label: str,
    groups: dict[str, list[tuple[Sequence[float], Sequence[float]]]],
    *,
    log: str = "",
) -> str:
    """Lines, one colour per condition: every seed thin, and their mean where the seeds share the x values.

    Args:
        label: of the x axis.
        groups: condition -> (x, y) of each seed.
        log: the axes on a logarithmic scale, "", "y" or "xy".

    Returns:
        An SVG element.
    """
    with _style(name):
        figure, axes = _panel(title, label)
        for i, lines in enumerate(groups.values()):
            colour = condition_colour(i, len(groups))
            shared = len({tuple(x) for x, _ in lines}) == 1
            mean = shared and len(lines) > 1
            for x, y in lines:
                axes.plot(x, y, color=colour, lw=0.7 if mean else 1.5, alpha=0.5 if mean else 1)
            if mean:
                axes.plot(lines[0][0], np.mean([y for _, y in lines], axis=0), color=colour, lw=1.7)
        for side in log:
            getattr(axes, f"set_{side}scale")("log")
            getattr(axes, f"{side}axis").set_major_formatter(lambda value, _: f"{value:g}")
            getattr(axes, f"{side}axis").set_minor_locator(NullLocator())
        axes.margins(x=0.02, y=0.06)
        return _svg(figure, name, f"{title} against {label}, one colour for each of: {', '.join(groups)}")


def shares(s: ArrayLike, points: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """(i, share) of singular values, at most `points` of them, evenly spaced on a log scale."""
    s = np.asarray(s, np.float64)
    at = np.unique(np.geomspace(1, s.size, min(points, s.size)).round().astype(int))
    share = s[at - 1] / s.sum()
    return at, np.where(share > 1e-9, share, np.nan)


def thinned(x: ArrayLike, y: ArrayLike, points: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` points: means over equal blocks, so that a noisy curve keeps its level."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    edges = np.linspace(0, len(x), min(points, len(x)) + 1).astype(int)
    x, y = (np.add.reduceat(v, edges[:-1]) / np.diff(edges) for v in (x, y))
    return x, y


def section(title: str, panels: Sequence[str], caption: str, legend: Iterable[tuple[str, str, str]]) -> str:
    """A figure of the page: heading, legend of (name, colour, marker), panels, caption; nothing without panels."""
    if not panels:
        return ""
    keys = "".join(f"<li>{swatch(colour, marker)}{html.escape(name)}</li>" for name, colour, marker in legend)
    return (
        f'<h3>{html.escape(title)}</h3>\n<figure><ul class="legend">{keys}</ul>'
        f'<div class="panels">{"".join(panels)}</div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>\n"
    )


def swatch(colour: str, marker: str = "") -> str:
    """A legend's key: a line, with a head's marker where there is one."""
    mark = {
        "o": "M10.4 6a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",
        "s": "M10.6 2.6h6.8v6.8h-6.8z",
        "^": "M14 1.6l4.2 8h-8.4z",
        "D": "M14 1.4l4.6 4.6-4.6 4.6-4.6-4.6z",
        "v": "M14 10.4l4.2-8h-8.4z",
        "<": "M9.6 6l8-4.2v8.4z",
        ">": "M18.4 6l-8-4.2v8.4z",
        "P": "M12.6 2h2.8v2.6H18v2.8h-2.6V10h-2.8V7.4H10V4.6h2.6z",
    }.get(marker, "")
    drawn = f'<svg class="key" viewBox="0 0 28 12" aria-hidden="true"><path d="M1 6h26" style="stroke:{colour}"/>'
    return _coloured(f'{drawn}<path d="{mark}" style="fill:{colour}"/></svg>')


def _style(name: str) -> AbstractContextManager[None]:
    rc: dict[Any, Any] = {**_STYLE, "svg.hashsalt": name}
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


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as one element for the page: no prologue, no fonts, ids of its own, coordinates of two decimals."""
    out = io.StringIO()
    figure.savefig(
        out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    body = re.sub(r"^.*?<svg[^>]*>|<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", out.getvalue(), flags=re.S)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r" font-family: [^;\"]*;?", "", body).replace("xlink:href", "href")
    body = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", body)
    body = re.sub(r' (d|x|y|width|height|transform)="[^"]*"', lambda m: _rounded(m[0]), body)
    used = set(re.findall(r"[#](\w+)[\")]", body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r"(href=\"#|url\(#)", rf"\g<1>{name}-", body)
    body = re.sub(r"\s*\n\s*", " ", body).replace(" </g>", "</g>").replace("<g/>", "").replace("> <", "><")
    label = html.escape(alt)
    height = round(72 * figure.get_figheight())
    return f'<svg class="plot" role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {height}">{_coloured(body)}'


def _rounded(attribute: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), attribute)


def _coloured(svg: str) -> str:
    names = {"0001": "m", "0002": "n"}
    svg = re.sub(r"#(0001|0002)([0-9a-f]{2})", lambda m: f"var(--{names[m[1]]}{int(m[2], 16)})", svg)
    return svg.replace(INK, "var(--ink)").replace(MUTED, "var(--muted)").replace(GRID, "var(--rule)")
