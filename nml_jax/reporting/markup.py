"""Pieces of the report's page: text in, escaped HTML out."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

Lines = Iterable[Sequence[str]]
WIDE = 9  # columns; a table of more is set closer


class Best(str):
    """A cell that is set off from the others of its column."""


class Prose(str):
    """A cell whose words may stand on several lines."""


def table(
    caption: str,
    head: Sequence[str],
    groups: Mapping[str, Lines],
    text: Sequence[int] = (),
    over: Sequence[tuple[str, int]] = (),
) -> str:
    """A table in a box that scrolls by itself. A row's first cell names it; a group with a name has a heading row.

    Args:
        text: columns of words, aligned left as the first one is.
        over: (name, columns) of headings above the first one.
    """
    css = ["" if i not in text else ' class="text"' for i in range(len(head))]
    columns = "".join(f'<th scope="col"{css[i]}>{escape(name)}</th>' for i, name in enumerate(head))
    above = "".join(f'<th scope="colgroup" colspan="{width}">{escape(name)}</th>' for name, width in over)
    above = f"<tr>{above}</tr>" if over else ""
    body = ""
    for name, lines in groups.items():
        rows = [f'<tr><th scope="rowgroup" colspan="{len(head)}">{escape(name)}</th></tr>'] if name else []
        for first, *rest in lines:
            cells = "".join(f"<td{css[i]}>{_cell(cell)}</td>" for i, cell in enumerate(rest, 1))
            rows.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>\n')
        body += f"<tbody>{''.join(rows)}</tbody>"
    caption, dense = escape(caption), ' class="dense"' if len(head) > WIDE else ""
    return (
        f'<div class="box" role="region" tabindex="0" aria-label="{caption}"><table{dense}>'
        f"<caption><span>{caption}</span></caption><thead>{above}<tr>{columns}</tr></thead>{body}</table></div>\n"
    )


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>\n"


def _cell(text: str) -> str:
    if isinstance(text, Prose):
        return f'<span class="prose">{escape(text)}</span>'
    return f"<strong>{escape(text)}</strong>" if isinstance(text, Best) else escape(text)


def paragraph(text: str, css: str) -> str:
    text = text.replace(" %", "\N{NO-BREAK SPACE}%").replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    return f'<p class="{css}">{escape(text)}</p>\n'
