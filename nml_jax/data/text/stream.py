"""Read batches of texts, for training and in evaluation, in the forms of data/stream/pipeline.py.

Training shows texts in the order of data/stream/order.py. WINDOW consecutive batches hold the same texts as they would
without this module, but share them by length, so that little of a batch is padding; they come in an order of their own.
The window of a step, its texts, their batches and the length that a batch is padded to follow from (seed, step) alone,
and every process knows them of the whole batch. So batch k is a pure function of (seed, k).
"""

import functools
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nml_jax.data.sources.source import Source
from nml_jax.data.stream import order
from nml_jax.data.stream.pipeline import Batch, Portion
from nml_jax.data.stream.reading import divide_batch
from nml_jax.data.text.batches import plan_batches
from nml_jax.data.text.folders import TokenTable
from nml_jax.errors import UserError

WINDOW = 8  # batches that share their texts by length in training


class Layout(NamedTuple):
    """How batches of texts lie.

    buckets: rising lengths that batches are padded to; the last is that of the longest text.
    block, blocks: this process reads part number `block` of the `blocks` equal parts of every global batch.
    devices: of all processes; they share a batch equally.
    """

    buckets: Sequence[int]
    block: int = 0
    blocks: int = 1
    devices: int = 1

    def choose_width(self, lengths: np.ndarray) -> int:
        """Return the length to which texts of these lengths are padded."""
        return next(size for size in self.buckets if size >= lengths.max())

    def take_own(self, rows: np.ndarray, batch: int) -> np.ndarray:
        """Return this process's part of the rows of a global batch, which may be fewer than `batch`."""
        local = divide_batch(batch, self.blocks)
        return rows[self.block * local : (self.block + 1) * local]


def train(
    source: Source,
    table: TokenTable,
    layout: Layout,
    *,
    batch: int,
    seed: int,
    weights: Sequence[float] = (),
    start_step: int = 0,
) -> Generator[Portion, None, None]:
    """Yield this process's rows of the global batches start_step, start_step + 1, ... without end.

    Every epoch shows each text once, in an order of its own, except where a window crosses its end.

    Args:
        source: its labels.
        table: the tokens of its texts.
        batch: size of the global batch.
        weights: weights of the parts of a mixture, see `config.data.weights`.

    Yields:
        Portions whose batch holds tokens int32 [b, L], length and second int32 [b]; label, label_clean and id
        int32 [b]; mask float32 [b], ones; b = batch / layout.blocks, and L is one of the buckets.

    Raises:
        UserError: batch is not a multiple of layout.blocks, there are no texts, or the weights do not fit.
    """
    divide_batch(batch, layout.blocks)
    if not len(source):
        raise UserError("the training split has no records", "choose a larger split")
    at = order.mix_sources(seed, source.parts, weights) if len(weights) else order.shuffle_blocks(seed, len(source))
    lengths = table.lengths

    @functools.lru_cache(maxsize=2)
    def divide_window(number: int) -> list[np.ndarray]:
        first = number * WINDOW * batch
        rows = np.array([at(p) for p in range(first, first + WINDOW * batch)])
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        draw = np.random.default_rng(order.derive_seeds(seed, f"batches of window {number}"))
        return [rows[place * batch : (place + 1) * batch] for place in draw.permutation(WINDOW)]

    step = start_step
    while True:
        rows = divide_window(step // WINDOW)[step % WINDOW]
        made = make_batch(source, table, layout, rows, batch, layout.choose_width(lengths[rows]))
        yield Portion(made, np.full(len(made["id"]), -1, np.int32))
        step += 1


def evaluate(source: Source, table: TokenTable, layout: Layout, *, batch: int) -> Iterator[Batch]:
    """Yield every text once, in batches like those of `train`, sorted by length within windows of consecutive texts.

    `batch` is the number of rows of the shortest bucket, see `batches.count_rows`. The last batch of a window, of the
    shortest texts, is filled up with rows without a text, whose mask is 0.
    """
    for window in plan_batches(table.lengths, batch, layout.buckets, layout.devices):
        for rows, size, width in window:
            yield make_batch(source, table, layout, rows, size, width)


def make_batch(
    source: Source, table: TokenTable, layout: Layout, rows: np.ndarray, batch: int, width: int
) -> dict[str, np.ndarray]:
    """Return this process's part of a global batch of the texts `rows`, padded to `batch` rows of `width` tokens."""
    own, local = layout.take_own(rows, batch), divide_batch(batch, layout.blocks)
    numbers = {"label": source.labels, "label_clean": source.labels_clean, "id": np.arange(len(source), dtype=np.int32)}
    filled = {name: np.zeros(local, values.dtype) for name, values in numbers.items()}
    for name, values in numbers.items():
        filled[name][: len(own)] = values[own]
    mask = (np.arange(local) < len(own)).astype(np.float32)
    return {**table.make_batch(own, local, width), **filled, "mask": mask}
