"""Load the training split of a config, add its noise, and keep the ledger of that noise."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from nml_jax import console, errors, noise, objectives, ranges, settings
from nml_jax.assembly import encoder
from nml_jax.data import npy, sources
from nml_jax.data.sources.noisy import NoisyLabels, SwappedCaptions, align_by_key
from nml_jax.data.sources.source import Mixture, Source, Subset
from nml_jax.data.stratify import split_validation
from nml_jax.data.text import batches as texts
from nml_jax.data.text.tokenizer import Tokenizer
from nml_jax.noise.class_sets import find_classes
from nml_jax.runs.files import write_json

TEXTS = "texts"  # value of data.source
BLOCK = 1 << 14  # records whose ids become Python integers at a time


class Data(NamedTuple):
    """The data of a run."""

    train: Source  # with noisy supervision
    validation: Source  # clean
    ledger: noise.Ledger
    tokenizer: Tokenizer | None  # of captions


def check_ranges(config: ConfigDict) -> None:
    """Raise UserError if a value of the section `data` is out of range."""
    ranges.require_at_least(1, "data", config, "image_size")
    ranges.require_share("data", config, "validation", below_one=True)


def check_inputs(config: ConfigDict) -> None:
    """Check that a text encoder is trained on texts, with a tokenizer that fits, and any other model on images.

    Raises:
        UserError: it is not, or the objective mixes images.
    """
    model = encoder.build(config, num_classes=config.data.num_classes or 1)
    reads, source = texts.has_tokens(model.spec), config.data.source
    if reads != (source == TEXTS):
        raise errors.UserError(
            f"model.name={config.model.name} reads {'texts' if reads else 'images'}, and data.source={source} does not "
            "hold any",
            f"set --config.data.source={TEXTS}" if reads else "choose a text encoder, such as bert, or another source",
        )
    if reads:
        if config.objective.mixup or config.objective.cutmix:
            raise errors.UserError("objective.mixup and objective.cutmix mix images", "set both to 0 for texts")
        texts.load_tokenizer(config, model)


def load_data(config: ConfigDict) -> Data:
    """Load the training split and add its noise; also load the clean validation split."""
    captions = objectives.uses_captions(config.objective)
    tokenizer = encoder.load_tokenizer(config) if captions else None
    train, validation = load_splits(config)
    if not captions:
        noisy, ledger = corrupt(config, train)
        return Data(NoisyLabels(train, noisy), validation, ledger, None)
    swap = make_swap(config, len(train))
    ledger = make_caption_ledger(train.captions, swap)
    return Data(SwappedCaptions(train, swap), validation, ledger, tokenizer)


def count_records(config: ConfigDict) -> tuple[int, int]:
    """Return the number of training records and of classes, without reading captions.

    Raises:
        UserError: `load_data` would raise it.
    """
    train, _ = load_splits(config)
    if objectives.uses_captions(config.objective):
        encoder.load_tokenizer(config)
        make_swap(config, len(train))
    else:
        corrupt(config, train)
    return len(train), train.num_classes


def make_swap(config: ConfigDict, n: int) -> noise.CaptionSwap:
    """Return the swap that decides whose caption each of n training records gets."""
    return noise.CaptionSwap(n=n, rate=config.noise, seed=config.noise_seed)


def load_splits(config: ConfigDict) -> tuple[Source, Source]:
    """Load the training split and the validation split, both clean.

    `id == i` means record i of this training split everywhere: after classes are selected and validation is split
    off. The datasets of a mixture follow one another.
    """
    data, captions = config.data, objectives.uses_captions(config.objective)
    if not (data.validation_split or data.validation):
        raise errors.UserError("there is nothing to validate on", "set data.validation_split, or data.validation > 0")
    parts = [_split(config, path, captions) for path in data.mixture or (data.path,)]
    train, validation = (s[0] if len(s) == 1 else Mixture(s) for s in zip(*parts, strict=True))
    if data.size is not None and data.size != len(train):
        raise errors.UserError(
            f"data.size={data.size}, but the training split has {len(train)} records",
            f"set --config.data.size={len(train)}, or check the dataset",
        )
    return train, validation


def _split(config: ConfigDict, path: str, captions: bool) -> tuple[Source, Source]:
    """Load (train, validation) of one dataset."""
    data = config.data
    about = {"name": data.name, "classes": data.classes, "num_classes": data.num_classes, "captions": captions,
             "columns": data.columns, "label": data.label}  # fmt: skip
    source = sources.load(data.source, path, data.train, **about)
    if data.validation_split:
        held = sources.load(data.source, path, data.validation_split, **about)
        if held.class_names != source.class_names:
            raise errors.UserError(
                f"{path}: the classes of {data.validation_split!r} are {', '.join(held.class_names[:5])}, those of "
                f"{data.train!r} are {', '.join(source.class_names[:5])}",
                "both splits must hold all classes, under the same names",
            )
        return source, held
    return split_validation(source, data.validation)


def make_caption_ledger(captions: Any, swap: noise.CaptionSwap) -> noise.Ledger:
    """Make the ledger of a swap. It counts the swapped records whose new caption is the same text.

    Args:
        captions: of a source. Their bytes are compared, not their texts, because every record is read.
    """
    ids = swap.list_swapped()
    blocks = (ids[start : start + BLOCK] for start in range(0, len(ids), BLOCK))
    pairs = (pair for block in blocks for pair in zip(block.tolist(), swap(block).tolist(), strict=True))
    unchanged = sum(captions.raw(i) == captions.raw(j) for i, j in pairs)
    progress = tqdm(range(len(captions)), desc="recording captions", unit=" records", mininterval=1.0, delay=3.0)
    return noise.Ledger.from_captions(swap, map(captions.raw, progress), unchanged=unchanged)


def corrupt(config: ConfigDict, train: Source) -> tuple[np.ndarray, noise.Ledger]:
    """Return the noisy labels of a source, int [N], and their ledger, from the `noise*` keys of the config."""
    kind, needed = config.noise_kind, noise.list_arguments(config.noise_kind)
    read = functools.partial(read_noise_file, config, train)
    find = functools.partial(find_classes, config.noise_classes, train.class_names)
    origins = {"rate": lambda: config.noise, "classes": find, "matrix": read, "noisy": read}
    arguments = {name: origins[name]() for name in needed}
    if "classes" in needed:
        arguments["rate_of"] = config.noise_rate_of
    common = {"num_classes": train.num_classes, "kind": kind, "seed": config.noise_seed}
    noisy = noise.corrupt_labels(train.labels, **common, **arguments)
    asked = config.noise if "rate" in needed else None
    return noisy, noise.Ledger.from_labels(train.labels, noisy, asked=asked, **common)


def read_noise_file(config: ConfigDict, train: Source) -> np.ndarray:
    """Read `noise_file`: a K×K matrix, or the noisy labels of the records of `train`.

    A .csv of key,label is matched by the source's keys. A .npy has one label per record, in the order of `train`, or in
    that of the split before validation, or before the choice of classes.
    """
    path, kind = Path(config.noise_file), config.noise_kind
    check_noise_file(config)
    if not path.is_file():
        raise errors.MissingInput(f"noise_kind={kind} needs noise_file, but {str(path)!r} is not a file", _advise(kind))
    by_record = "noisy" in noise.list_arguments(kind)
    if path.suffix == ".csv" and by_record:
        return align_by_key(path, train)
    try:
        with path.open("rb") as file:
            start = file.read(len(NPY))
        if start != NPY:
            raise errors.UserError(f"noise_file={path} is not a .npy array: {_guess_type(path, start)}", _advise(kind))
        array = npy.load(path)
    except (ValueError, OSError, EOFError) as e:
        raise errors.UserError(f"noise_file={path} is not a .npy array: {e}", _advise(kind)) from e
    return align_by_order(path, array, train) if by_record else array


def check_noise_file(config: ConfigDict) -> None:
    """Raise UserError if the kind of noise needs a file and the config names none."""
    if config.noise_kind in settings.FIXED_RATE and not config.noise_file:
        raise errors.UserError(f"noise_kind={config.noise_kind} needs noise_file", _advise(config.noise_kind))


def _advise(kind: str) -> str:
    return "give --config.noise_file=FILE.npy" + (" of shape K×K" if kind == "matrix" else ", or a .csv of key,label")


NPY = b"\x93NUMPY"  # how a .npy begins
STARTS = {b"PK": "a zip archive, as .npz or .pt", b"\x80": "a pickle", b"\x1f\x8b": "a gzip archive"}


def _guess_type(path: Path, start: bytes) -> str:
    """Return what a file is that does not begin as a .npy, in words."""
    if path.suffix.lower() == ".safetensors":
        return "it is a .safetensors file"
    known = [name for begin, name in STARTS.items() if start.startswith(begin)]
    return f"it is {known[0]}" if known else "it does not begin as one" if start else "it is empty"


def align_by_order(path: Path, labels: np.ndarray, train: Source) -> np.ndarray:
    """Return the labels of the records of `train` from those of a split that it is a part of, and say which it was.

    Raises:
        UserError: the number of labels is that of no such split, or a label is of a class that is left out.
    """
    if labels.ndim != 1 or labels.size == len(train):
        return labels
    sizes = [len(train)]
    for n, kept, classes in trace_selection(train):
        sizes.append(n)
        if labels.size == n:
            if jax.process_index() == 0:
                console.notice(f"noise_file={path}: its {n:,} labels are taken for those of the split before "
                               f"{n - len(train):,} records were left out of training")  # fmt: skip
            _check_kept(path, labels, kept, classes)
            return _renumber(path, labels[kept], classes)
    shown = " or ".join(f"{n:,}" for n in dict.fromkeys(sizes))
    raise errors.UserError(
        f"noise_file={path} has {labels.size:,} labels, but {shown} are needed: the records of the training split "
        "after or before validation and other classes are left out",
        "give one label for each record, in the order of the split",
    )


def trace_selection(train: Source) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the splits that a training split was selected from, the nearest first.

    Yields:
        Number of records, the ids in it of the records of `train`, int64 [N], and the number in it of each class of
        `train`, int64 [K].
    """
    parts: list[Source] = list(train.sources) if isinstance(train, Mixture) else [train]
    ids = [np.arange(len(part)) for part in parts]
    classes = np.arange(train.num_classes)
    while len(selected := [part for part in parts if isinstance(part, Subset)]) == len(parts):
        ids = [part.indices[own] for part, own in zip(selected, ids, strict=True)]
        classes = np.asarray(selected[0].classes)[classes]
        parts = [part.source for part in selected]
        starts = np.cumsum([0, *map(len, parts)])
        yield int(starts[-1]), np.concatenate([own + s for own, s in zip(ids, starts[:-1], strict=True)]), classes


