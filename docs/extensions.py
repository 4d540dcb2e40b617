"""What Sphinx lacks for these pages: the table of config keys, and formulas that need no script and no network."""

import re

from config_keys import COMMON, Key, read_keys
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class ConfigKeys(SphinxDirective):
    """Every key with its default and meaning, a table for each section."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(COMMON))
        text = []
        for section in read_keys(COMMON.read_text("utf-8")):
            text += [f"## {section.name or 'Experiment and noise'}", "", _escape(section.meaning), ""]
            text += ["| key | default | meaning |", "|---|---|---|"]
            text += [*map(_row, section.keys), ""]
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def _row(key: Key) -> str:
    anchor = key.name.replace(".", "-")
    return f"| [`{key.name}`]{{#{anchor}}} | `{_cell(key.default)}` | {_escape(key.meaning)} |"


def _cell(code: str) -> str:
    return code.replace("|", "\\|")


def _escape(comment: str) -> str:
    """Keep Markdown from reading a comment as anything but text; code between backticks stays code."""
    parts = comment.split("`")
    for i in range(0, len(parts), 2):
        for mark in "\\*_[]<$":
            parts[i] = parts[i].replace(mark, f"\\{mark}")
    return _cell("`".join(parts))


def _inline(self, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _display(self, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def _escape_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Keep reStructuredText from reading scikit-learn's `classes_` as a link, and "K." as the start of a list."""
    lines[:] = [re.sub(r"(?<=\w)_(?!\w)", r"\\_", re.sub(r": (\w\.)", r": \\\1", line)) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("config-keys", ConfigKeys)
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _escape_docstring, priority=100)  # before napoleon
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
