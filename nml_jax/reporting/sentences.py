"""Sentences of reports: facts in, plain text out. The words are in templates/sentences.jinja."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nml_jax.console import list_words
from nml_jax.reporting.statistics.choose_method import DOMAINS
from nml_jax.reporting.statistics.paired import BLIND, SEEDS
from nml_jax.reporting.statistics.studies import Method

TEMPLATES = FileSystemLoader(Path(__file__).parent / "templates")
THE = ("linear", "lbfgs", "ridge", "mlp")  # methods whose titles take an article


def say(name: str, *facts: Any) -> str:
    """Return the sentences that a macro makes of these facts."""
    text = " ".join(getattr(_load_macros(), name)(*facts).split())
    return re.sub(r" (?=[.,;:)])|(?<=\() ", "", text)


def add_article(method: Method) -> str:
    """Return the title of a method within a sentence."""
    return f"the {method}" if method.name in THE else str(method)


def count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def format_span(counts: Sequence[int], noun: str) -> str:
    """Return the range of several counts, as in "2 to 3 seeds"."""
    return f"{min(counts)} to {count(max(counts), noun)}" if min(counts) < max(counts) else count(counts[0], noun)


@functools.cache
def _load_macros() -> Any:
    environment = Environment(loader=TEMPLATES, undefined=StrictUndefined)
    environment.globals |= {"SEEDS": SEEDS, "BLIND": BLIND, "DOMAINS": DOMAINS}
    own = {"the": add_article, "count": count, "span": format_span, "numbers": "{:,}".format}
    environment.filters |= own | {"list_words": list_words, "upper_first": lambda text: text[:1].upper() + text[1:]}
    return environment.get_template("sentences.jinja").module
