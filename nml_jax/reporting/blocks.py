"""What a page is made of, in order. templates/page.jinja writes each kind as HTML and escapes every text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

Lines = Iterable[Sequence[str]]
BEST = Markup("<strong>{}</strong>")  # a cell that is set off from the others of its column
PROSE = Markup('<span class="prose">{}</span>')  # a cell whose words may stand on several lines


class Block(NamedTuple):
    """One part of a page."""

    # heading | lead | note | p | code of text, folded of Blocks, verdict, facts, items, table, picture or figure
    kind: str
    content: Any
    title: str = ""  # of what is folded


class Table(NamedTuple):
    """A table. The first cell of a line names it; a group with a name has a heading row.

    text: columns of words, aligned left as the first one is.
    over: (name, columns) of headings above the first one.
    """

    caption: str
    head: Sequence[str]
    groups: Mapping[Any, Lines]
    text: Sequence[int] = ()
    over: Sequence[tuple[str, int]] = ()


class Answer(NamedTuple):
    """A file in a verdict.

    about: what it is -> in words. command: the line that applies it.
    """

    about: Mapping[str, Sequence[str]]
    command: str


class Verdict(NamedTuple):
    """The box on top of a page: what is shown, and the files to use."""

    text: str
    answers: Sequence[Answer] = ()


class Panel(NamedTuple):
    svg: str
    alt: str


class Picture(NamedTuple):
    jpeg: str  # in base64
    caption: str


class Mark(NamedTuple):
    """An entry of a legend."""

    name: str
    colour: str
    sign: str  # the marker as a character


class Figure(NamedTuple):
    title: str
    panels: Sequence[Panel]
    caption: str
    legend: Sequence[Mark]
    wide: bool = False  # each panel takes the whole width


def table(*fields: Any, **more: Any) -> Block:
    return Block("table", Table(*fields, **more))


def fold(title: str, *blocks: Block) -> Block:
    return Block("folded", blocks, title)
