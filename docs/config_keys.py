"""Every key of configs/common.py with its default and its comment, read from the text of the file."""

import ast
import io
import tokenize
from pathlib import Path
from typing import NamedTuple

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
                defaults = ast.literal_eval(node.value.args[0])
                sections[-1].keys.extend(Key(f"{name}.{key}", repr(value), meaning) for key, value in defaults.items())
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
