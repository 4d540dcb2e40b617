"""Read batches from a source, in the order that `order` computes.

The stream of training examples is a function of position p: shuffled(seed), repeated for ever, augmented with draws of
(seed, p). Global batch k is positions k·B to (k+1)·B, and each of n processes reads its contiguous n-th part of them.
So batch k is a pure function of (seed, k), whatever the number of processes and threads. There is no iterator state to
save: a run resumes by starting at its step. In a mixture with weights, every epoch has a fixed number of examples of
each dataset. Each dataset has its own order, which continues from one epoch to the next.

In training, a record that cannot be decoded is quarantined. At each of its positions another record replaces it, drawn
by (seed, position) from the same part of the mixture. In repeated augmentation all copies show the same replacement.

Grain makes batches ahead in threads of this process. Its own chain of shuffle, repeat, random_map and batch gives the
same guarantee, but takes 30 µs an example, and far more below 2¹⁶ records, where its shuffle walks a 16-bit cipher
(60 µs for 600 records, 2 ms for 10). This code takes 10 µs.
"""

import contextlib
import itertools
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import cv2
import grain
import numpy as np

from nml_jax.data.images import transforms
from nml_jax.data.images.codec import Undecodable, decode
from nml_jax.data.sources.source import Source
from nml_jax.data.stream import order
from nml_jax.data.stream.reading import Field, Reading, SceneReading, divide_batch
from nml_jax.errors import UserError

BLOCK = 16  # records read before they are decoded: decoding an image evicts the reading code from the cache

T = TypeVar("T")
Batch = dict[str, np.ndarray]
Record = dict[str, Any]
Stored = Record | Undecodable
Tokenize = Callable[[Sequence[str]], np.ndarray]  # N texts -> token ids int32 [N, L]


class Portion(NamedTuple):
    """This process's rows of a global training batch.

    Attributes:
        batch: the data.
        quarantined: int32 [b]; -1, or the id of the undecodable record that this row replaces; see `find_reason`.
    """

    batch: Batch
    quarantined: np.ndarray