def _check_kept(path: Path, labels: np.ndarray, kept: np.ndarray, classes: np.ndarray) -> None:
    """Raise UserError, with its place in the file, if the label of a kept record cannot be a class."""
    if labels.dtype.kind in "iu" and np.array_equal(classes, np.arange(len(classes))):
        for i in kept[(labels[kept] < 0) | (labels[kept] >= len(classes))][:1]:
            cause = f"noise_file={path}: label {i} (from 0) is {labels[i]}, not in 0 to {len(classes) - 1}"
            raise errors.UserError(cause, "give the classes as integers from 0, in the order of the training split")


def _renumber(path: Path, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return labels in the numbers of the classes that were selected."""
    if np.array_equal(classes, np.arange(len(classes))) or labels.dtype.kind not in "iu":
        return labels
    if unknown := sorted({*labels.tolist()} - {*classes.tolist()}):
        raise errors.UserError(
            f"noise_file={path} has a label {unknown[0]}, a class that data.classes leaves out",
            "give labels of the selected classes, or select all classes",
        )
    number = {c: i for i, c in enumerate(classes.tolist())}
    return np.array([number[label] for label in labels.tolist()], np.int64)


def keep_ledger(workdir: Path, ledger: noise.Ledger) -> None:
    """Write the ledger, or check that it equals the one in the folder.

    Raises:
        UserError: the ledgers differ, because data or noise have changed.
    """
    path = workdir / "noise.json"
    if path.exists():
        ledger.check_same(noise.Ledger.read(path), str(path))
    elif jax.process_index() == 0:
        with errors.report_disk_errors(path):
            write_json(path, ledger.to_dict())


def find_wrong_records(train: Source, ledger: noise.Ledger, at_most: int) -> np.ndarray:
    """Return ascending ids, int64 [M], of records with wrong supervision: at most `at_most`, evenly spread."""
    if len(train.labels):
        wrong = np.flatnonzero(train.labels != train.labels_clean)
    else:
        wrong = np.sort(noise.CaptionSwap(n=ledger.n, rate=ledger.asked or 0.0, seed=ledger.seed).list_swapped())
    if len(wrong) > at_most:  # evenly, because sources are often sorted by class
        wrong = wrong[np.linspace(0, len(wrong) - 1, at_most).astype(int)]
    if len(train.labels):
        return wrong
    return np.array([i for i in wrong.tolist() if train.captions[i][0] != train.captions_clean[i][0]], np.int64)
