"""Encode the texts of a source: tokens once, and batches of texts of similar length."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import console, runtime
from nml_jax.data.sources.sentences import Sentences
from nml_jax.data.sources.source import Source, Subset
from nml_jax.data.text import folders
from nml_jax.data.text.folders import TextTokenizer, TokenTable
from nml_jax.errors import UserError
from nml_jax.models import Model

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
    folder = Path(chosen.tokenizer or config.init_from).expanduser()
    folder = folder.parent if folder.is_file() else folder
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


def encode_texts(source: Source, tokenizer: TextTokenizer, what: str) -> TokenTable:
    """Return the tokens of a source, and print how many texts were cut or hold special tokens."""
    table = tokenizer(list_texts(source))
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


def plan_batches(lengths: np.ndarray, batch: int, buckets: list[int]) -> Iterator[list[tuple[np.ndarray, int]]]:
    """Yield windows of consecutive rows as batches of (rows, width), sorted by length within the window."""
    for first in range(0, len(lengths), WINDOW * batch):
        rows = np.arange(first, min(first + WINDOW * batch, len(lengths)))
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        parts = [rows[i : i + batch] for i in range(0, len(rows), batch)]
        yield [(part, next(size for size in buckets if size >= lengths[part].max())) for part in parts]


def read_batches(
    config: ConfigDict, mesh: Mesh, table: TokenTable, batch: int
) -> Iterator[list[tuple[np.ndarray, dict[str, np.ndarray]]]]:
    """Yield windows of (rows of the source, this process's part of the batch)."""
    block, blocks = runtime.find_process_block(mesh)
    own = slice(block * batch // blocks, (block + 1) * batch // blocks)
    for window in plan_batches(table.lengths, batch, list_buckets(config)):
        whole = ((rows, table.make_batch(rows, batch, width)) for rows, width in window)
        yield [(rows, {name: x[own] for name, x in found.items()}) for rows, found in whole]
