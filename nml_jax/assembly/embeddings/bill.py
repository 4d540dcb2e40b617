"""Count the texts of a config, and what they would cost, for --dry_run."""

import itertools
from typing import NamedTuple

from ml_collections import ConfigDict

from nml_jax.assembly import agreement
from nml_jax.assembly.embeddings.encode import count_tokens, list_parts
from nml_jax.data.embeddings.cache import Cache, find_folder
from nml_jax.data.embeddings.service import find_service
from nml_jax.tasks.classification import list_tasks


class Bill(NamedTuple):
    """What the texts of a run would cost.

    texts: of all splits. unique: different ones. cached: of these, the ones that were answered before. tokens: of the
    others. counted: by a tokenizer, else about.
    """

    texts: int
    unique: int
    cached: int
    tokens: float
    counted: bool


def make_bill(config: ConfigDict) -> Bill:
    """Count the texts of a config's tasks, the different ones and those in the cache. Nothing is asked or written.

    Raises:
        UserError: a dataset is missing, or a text is empty.
    """
    service, wanted = find_service(config), []
    for name in list_tasks(config):
        task = agreement.open_task(name, config)
        splits = [("train", task.train), *((test.split, test.source) for test in task.tests)]
        wanted += itertools.chain.from_iterable(
            text for split, source in splits for text in list_parts(config, source, split)
        )
    unique = list(dict.fromkeys(wanted))
    found = Cache(find_folder(config.runtime.api.cache), service).find(service.hash_texts(unique))
    missing = [text for text, row in zip(unique, found, strict=True) if row < 0]
    tokens = sum(count_tokens(config, missing))
    return Bill(len(wanted), len(unique), len(unique) - len(missing), tokens, bool(config.texts.tokenizer))


def describe_bill(config: ConfigDict) -> list[str]:
    """Return the lines of --dry_run about texts and their price."""
    bill, how = make_bill(config), config.runtime.api
    about = "" if bill.counted else "about "
    lines = [
        f"texts: {bill.texts:,}, {bill.unique:,} different, {bill.cached:,} of them in the cache",
        f"tokens to ask for: {about}{bill.tokens:,.0f}"
        + ("" if bill.counted else " (by length; --config.texts.tokenizer=FOLDER counts them)"),
    ]
    if how.price:
        lines.append(f"price: {about}{bill.tokens * how.price / 1e6:,.4f} at {how.price:g} per million tokens")
    return lines
