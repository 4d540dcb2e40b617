"""Write the points of a study's panels as a LaTeX table."""

from collections.abc import Sequence

from nml_jax.reporting.statistics.paired import Stat, stat
from nml_jax.reporting.studies.draw import Drawn

# Signs that LaTeX reads as commands, and those that our own words have, for any engine. Other letters, as in names of
# files and classes, stay as they are: pdfLaTeX knows those of Europe, and XeLaTeX and LuaLaTeX those of the font.
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$", "\N{MINUS SIGN}": "$-$", "\N{EN DASH}": "--", "×": r"$\times$", "²": r"$^2$",
    "→": r"$\to$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "≤": r"$\le$", "≥": r"$\ge$", "α": r"$\alpha$",
    "γ": r"$\gamma$", "λ": r"$\lambda$",
}  # fmt: skip


def write_table(panels: Sequence[Drawn]) -> str:
    """Return a LaTeX table (booktabs): a line for every series of every panel, a column for every x.

    Panels whose x is a measure have no columns, and are left out. A mean over fewer seeds than others has their number.
    """
    flat = [panel for panel in panels if not panel.scatter]
    out = []
    for labels in dict.fromkeys(tuple(_list_labels(panel)) for panel in flat):
        out += [rf"\begin{{tabular}}{{l{'r' * len(labels)}}}", r"\toprule", _make_row(["", *labels]), r"\midrule"]
        for panel in (panel for panel in flat if tuple(_list_labels(panel)) == labels):
            out.append(rf"\multicolumn{{{len(labels) + 1}}}{{l}}{{{escape(panel.title + panel.unit.suffix)}}} \\")
            most = len(set(panel.points["seed"]))
            for series, own in panel.points.groupby("series", sort=False):
                by = own.groupby("x_label")["y"]
                found = [stat(by.get_group(label) if label in by.groups else ()) for label in labels]
                cells = [_format(each, panel, most) for each in found]
                out.append(_make_row([str(series), *cells]))
        out += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(out)


def _list_labels(panel: Drawn) -> list[str]:
    return list(panel.list_ticks()["x_label"])


def _format(s: Stat, panel: Drawn, most: int) -> str:
    """Return a mean ± sample sd; with the number of its seeds if that is less than `most`; "" of no seeds."""
    number = panel.unit.number
    if not s.n:
        return ""
    return f"{number(s.mean)}{f' ± {number(s.sd)}' if s.n > 1 else ''}{f' (n = {s.n})' if s.n < most else ''}"


def _make_row(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"


def escape(text: str) -> str:
    """Escape what LaTeX would take for a command, and write the signs of our own words as commands."""
    return "".join(LATEX.get(c, c) for c in text)
