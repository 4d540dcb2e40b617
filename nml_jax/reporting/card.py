"""The card of an exported folder: what the weights are, in Markdown, with the front matter that the Hub reads."""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, StrictUndefined

from nml_jax import __version__
from nml_jax.reporting.sentences import TEMPLATES

SHOWN = 40  # classes that the card lists; the config holds them all


def write_card(facts: Mapping[str, Any]) -> str:
    """Return the card.

    Args:
        facts: what templates/card.jinja reads.
    """
    text = _make_environment().get_template("card.jinja").render(**facts, version=__version__, shown=SHOWN)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@functools.cache
def _make_environment() -> Environment:
    how = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=TEMPLATES, **how)
    environment.filters["cell"] = _escape_cell
    environment.filters["quoted"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment


def _escape_cell(value: Any) -> str:
    """Return a value as a cell of a table: on one line, without marks of Markdown and HTML."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", text)
