"""Draw a study's panels as one figure for papers: SVG and PDF whose fonts are inside the file."""

import dataclasses
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from nml_jax.reporting.figures import GREY, MARKERS, choose_colour, choose_mark, place_series
from nml_jax.reporting.statistics.paired import Unit
from nml_jax.reporting.studies.published import Published

COLUMN, HEIGHT = 3.4, 2.6  # inches of a panel: two fit a page of text
ROW, LINE = 44, 12  # letters that fit below a panel, and points from one line to the next
STYLE: dict[Any, Any] = {
    "svg.fonttype": "path", "pdf.fonttype": 42, "font.size": 8, "axes.titlesize": 8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "axes.axisbelow": True,
    "grid.alpha": 0.3, "grid.linewidth": 0.5, "text.parse_math": False, "legend.frameon": False, "legend.fontsize": 7,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A panel to draw: its title, axes, points, and published lines on the same axes."""

    title: str
    x: str
    unit: Unit
    points: pd.DataFrame  # with the columns numbers.COLUMNS
    published: Sequence[Published] = ()
    scatter: bool = dataclasses.field(default=False, kw_only=True)  # x is a measure, with a value for every seed

    def list_ticks(self) -> pd.DataFrame:
        """List what stands on the x axis of lines, in its order: x_label, x, and its place ("at").

        That is to scale, or evenly spaced where two have the same x, as label files of one rate, or one is unknown.
        """
        ticks = self.points.drop_duplicates("x_label").sort_values("x", kind="stable")[["x_label", "x"]]
        x = np.asarray(ticks["x"], float)
        to_scale = np.isfinite(x).all() and np.unique(x).size == x.size
        return ticks.assign(at=x if to_scale else np.arange(float(x.size)))


def draw_figure(name: str, panels: Sequence[Drawn]) -> tuple[bytes, bytes]:
    """Return the figure of a study as SVG and as PDF. The same points give the same bytes."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):  # ids of elements are made from the name
        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        most = max(len(panel.published) for panel in panels)
        height = HEIGHT + LINE * (most + 3) / 72 if most else HEIGHT  # with the legend below
        figure = Figure(figsize=(COLUMN * columns, height * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            (_draw_scatter if panel.scatter else _draw_lines)(axes, panel)
            axes.set_title(panel.title + panel.unit.suffix.replace(" ", ", "), loc="left", fontweight="bold")
            axes.set_xlabel(panel.x)
            axes.grid(axis="y")
            _add_legend(axes, below=bool(panel.published))
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        return _save(figure, "svg", {"Date": None}), _save(figure, "pdf", {"CreationDate": None})


def _add_legend(axes: Axes, *, below: bool) -> None:
    """Add the legend, below the name of the x axis if its words are long."""
    if not below:
        axes.legend()
        return
    lines = max((label.get_text().count("\n") + 1 for label in axes.get_xticklabels()), default=1)
    down = ScaledTranslation(0, -(LINE * (lines + 2)) / 72, axes.figure.dpi_scale_trans)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=axes.transAxes + down, borderaxespad=0)


def _save(figure: Figure, kind: str, about: Mapping[str, None]) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=kind, metadata=dict(about))
    return out.getvalue()


def _draw_lines(axes: Axes, panel: Drawn) -> None:
    """Draw the mean and sample sd of every series at every x, and every seed as a dot."""
    points, ticks = panel.points, panel.list_ticks()
    names, labels = list(dict.fromkeys(points["series"])), list(ticks["x_label"])
    at = ticks["at"].to_numpy(float)
    for j, name in enumerate(names):
        own = points[points["series"] == name]
        places = dict(zip(labels, place_series(at, j, len(names)), strict=True))
        found: Any = own.groupby("x_label")["y"]  # whose types pandas leaves open
        mean = panel.unit.scale * found.mean().reindex(labels).dropna()
        sd = panel.unit.scale * found.std(ddof=1).reindex(mean.index)
        x = [places[label] for label in mean.index]
        colour, marker = choose_mark(j).colour, list(MARKERS)[j % len(MARKERS)]
        axes.plot(
            [places[v] for v in own["x_label"]], panel.unit.scale * own["y"], "o", ms=2, mew=0, color=colour, alpha=0.4
        )
        axes.errorbar(x, mean, sd.fillna(0), fmt=f"-{marker}", ms=4, lw=1, capsize=2, color=colour, label=name)
    _draw_published(axes, panel.published, ticks)
    axes.set_xticks(at, [textwrap.fill(label, max(8, ROW // len(labels))) for label in labels])


def _draw_published(axes: Axes, lines: Sequence[Published], ticks: pd.DataFrame) -> None:
    """Draw published numbers in grey: a line over rates where x is to scale, or a mark above each named condition."""
    places = dict(zip(ticks["x_label"], ticks["at"], strict=True))
    to_scale = np.array_equal(ticks["at"].to_numpy(float), ticks["x"].to_numpy(float))
    for i, line in enumerate(lines):
        how, label = {"color": GREY, "lw": 1}, textwrap.fill(f"published: {line.what}", ROW)
        if all(x in places for x in line.x):
            marker = list(MARKERS)[i % len(MARKERS)]
            axes.plot([places[x] for x in line.x], line.values, marker, **how, ms=4, mfc="none", label=label)
        elif to_scale:
            axes.plot(line.x, line.values, "--", **how, label=label)


def _draw_scatter(axes: Axes, panel: Drawn) -> None:
    """Draw the mean over seeds of every test and series as a point, with the sample sd both ways."""
    points = panel.points
    names, tests = (list(dict.fromkeys(points[key])) for key in ("series", "x_label"))
    groups: Any = points.groupby(["series", "x_label"], sort=False)
    for (name, test), own in groups:
        x, y = own["x"].to_numpy(float), panel.unit.scale * own["y"].to_numpy(float)
        i, marker = names.index(name), list(MARKERS)[tests.index(test) % len(MARKERS)]
        spread = [np.std(v, ddof=1) if len(v) > 1 else 0 for v in (x, y)]
        label = name if test == tests[0] else None
        colour = choose_colour(i, len(names))
        axes.errorbar(x.mean(), y.mean(), spread[1], spread[0], fmt=marker, ms=4, lw=0.7, color=colour, label=label)