def train(
    source: Source,
    reading: Reading | SceneReading,
    *,
    batch: int,
    seed: int,
    tokenize: Tokenize | None = None,
    weights: Sequence[float] = (),
    start_step: int = 0,
) -> Generator[Portion, None, None]:
    """Yield this process's rows of the global batches start_step, start_step + 1, ... without end.

    Every epoch shows each record once, in an order of its own. Batches may cross the end of an epoch. With
    r = augment.repeats, position p shows the record of position p // r. So the r copies of a record, each augmented
    differently, follow each other and share a global batch, unless its end cuts them; N examples show N / r records.

    Args:
        batch: size of the global batch.
        tokenize: tokenizer; a source with captions needs it. One caption of each image is drawn.
        weights: weights of the parts of a mixture, see `config.data.weights`.

    Where the reading puts records in groups, such as landscape and portrait, a batch has records of one group, and
    batches of the groups follow each other in a random order (`order.deal_batches`).

    Yields:
        Portions whose batch holds what `reading.list_fields` lists, such as image uint8 [b, H, W, 3]; label and
        label_clean int32 [b], or text int32 [b, L], where the source has them; id int32 [b]; mask float32 [b], ones;
        b = batch / reading.blocks.

    Raises:
        UserError: batch is not a multiple of reading.blocks, the source is empty, the weights are not one positive
            number for each part, or `order.TRIES` replacements of a record cannot be decoded either.
    """
    local = divide_batch(batch, reading.blocks)
    if not len(source):
        raise UserError("the training split has no records", "choose a larger split")
    transform, groups = reading.train_transform(), reading.find_groups(source)
    if groups is not None:
        at = order.deal_batches(seed, groups, batch)
    else:
        at = order.mix_sources(seed, source.parts, weights) if len(weights) else order.shuffle_blocks(seed, len(source))
    others = order.draw_replacement(seed, source.parts, groups)
    repeats, draw_seed = reading.repeats, order.derive_seeds(seed, "augment")
    words, numbers = ("text",) if len(source.captions) else (), (*_list_numbers(source), "quarantined")
    if words and tokenize is None:
        raise ValueError("a source of captions needs `tokenize`")

    def make_example(p: int, i: int, stored: Stored, rng: Callable[[int], np.random.Generator]) -> Record:
        for j, record in itertools.chain([(i, stored)], _read(source, others(i, p // repeats), 1)):
            draws = rng(p)
            try:
                record = transform(_unwrap(record), draws)
            except Undecodable:
                continue
            if words:
                record["text"] = record["captions"][draws.integers(len(record["captions"]))]
            record["quarantined"] = -1 if j == i else i
            return record
        raise UserError(
            f"record {_name(source, i)} cannot be decoded, nor can any of {order.TRIES} drawn to replace it",
            "prepare the dataset again",
        )

    def make_portion(step: int) -> Portion:
        first = step * batch + reading.block * local
        positions, rng = range(first, first + local), order.make_generators(draw_seed)
        stored = _read(source, (at(p // repeats) for p in positions))
        records = (make_example(p, *of_p, rng) for p, of_p in zip(positions, stored, strict=True))
        group = 0 if groups is None else int(groups[at(first)])
        rows = _collect(records, local, reading.list_fields(group, test=False), numbers, words, tokenize)
        quarantined = rows.pop("quarantined")
        return Portion(rows, quarantined)

    return _iterate(make_portion, range(start_step, sys.maxsize), reading)


def find_reason(source: Source, i: int) -> str:
    """Return one line on why `train` quarantines record i. It begins with the record's key, or its number.

    The record is read again, because another process may have met it first.
    """
    try:
        decode(_unwrap(_load(source, i))["image"])
        why = "decoded when it was read again"
    except Undecodable as e:
        why = str(e)
    return " ".join(f"{_name(source, i)}: {why}".split())


def evaluate(
    source: Source,
    reading: Reading | SceneReading,
    *,
    batch: int,
    tokenize: Tokenize | None = None,
    shift: str | None = None,
    view: int | None = None,
    seed: int = 0,
) -> Generator[Batch, None, None]:
    """Yield every record once, in source order within each group, in batches like those of `train`.

    The first caption of a record is used, as text and text_clean; without `tokenize` there are none. The last global
    batch is padded with zeros whose mask is 0. So masks sum to N over all processes, and every process gets the same
    number of batches. A record that cannot be decoded ends the evaluation: a score without some of the test records
    could not be compared with others. Each group (see `train`) has a padded last batch of its own.

    Args:
        shift: a key of `transforms.SHIFTS`, applied to the image as the model would see it.
        view: k >= 1 gives the k-th augmented training view instead of the plain image.
        seed: draws depend on (seed, shift, view, id).

    Raises:
        UserError: batch is not a multiple of reading.blocks, the shift is unknown, or a record cannot be decoded.
    """
    local, groups = divide_batch(batch, reading.blocks), reading.find_groups(source)
    if shift is not None and shift not in transforms.SHIFTS:
        raise UserError(f"there is no shift {shift!r}", f"choose one of {', '.join(transforms.SHIFTS)}")
    transform = reading.eval_transform() if view is None else reading.train_transform(test=True)
    distort = transforms.SHIFTS[shift] if shift else None
    draw_seed = order.derive_seeds(seed, f"shift {shift}, view {view}")
    words, numbers = ("text", "text_clean") if tokenize else (), _list_numbers(source)

    def make_example(i: int, stored: Stored, rng: np.random.Generator) -> Record:
        try:
            record = transform(_unwrap(stored), rng)
        except Undecodable as e:
            cure = "prepare the dataset again without this record: an evaluation leaves none out"
            raise UserError(f"record {_name(source, i)} cannot be decoded: {e}", cure) from e
        if distort:
            record["image"] = distort(record["image"], rng)
        if words:
            record |= {"text": record["captions"][0], "text_clean": source.captions_clean[i][0]}
        return record

    whole = order.cut_batches(len(source), batch, groups)

    def make_batch(step: int) -> Batch:
        group, ids = whole[step]
        rng, own = order.make_generators(draw_seed), ids[reading.block * local : (reading.block + 1) * local]
        records = (make_example(i, stored, rng(i)) for i, stored in _read(source, own))
        return _collect(records, local, reading.list_fields(group, test=True), numbers, words, tokenize)

    return _iterate(make_batch, range(len(whole)), reading)


def read_texts(
    captions: Sequence[Sequence[str]],
    tokenize: Tokenize,
    *,
    batch: int,
    block: int = 0,
    blocks: int = 1,
) -> Iterator[Batch]:
    """Yield every caption of every record once, in order. The last batch is padded as in `evaluate`.

    Args:
        batch: size of the global batch.
        block, blocks: see `Reading`.

    Yields:
        text int32 [b, L]; id int32 [b], the record of the caption; mask float32 [b].
    """
    local = divide_batch(batch, blocks)
    every = ((i, text) for i in range(len(captions)) for text in captions[i])
    while whole := list(itertools.islice(every, batch)):
        own = whole[block * local : (block + 1) * local]
        filled = np.arange(local) < len(own)
        ids, texts = zip(*own, *[(0, "")] * (local - len(own)), strict=True)
        text = np.where(filled[:, None], tokenize(texts), 0).astype(np.int32)
        yield {"text": text, "id": np.array(ids, np.int32), "mask": filled.astype(np.float32)}


def _read(source: Source, ids: Iterable[int], block: int = BLOCK) -> Iterator[tuple[int, Stored]]:
    """Yield (i, record i) for each of `ids`, reading a block at a time."""
    ids = iter(ids)
    while some := list(itertools.islice(ids, block)):
        yield from [(i, _load(source, i)) for i in some]


def _load(source: Source, i: int) -> Stored:
    """Read record i, or return why it cannot be read."""
    try:
        return source[i]
    except Undecodable as e:
        return e
    except UnicodeDecodeError as e:
        return Undecodable(f"its captions are damaged: {e}")


def _unwrap(stored: Stored) -> Record:
    """Return the record, or raise why it cannot be read."""
    if isinstance(stored, Undecodable):
        raise stored
    return stored


def _name(source: Source, i: int) -> str:
    """Return the key of record i, or its number if the source has no keys."""
    return str(i if source.keys is None else source.keys[i])


def _list_numbers(source: Source) -> tuple[str, ...]:
    """List the keys of a source's records that hold integers."""
    return ("label", "label_clean", "id") if len(source.labels) else ("id",)


def _collect(
    records: Iterable[Record],
    rows: int,
    fields: Mapping[str, Field],
    numbers: Sequence[str],
    words: Sequence[str],
    tokenize: Tokenize | None,
) -> Batch:
    """Copy records into a batch, each while it is still in the processor's cache. Pad each array with its `fill`.

    `numbers` are further keys, of integers. The texts under the keys `words` are tokenised together.
    """
    fields = {**fields, **{key: Field((), np.int32) for key in numbers}}
    batch = {key: np.empty((rows, *field.shape), field.dtype) for key, field in fields.items()}
    texts: dict[str, list[str]] = {key: [] for key in words}
    filled = 0
    for filled, record in enumerate(records, 1):
        for key, values in batch.items():
            values[filled - 1] = record[key]
        for key, of_key in texts.items():
            of_key.append(record[key])
    if tokenize:
        batch |= {key: tokenize([*of_key, *[""] * (rows - filled)]) for key, of_key in texts.items()}
    for key, field in fields.items():
        batch[key][filled:] = field.fill
    return batch | {"mask": (np.arange(rows) < filled).astype(np.float32)}


def _iterate(make: Callable[[int], T], steps: range, reading: Reading | SceneReading) -> Generator[T, None, None]:
    """Yield make(step) for each step, in order, computed ahead in threads."""
    if not steps:
        return
    cv2.setNumThreads(0)  # OpenCV's own threads would compete with ours
    threads = reading.threads
    ahead = max(reading.prefetch, threads) if threads else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    dataset = grain.MapDataset.range(steps.start, steps.stop).map(make).to_iter_dataset(options)
    with contextlib.closing(iter(dataset)) as iterator:  # ends its threads
        yield from iterator
