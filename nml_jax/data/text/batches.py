"""Encode the texts of a source once, and plan batches of texts of similar length."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nml_jax import console
from nml_jax.data.sources.sentences import Sentences
from nml_jax.data.sources.source import Mixture, Overlay, Source, Subset
from nml_jax.data.text import folders
from nml_jax.data.text.folders import TextTokenizer, TokenTable
from nml_jax.errors import UserError
from nml_jax.models import Model

PLAN = 2  # version of how texts share batches, on which the last bits of their features depend
WINDOW = 64  # batches whose texts are sorted by length together; features of a window are in memory


def has_tokens(spec: Any) -> bool:
    """Return whether a model with this spec is a text encoder."""
    return "tokens" in spec


def load_tokenizer(config: ConfigDict, model: Model) -> TextTokenizer:
    """Load the tokenizer of `texts.tokenizer`, or of the folder of the weights.

    Raises:
        UserError: there is none, or it does not fit the model.
    """
    vocab, context = model.shapes[0]["words"]["embedding"].shape[0], model.spec["tokens"].shape[1]
    chosen = config.texts
    if chosen.length > context:
        raise UserError(
            f"texts.length is {chosen.length}, but the model has {context} positions",
            f"set --config.texts.length={context} or less",
        )
    if not (chosen.tokenizer or config.init_from):
        raise UserError("there is no tokenizer", "give --config.texts.tokenizer=FOLDER, or a tokenizer.json")
    folder = Path(chosen.tokenizer or config.init_from).expanduser()
    folder = folder.parent if folder.is_file() and not chosen.tokenizer else folder
    tokenizer = _load_once(folder, chosen.length, chosen.literal, chosen.separator)
    folders.check_size(tokenizer, vocab)
    return tokenizer


def load_counter(folder: str) -> TextTokenizer:
    """Load the tokenizer of a folder, to count the tokens of texts of any length."""
    return _load_once(Path(folder).expanduser(), 2**20, False, "")


@functools.lru_cache(maxsize=4)
def _load_once(folder: Path, length: int, literal: bool, separator: str) -> TextTokenizer:
    return TextTokenizer(folder, length, literal=literal, separator=separator)


def list_texts(source: Source) -> list[tuple[str, ...]]:
    """Return the texts of a source, in its order."""
    if isinstance(source, Subset):
        whole = list_texts(source.source)
        return [whole[i] for i in source.indices]
    if isinstance(source, Sentences):
        return list(source.texts)
    raise UserError("the task has images, and the model reads texts", "set --config.downstream.tasks=\"('texts',)\"")


def count_texts(source: Source) -> int:
    """Return the number of texts of a row, 1 or 2; 0 for images."""
    while isinstance(source, (Subset, Overlay)):
        source = source.source
    return len(source.texts[0]) if isinstance(source, Sentences) and len(source) else 0


def encode_texts(source: Source, tokenizer: TextTokenizer) -> TokenTable:
    """Return the tokens of a source, in its order. Each table of texts is encoded once, whatever parts of it are used.

    Raises:
        UserError: it is a source of images, or see `TextTokenizer`.
    """
    if isinstance(source, Subset):
        return encode_texts(source.source, tokenizer).take(source.indices)
    if isinstance(source, Overlay):
        return encode_texts(source.source, tokenizer)
    if isinstance(source, Mixture):
        return folders.join_tables([encode_texts(part, tokenizer) for part in source.sources])
    if isinstance(source, Sentences):
        key = source.fingerprint, tokenizer.fingerprint
        while key not in _encoded and len(_encoded) >= KEPT:
            _encoded.pop(next(iter(_encoded)))
        if key not in _encoded:
            _encoded[key] = _encode(source, tokenizer)
        return _encoded[key]
    raise UserError("the data are images, and the model reads texts", "set --config.downstream.tasks=\"('texts',)\"")


KEPT = 16  # tables of tokens of this process
_encoded: dict[tuple[str, str], TokenTable] = {}


def _encode(source: Sentences, tokenizer: TextTokenizer) -> TokenTable:
    """Return the tokens of texts, and print how many were cut or hold special tokens."""
    table, what = tokenizer(source.texts), source.name
    if table.cut:
        console.notice_once(f"{what}: {table.cut:,} of {len(source):,} texts are cut to {tokenizer.length} tokens")
    if table.special:
        console.notice_once(
            f"{what}: {table.special:,} texts hold special tokens as text, which are read as such; "
            "--config.texts.literal=True reads them as text"
        )
    return table


def list_buckets(config: ConfigDict) -> list[int]:
    """Return the lengths that batches are padded to."""
    return [*(size for size in config.texts.buckets if size < config.texts.length), config.texts.length]


class Planned(NamedTuple):
    """A batch of texts.

    rows: the positions of its texts. size: its rows; those above len(rows) hold no text. width: tokens of a row.
    """

    rows: np.ndarray
    size: int
    width: int


def count_rows(batch: int, buckets: Sequence[int], width: int, devices: int = 1) -> int:
    """Return the rows of a batch of texts of `width` tokens, a multiple of `devices`.

    A bucket has one number of rows, so that each is compiled once: `batch` for the shortest, and for the others about
    as many as have no more tokens. A few long texts in a small set then do not make a large batch of padding.
    """
    return -(-max(batch * buckets[0] // width, 1) // devices) * devices


def plan_batches(lengths: np.ndarray, batch: int, buckets: Sequence[int], devices: int = 1) -> Iterator[list[Planned]]:
    """Yield windows of consecutive texts as batches of texts of similar length, the longest first.

    Args:
        lengths: of the texts, [N]; none is above the last bucket.
        batch: rows of a batch of the shortest bucket.
        devices: the rows of every batch are a multiple of it.
    """
    for first in range(0, len(lengths), WINDOW * batch):
        left = np.arange(first, min(first + WINDOW * batch, len(lengths)))
        left, window = left[np.argsort(lengths[left], kind="stable")], []
        while len(left):
            width = next(size for size in buckets if size >= lengths[left[-1]])
            size = count_rows(batch, buckets, width, devices)
            window.append(Planned(left[-size:], size, width))
            left = left[:-size]
        yield window
