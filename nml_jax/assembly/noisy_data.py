"""What a run is trained on: the split of its config, with the noise laid over it, and the ledger that tells so."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from nml_jax import errors, noise, objectives, ranges
from nml_jax.assembly import encoder
from nml_jax.data import sources
from nml_jax.data.sources.noisy import NoisyLabels, SwappedCaptions, align_by_key
from nml_jax.data.sources.source import Mixture, Source
from nml_jax.data.stratify import split_validation
from nml_jax.data.text.tokenizer import Tokenizer
from nml_jax.runs.files import write_json

BLOCK = 1 << 14  # records whose ids are Python integers at a time


class Data(NamedTuple):
    train: Source  # with noisy supervision
    validation: Source  # clean
    ledger: noise.Ledger
    tokenizer: Tokenizer | None  # of captions


def check_ranges(config: ConfigDict) -> None:
    """Refuse values of the section `data` that are out of range."""
    ranges.require_at_least(1, "data", config, "image_size")
    ranges.require_share("data", config, "validation", below_one=True)


def load_data(config: ConfigDict) -> Data:
    """The training split with its noise laid over it, the clean validation split, and the ledger."""
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
    """Records to train on, and their classes; refuses what `load_data` does, but reads no caption.

    Raises:
        UserError: as `load_data`.
    """
    train, _ = load_splits(config)
    if objectives.uses_captions(config.objective):
        encoder.load_tokenizer(config)
        make_swap(config, len(train))
    else:
        corrupt(config, train)
    return len(train), train.num_classes


def make_swap(config: ConfigDict, n: int) -> noise.CaptionSwap:
    """Whose captions the n training records get."""
    return noise.CaptionSwap(n=n, rate=config.noise, seed=config.noise_seed)


def load_splits(config: ConfigDict) -> tuple[Source, Source]:
    """The training split and the validation split, both clean.

    Record i of the training split is what `id == i` means everywhere: after the selection of classes and after
    validation is cut off; a mixture is one dataset after another.
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
    """(train, validation) of one dataset."""
    data = SimpleNamespace(**{**config.data.to_dict(), "path": path})
    source = sources.load(data, data.train, captions=captions)
    if data.validation_split:
        return source, sources.load(data, data.validation_split, captions=captions)
    return split_validation(source, data.validation)


def make_caption_ledger(captions: Any, swap: noise.CaptionSwap) -> noise.Ledger:
    """The ledger of a swap, with the number of records whose captions it leaves as they were, being the same texts.

    Args:
        captions: as a source of `data.captions` has them; their bytes are read, as this is done for every record.
    """
    ids = swap.list_swapped()
    blocks = (ids[start : start + BLOCK] for start in range(0, len(ids), BLOCK))
    pairs = (pair for block in blocks for pair in zip(block.tolist(), swap(block).tolist(), strict=True))
    unchanged = sum(captions.raw(i) == captions.raw(j) for i, j in pairs)
    told = tqdm(range(len(captions)), desc="captions on record", unit=" records", mininterval=1.0, delay=3.0)
    return noise.Ledger.from_captions(swap, map(captions.raw, told), unchanged=unchanged)


def corrupt(config: ConfigDict, train: Source) -> tuple[np.ndarray, noise.Ledger]:
    """Noisy labels of a source, and their ledger, from the `noise*` keys of the config."""
    fixed = config.noise_kind in ("matrix", "labels")
    if fixed and config.noise:
        raise errors.UserError(
            f"noise_kind={config.noise_kind} fixes its own rate, but noise={config.noise}", "leave noise at 0"
        )
    given: dict[str, Any] = {} if fixed else {"rate": config.noise}
    if fixed:
        given["matrix" if config.noise_kind == "matrix" else "noisy"] = read_noise_file(config, train)
    if config.noise_kind == "asymmetric":
        given |= {"classes": config.noise_classes, "rate_of": config.noise_rate_of}
    common = {"num_classes": train.num_classes, "kind": config.noise_kind, "seed": config.noise_seed}
    noisy = noise.corrupt_labels(train.labels, **common, **given)
    return noisy, noise.Ledger.from_labels(train.labels, noisy, asked=None if fixed else config.noise, **common)


def read_noise_file(config: ConfigDict, train: Source) -> np.ndarray:
    """The array in `noise_file`: a K×K matrix, or noisy labels aligned with the records of `train`.

    A .csv of key,label aligns by the source keys. A .npy holds one label per record of the training split, in order.
    """
    path, kind = Path(config.noise_file), config.noise_kind
    cure = "give --config.noise_file=FILE.npy" + (", or a .csv of key,label" if kind == "labels" else " of shape K×K")
    if not path.is_file():
        raise errors.UserError(f"noise_kind={kind} needs noise_file, and {str(path)!r} is no file", cure)
    if path.suffix == ".csv" and kind == "labels":
        return align_by_key(path, train)
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as e:
        raise errors.UserError(f"noise_file={path} is no .npy array: {e}", cure) from e


def keep_ledger(workdir: Path, ledger: noise.Ledger) -> None:
    """Put the ledger on record, or prove that it is the one on record.

    Raises:
        UserError: the folder's ledger is another one: its data or noise have changed.
    """
    path = workdir / "noise.json"
    if path.exists():
        ledger.check_same(noise.Ledger.read(path), str(path))
    elif jax.process_index() == 0:
        with errors.report_disk_errors(path):
            write_json(path, ledger.to_dict())


def find_wrong_records(train: Source, ledger: noise.Ledger, at_most: int) -> np.ndarray:
    """Ids of records whose supervision is wrong, ascending; of more than `at_most` of them, so many evenly spread."""
    if len(train.labels):
        wrong = np.flatnonzero(train.labels != train.labels_clean)
    else:
        wrong = np.sort(noise.CaptionSwap(n=ledger.n, rate=ledger.asked or 0.0, seed=ledger.seed).list_swapped())
    if len(wrong) > at_most:  # evenly, as sources are often sorted by class
        wrong = wrong[np.linspace(0, len(wrong) - 1, at_most).astype(int)]
    if len(train.labels):
        return wrong
    return np.array([i for i in wrong.tolist() if train.captions[i][0] != train.captions_clean[i][0]], np.int64)
