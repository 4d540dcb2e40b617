"""Encode texts with an embeddings service: ask for what its cache lacks, then read the cache."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from nml_jax.data.embeddings.ask import complete_cache
from nml_jax.data.embeddings.cache import Cache
from nml_jax.data.embeddings.service import find_service
from nml_jax.data.sources.source import Source
from nml_jax.data.text import batches as texts
from nml_jax.errors import UserError
from nml_jax.processes import peers

BYTES = 3.0  # of UTF-8 per token, where no tokenizer counts: English has four or more, other scripts about three
BLOCK = 4096  # rows of features that are in memory


def encode(config: ConfigDict, source: Source, what: str) -> Iterator[dict[str, np.ndarray]]:
    """Yield blocks of features float32 [n, D], labels and ids in source order. Only the first process asks, and yields.

    Args:
        what: the name of the split.

    Raises:
        UserError: a text is empty, or the service cannot be asked; see `fetch.Fetch`.
    """
    if jax.process_index() > 0:
        return
    parts = list_parts(config, source, what)
    flat, count = [text for own in parts for text in own], len(parts[0]) if parts else 1
    service, cache = find_service(config), fetch(config, flat, what, lambda place: f"{what}, row {place // count}")
    for first in range(0, len(parts), BLOCK):
        own = flat[first * count : (first + BLOCK) * count]
        vectors = cache.read(cache.find(service.hash_texts(own), verify=False))
        ids = np.arange(first, first + len(own) // count, dtype=np.int32)
        features = compare(vectors[0::2], vectors[1::2]) if count == 2 else vectors
        yield {"features": features, "label": source.labels[ids], "id": ids}


def compare(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the features of pairs from the vectors of both: u, v, |u − v| and u·v (InferSent, arXiv 1705.02364)."""
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)


def list_parts(config: ConfigDict, source: Source, what: str) -> list[tuple[str, ...]]:
    """Return the texts to ask for, one or two for each row.

    Raises:
        UserError: one of them is empty, which services refuse; its row is named.
    """
    found = texts.list_texts(source)
    for row, own in enumerate(found):
        if not all(text.strip() for text in own):
            raise UserError(
                f"{what}: the text of row {row} is empty, and a service has no vector of it", "leave the row out"
            )
    return found if config.api.pairs == "compare" else [("\n".join(own),) for own in found]


def count_tokens(config: ConfigDict, wanted: Sequence[str]) -> list[float]:
    """Return the tokens of texts, by the tokenizer of `texts.tokenizer`, or about, by their length."""
    if not config.texts.tokenizer:
        return [max(1.0, len(text.encode("utf-8", "surrogatepass")) / BYTES) for text in wanted]
    tokenizer = texts.load_counter(config.texts.tokenizer)
    return [float(n) for n in tokenizer([(text,) for text in wanted]).lengths]


def fetch(config: ConfigDict, wanted: Sequence[str], what: str, name: Callable[[int], str]) -> Cache:
    """Ask for the vectors of texts that the cache lacks; see `ask.complete_cache`."""
    return complete_cache(
        find_service(config), config.runtime.api, wanted, what=what, name=name,
        count_tokens=lambda some: count_tokens(config, some), track=peers.track,
    )  # fmt: skip
