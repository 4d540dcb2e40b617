"""What Sphinx lacks for these pages: the table of config keys, and formulas that need neither a script nor a network."""

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

COMMON = Path(__file__).resolve().parent.parent / "configs" / "common.py"


class Key(NamedTuple):
    """A key of the config; its default is as configs/common.py writes it."""

    name: str  # dotted, as "optimizer.lr"
    default: str
    meaning: str


class Section(NamedTuple):
    """A section of the config, and what stands above it."""

    name: str  # "" holds the keys that are in no section
    meaning: str
    keys: list[Key]


def read_keys(source: str) -> list[Section]:
    """Read the keys, defaults and comments of configs/common.py from its text.

    A comment on a key's line is its meaning. Comment lines above it stand before that, and a blank line ends them.
    """
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines = source.splitlines()
    (function,) = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    sections = [Section("", "", [])]
    for node in function.body:
        if not isinstance(node, ast.Assign):
            continue
        name = ast.unparse(node.targets[-1]).removeprefix("config.")
        above = _above(lines, comments, node.lineno)
        meaning = " ".join(filter(None, [*above, comments.get(node.lineno, "")]))
        value = ast.unparse(node.value)
        if name == "config":
            continue
        if isinstance(node.value, ast.Call) and value.startswith("ConfigDict("):
            if node.value.args:
                (defaults,) = node.value.args
                sections[-1].keys.extend(
                    Key(f"{name}.{ast.literal_eval(key)}", ast.unparse(item), meaning)
                    for key, item in zip(defaults.keys, defaults.values, strict=True)
                )
            else:
                sections.append(Section(name, meaning, []))
            continue
        known = [section for section in sections if name.startswith(f"{section.name}.")]
        default = value.replace("placeholder(", "None (").replace("'", '"')
        (known or sections)[-1 if known else 0].keys.append(Key(name, default, meaning))
    return sections


def _above(lines: list[str], comments: dict[int, str], number: int) -> list[str]:
    """Return the comment lines directly above a line."""
    above: list[str] = []
    while lines[number - 2].lstrip().startswith("#"):
        number -= 1
        above.insert(0, comments[number])
    return above


class ConfigKeys(SphinxDirective):
    """Every key with its default and meaning, a table for each section."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(COMMON))
        text = []
        for section in read_keys(COMMON.read_text("utf-8")):
            text += [f"## {section.name or 'Experiment and noise'}", "", _escape(section.meaning), ""]
            text += ["| key | default | meaning |", "|---|---|---|"]
            text += [f"| [`{k.name}`]{{#{_anchor(k)}}} | `{_cell(k.default)}` | {_escape(k.meaning)} |" for k in section.keys]
            text += [""]
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def _anchor(key: Key) -> str:
    return key.name.replace(".", "-")


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
