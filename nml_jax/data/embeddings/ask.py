"""Complete the cache of a service: ask for the texts whose vectors it lacks."""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from nml_jax.console import notice
from nml_jax.data.embeddings.cache import Cache, find_folder
from nml_jax.data.embeddings.client import Client
from nml_jax.data.embeddings.fetch import Fetch, Limits
from nml_jax.data.embeddings.limits import Window
from nml_jax.data.embeddings.replies import Answer, read_reply
from nml_jax.data.embeddings.service import Service, read_key
from nml_jax.errors import UserError, report_disk_errors

MINUTE = 60.0  # seconds between two lines of progress
Track = Callable[[Callable[[], str]], contextlib.AbstractContextManager[None]]


def complete_cache(
    service: Service,
    how: Any,
    wanted: Sequence[str],
    *,
    what: str,
    name: Callable[[int], str],
    count_tokens: Callable[[list[str]], Sequence[float]],
    track: Track = lambda place: contextlib.nullcontext(),
) -> Cache:
    """Ask a service for the vectors of texts that its cache lacks. Return the cache, which then has all.

    Args:
        how: the keys of `config.runtime.api`, in configs/common.py.
        what: what the texts are, in words.
        name: returns where a text stands, in words, by its position.
        count_tokens: returns the tokens of texts, at least about.
        track: told how far it has come; see `peers.track`.

    Raises:
        UserError: see `fetch.Fetch`; the cache cannot be used; or there is no key.
    """
    cache = Cache(find_folder(how.cache), service)
    first = {text: place for place, text in reversed(list(enumerate(wanted)))}
    unique = list(dict.fromkeys(wanted))
    keys = service.hash_texts(unique)
    if (cache.find(keys) >= 0).all():
        return cache
    key = read_key(how.key, service.url)
    with cache.writing():
        missing = np.flatnonzero(cache.find(keys) < 0)  # again: another program may just have asked
        texts = [unique[i] for i in missing]
        if texts:
            notice(
                f"{what}: {len(wanted):,} texts, {len(unique):,} different; {urlsplit(service.url).hostname} is asked "
                f"for {len(texts):,}, and {cache.path} keeps what it answers"
            )
            store = _make_store(cache, [keys[i] for i in missing])
            job = [texts, count_tokens(texts), [name(first[text]) for text in texts]]
            _ask(service, how, cache, key, job, store, track)
        cache.refresh()
    return cache


def _make_store(cache: Cache, keys: list[bytes]) -> Callable[[list[int], np.ndarray], None]:
    """Return the function that adds the vectors of texts to the cache, by their positions."""

    def store(rows: list[int], vectors: np.ndarray) -> None:
        if cache.width and vectors.shape[1] != cache.width:
            raise UserError(
                f"{cache.service.url}: vectors of {vectors.shape[1]} numbers, and of {cache.width} before",
                "find out what the service has changed; another --config.runtime.api.cache begins again",
            )
        cache.append([keys[row] for row in rows], vectors)

    return store


def _ask(service: Service, how: Any, cache: Cache, key: str, job: list[Any], store: Any, track: Track) -> None:
    """Ask a service for texts, and store the answers."""
    client = Client(service, key, connections=how.in_flight, timeout=how.timeout, encoding=how.encoding)
    tokens = min(how.batch_tokens, how.tokens_per_minute or how.batch_tokens)
    limits = Limits(how.batch, tokens, how.in_flight, how.retries, how.pause, how.longest_pause)
    texts, counts, names = job

    def ask(batch: list[str]) -> Answer:
        return read_reply(client.post(batch), len(batch), cache.width or service.dimensions, key, service.url)

    with report_disk_errors(cache.path.parent):
        window = Window(how.requests_per_minute, how.tokens_per_minute, cache.path.with_suffix(".requests"))
    fetch = Fetch(texts, counts, ask=ask, store=store, window=window, limits=limits, names=names)
    said = time.monotonic()

    def show() -> None:
        nonlocal said
        if time.monotonic() - said >= MINUTE:
            said = time.monotonic()
            notice(f"{fetch.done:,} of {len(texts):,} texts are answered")

    with contextlib.closing(window), track(lambda: f"text {fetch.done:,} of {len(texts):,}"):
        fetch.run(show)
