"""Open feature files of users: arrays (arrays.py) and tables (tables.py), one file or several that make one set.

Opening a file reads its labels and the shape of its features. The features stay on disk. `.npy`, `.safetensors` and
uncompressed members of an `.npz` are memory-mapped. Parquet, CSV and compressed members of an `.npz` are read batch by
batch. Only a compressed member in Fortran order is read whole, at its first use.
"""

import dataclasses
import glob
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from nml_jax import console, inputs
from nml_jax.data import class_names
from nml_jax.data.features.arrays import open_arrays, read_flat_arrays
from nml_jax.data.features.formats import (
    NO_LABELS,
    check_count,
    check_labels,
    check_scores,
    find_format,
    keep_valid_labels,
    list_names,
    read_errors,
)
from nml_jax.data.features.opened import LARGE, Features, Joined, count_block_rows
from nml_jax.data.features.scans import TABLES
from nml_jax.data.features.tables import list_columns, open_table, read_columns
from nml_jax.errors import UserError

__all__ = ["LARGE", "Features", "check_alike", "count_block_rows", "encode", "find_classes", "has_column",
           "open_features", "read_more", "translate_labels"]  # fmt: skip

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "dev": "validation",
          "val": "validation", "valid": "validation", "validation": "validation"}  # fmt: skip
FORMATS = (".npy", ".npz", ".safetensors", *TABLES)


def open_features(
    spec: str,
    *,
    label: str = "",
    columns: str = "",
    scale: float = 1.0,
    labelled: bool = True,
    wanted: Sequence[str] = (),
    group: str = "",
    scored: bool = False,
) -> Features:
    """Open a feature file, or several that make one set.

    For a table, log once which columns are used and which are left out.

    Arrays are features [N, D] or [N, V, D] and labels [N]. A table has a column of labels and either a column of lists
    or one column per feature. CSV and TSV need a first line of column names, and write lists as JSON, "[0.1, 0.2]", or
    as NumPy prints them. Cells may be tensors or lists of lists, too: [1, D] is D features, [V, D] is V views of them.
    Labels in them are text, unless all are whole numbers without leading zeros and the like. Spellings of one label are
    one (data/class_names.py).

    Args:
        spec: FILE, "FEATURES.npy,LABELS.npy", several of either separated by ";", a pattern such as "part-*.parquet",
            or a folder of shards or of a saved Hugging Face data set. Rows follow each other in the order of the list,
            or of the names. All files must have the same columns, shapes and class names.
        label: name of the label array or column. "": the only one of label, labels, y, target, class.
        columns: name of the feature array or column; in a table also names and patterns of columns of numbers, as in
            "f*,age". "": the only 2-D or 3-D array or the only column of lists; among several the one called features,
            X, x, embeddings or embedding; in a table without lists all columns of numbers and booleans except the label
            and ids, which `guesses.is_id` finds by name, and columns of whole numbers that count up.
        scale: real value = stored value × scale.
        labelled: False if the file may lack labels. Labels with blanks or other faults are then dropped with a notice.
        wanted: names of the D feature columns of a table, which may be in any order; (): as `columns` says. Arrays and
            lists have no such names and are taken as they are.
        group: name of a column that is never a feature, as it says which rows belong together; "": none.
        scored: whether labels are numbers to be predicted, float32 [N], and not classes.

    Raises:
        UserError: the file is missing, empty, damaged or of an unknown format; it is ambiguous which array or column
            holds the features or labels; shapes, dtypes or labels are not as above.
    """
    parts = inputs.split_parts(spec)
    _check_one_split(spec, parts)
    how: dict[str, Any] = {
        "label": label,
        "columns": columns,
        "scale": scale,
        "labelled": labelled,
        "wanted": wanted,
        "group": group,
        "scored": scored,
    }
    first = _open_file(parts[0], **how)
    if len(parts) == 1:
        return dataclasses.replace(first, spec=spec, path=_name_set(spec, first))
    found = [first]
    for part in parts[1:]:  # as the first file was taken
        same: dict[str, Any] = {"label": first.label or label, "wanted": first.names or wanted}
        same["columns"] = columns if first.names or not first.columns else first.columns[0]
        found.append(_open_file(part, **how | same))
    return _join(spec, found, labelled)


def _check_one_split(spec: str, parts: Sequence[str]) -> None:
    """Raise UserError if the names of the files in a folder say that they are of several splits."""
    words = {SPLITS.get(re.split(r"[^a-z]", Path(part).name.lower())[0]) for part in parts} - {None}
    if Path(spec).expanduser().is_dir() and len(words) > 1:
        raise UserError(
            f"{spec} holds files of several splits: {console.list_words(sorted(map(str, words)))}",
            f"name those of one split by a pattern, such as '{spec.rstrip('/')}/train*'",
        )


def _name_set(spec: str, first: Features) -> Path:
    """Return the path that names a set: its folder, its file, or the spec itself."""
    whole = Path(spec).expanduser()
    return whole if whole.is_dir() or len(inputs.split_parts(spec)) > 1 else first.path


def _join(spec: str, parts: Sequence[Features], labelled: bool) -> Joined:
    """Return several open files as one. Raise UserError if they do not fit together."""
    first, path = parts[0], _name_set(spec, parts[0])
    for part in parts[1:]:
        check_alike(first, part)
        if part.views != first.views:
            raise UserError(
                f"{part.path} holds {part.views} views of each row, {first.path} {first.views}",
                "store the same number of views in all files of a set",
            )
    labels = NO_LABELS
    if all(len(part.labels) for part in parts):
        labels = _join_labels(path, [translate_labels(first, part) for part in parts])
    elif any(len(part.labels) for part in parts):
        bare = next(part.path for part in parts if not len(part.labels))
        console.notice(f"labels are not used: {bare} has none")
    ids = {name: why for part in parts for name, why in part.ids.items()}
    files = tuple(path for part in parts for path in part.files)
    shape = sum(map(len, parts)), first.views, first.dim
    console.notice_once(f"{path}: {len(parts)} files, {shape[0]:,} rows, read as one set")
    known: dict[str, Any] = {field.name: getattr(first, field.name) for field in dataclasses.fields(Features)}
    known |= {"spec": spec, "path": path, "labels": labels, "shape": shape, "files": files, "ids": ids}
    known["dtype"] = np.result_type(*(part.dtype for part in parts)) if parts else first.dtype
    return Joined(**known, parts=tuple(parts))


def _join_labels(path: Path, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the labels of several files, [N]: as text if some are text.

    Raises:
        UserError: some are booleans and some are not.
    """
    kinds = {labels.dtype.kind for labels in parts}
    if "b" in kinds and len(kinds) > 1:
        raise UserError(f"{path}: some files hold true and false as labels, others do not", "write all labels alike")
    if "U" in kinds:
        return class_names.clean_labels(np.concatenate([labels.astype(str) for labels in parts]), f"{path}, labels")
    return np.concatenate(parts)


def _raise_folder(path: Path) -> NoReturn:
    """Raise UserError because a folder holds no shards."""
    inner = sorted(p.name for p in path.iterdir() if p.is_dir() and p.name[0] not in "._")
    cure = "give a feature file, or a folder of shards"
    if (path / "dataset_dict.json").is_file() or (inner and all("=" not in name for name in inner)):
        cure = f"name one of its folders: {console.shorten(f'{path}/{name}' for name in inner)}"
    elif inner:
        cure = f"its folders hold values of a column ({inner[0]}): write that column into the files"
    raise UserError(f"{path} is a folder without feature files", cure)


def _open_file(
    spec: str,
    *,
    label: str,
    columns: str,
    scale: float,
    labelled: bool,
    wanted: Sequence[str],
    group: str,
    scored: bool,
) -> Features:
    """Open one file, or a pair of .npy. The arguments are those of `open_features`."""
    paths = inputs.split_pair(spec)
    for path in paths:
        if path == Path():  # from "X.npy,"
            raise UserError(f"{spec!r} lacks the name of a file", "give FILE, or FEATURES.npy,LABELS.npy")
        if path.is_dir():
            _raise_folder(path)
        if not path.is_file():
            what = "matches no file" if glob.has_magic(str(path)) else "does not exist"
            raise UserError(f"{path} {what}", "give the path of a feature file")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes)", "write it again where the features were made")
    path, kind = paths[0], find_format(paths[0])
    if kind not in FORMATS or (len(paths) > 1 and {p.suffix.lower() for p in paths} != {".npy"}):
        raise UserError(
            f"{spec} is not a feature file of a known format: {', '.join(inputs.SHARDS)}, or FEATURES.npy,LABELS.npy",
            "save the features in one of them; examples/export_features.py writes .safetensors",
        )
    if not math.isfinite(scale) or scale == 0:
        raise UserError(f"scale is {scale}", "give the factor from stored values to real ones; 1 keeps them")
    with read_errors(path):
        if kind in TABLES:
            content = open_table(path, label, columns, labelled, wanted, group)
            used = f"label {content.label!r}, " if content.label else "no label, "
            console.notice_once(
                f"{path}: {used}features {list_names(content.columns)}; left out: {list_names(content.left_out)}"
            )
            if content.ids:
                why = ", ".join(f"{name!r} ({reason})" for name, reason in [*content.ids.items()][:12])
                console.notice_once(f"{path}: taken for ids: {why}; --config.features.columns keeps a column")
        else:
            content = open_arrays(paths, label, columns, labelled)
        check = check_scores if scored else check_labels
        labels = keep_valid_labels(paths[-1], lambda: check(content.labels, paths[-1]), NO_LABELS, labelled)
    labels = class_names.clean_labels(labels, f"{paths[-1]}, labels")
    shape = content.shape if len(content.shape) == 3 else (*content.shape[:1], 1, *content.shape[1:])
    if len(shape) != 3 or 0 in shape[1:]:
        raise UserError(
            f"{path}: the features have shape {list(content.shape)}",
            "give them as [rows, features], or as [rows, views, features]",
        )
    if shape[1] > 1:
        console.notice_once(f"{path}: {shape[1]} views of each row, and only the first is scored")
    if shape[0] == 0:
        raise UserError(f"{path} has no rows", "write it again where the features were made")
    if content.dtype.kind not in "fiub" and content.dtype != ml_dtypes.bfloat16:
        raise UserError(
            f"{path}: the features have dtype {content.dtype}, not real numbers",
            "save them as float32; bfloat16 works only in .safetensors",
        )
    if labelled or len(labels):
        labels = keep_valid_labels(path, lambda: _with_count(labels, shape[0], spec), NO_LABELS, labelled)
    names = content.label, content.columns, content.left_out, content.class_names
    return Features(spec, path, labels, shape, content.dtype, scale, *names, tuple(paths), content.store, content.ids)


def _with_count(labels: np.ndarray, rows: int, spec: str) -> np.ndarray:
    """Return the labels. Raise UserError unless there is one for every row."""
    check_count(len(labels), rows, spec)
    return labels


def has_column(spec: str, name: str) -> bool:
    """Return whether the first table of a set has a column of that name. Raise UserError if it cannot be read."""
    path = inputs.split_pair(inputs.split_parts(spec)[0])[0]
    return path.is_file() and find_format(path) in TABLES and name in list_columns(path)


def read_more(features: Features, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return further columns of a table, or arrays [N] of an archive, by name: a list of N cells, None if missing.

    Raises:
        UserError: a name is not there, or the file is damaged.
    """
    found: dict[str, list[Any]] = {name: [] for name in names}
    for part in features.parts if isinstance(features, Joined) else (features,):
        path, kind = part.files[0], find_format(part.files[0])
        arrays = {} if kind in (*TABLES, ".npy") else read_flat_arrays(path, len(part))
        known = list_columns(path) if kind in TABLES else list(arrays)
        if missing := [name for name in names if name not in known]:
            what = "column" if kind in TABLES else "array with a value for each row called"
            raise UserError(f"{path} has no {what} {missing[0]!r}", f"it has {list_names(known) or 'none'}")
        cells = read_columns(path, names) if kind in TABLES else {n: arrays[n].tolist() for n in names}
        for name in names:
            found[name] += cells[name]
    return found


def check_alike(train: Features, other: Features) -> None:
    """Check that the features of `other` mean what those of `train` do.

    Raises:
        UserError: they differ in width or column names, or share one scale though one holds whole numbers and the
            other fractions.
    """
    if train.dim != other.dim:
        raise UserError(
            f"{other.path} has {other.dim} features per row, {train.path} has {train.dim}",
            "use features of the same encoder and layer for both",
        )
    if len(train.columns) == len(other.columns) > 1 and train.columns != other.columns:
        mine, its = next(pair for pair in zip(train.columns, other.columns, strict=True) if pair[0] != pair[1])
        raise UserError(
            f"{other.path} has column {its!r} where {train.path} has {mine!r}", "use the same columns in both"
        )
    if train.scale != 1 and (train.dtype.kind in "iub") != (other.dtype.kind in "iub"):
        raise UserError(
            f"{other.path} holds {other.dtype}, {train.path} {train.dtype}, and one scale, {train.scale:g}, for both",
            "store both with the same dtype, or write real values and leave the scale at 1",
        )


def translate_labels(train: Features, other: Features) -> np.ndarray:
    """Return the labels of `other` as `train` writes them: [N], matched by name where the files name their classes.

    Where only one of two files with numbers names them, a line is logged.

    Raises:
        UserError: a label cannot be matched, because it has no name or because training has no class of that name.
    """
    labels, mine, its = other.labels, train.class_names, other.class_names
    if labels.dtype.kind == "f":  # scores
        return labels
    mine, its = (names if of.labels.dtype.kind in "iu" else () for names, of in ((mine, train), (its, other)))
    same = all(a == b for a, b in zip(mine, its, strict=False))
    if mine and its and same:
        return labels
    named = len(labels) and 0 <= labels.min() <= labels.max() < len(its) if its else False
    if mine and its and not named:
        i, a, b = next((i, a, b) for i, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b)
        raise UserError(
            f"{other.path} calls class {i} {b!r}, {train.path} calls it {a!r}, and labels without a name cannot be "
            f"matched: {labels.max()}",
            "number the classes the same way in both; examples/export_features.py does so with --like",
        )
    if named and (mine or train.labels.dtype.kind == "U"):
        labels = np.array(its)[labels]
    if mine and labels.dtype.kind == "U":
        return _match_names(labels, mine, train, other)
    if bool(mine) != bool(its) and labels.dtype.kind in "iu" and train.labels.dtype.kind in "iu":
        bare, named = (other, train) if mine else (train, other)
        console.notice_once(f"{bare.path} does not name its classes: its numbers are taken as those of {named.path}")
    return labels


def _match_names(labels: np.ndarray, names: tuple[str, ...], train: Features, other: Features) -> np.ndarray:
    """Return labels of text as positions in `names`; unchanged if not one is a name, such as "0"."""
    values, rows = np.unique(labels, return_inverse=True)
    place = {name: i for i, name in enumerate(names)}
    new = [value for value in values.tolist() if value not in place]
    if len(new) == len(values):
        return labels
    if new:
        raise UserError(
            f"{other.path} has the classes {list_names(new)}, which {train.path} does not name",
            "drop their rows, or add rows of these classes to the training file",
        )
    console.notice_once(f"{other.path}: its classes are matched to those of {train.path} by name")
    return np.array([place[value] for value in values.tolist()], np.int64)[rows]


def find_classes(labels: np.ndarray, what: str = "training") -> np.ndarray:
    """Return the distinct classes of `labels`, sorted: [K], with the labels' dtype.

    Raises:
        UserError: there is only one.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise UserError(
            f"{what}: all {len(labels)} labels are {', '.join(map(repr, classes.tolist())) or 'missing'}",
            "give data of at least two classes",
        )
    return classes


def encode(labels: np.ndarray, classes: np.ndarray, what: str) -> np.ndarray:
    """Return the positions of `labels` [N] in the sorted `classes` [K], int32 [N]. `what` names the labels in errors.

    Raises:
        UserError: a label is not one of the classes.
    """
    find = {label: place for place, label in enumerate(classes.tolist())}.get  # exact even between int64 and uint64
    if "U" in labels.dtype.kind + classes.dtype.kind:  # each table decides alone if its labels are numbers
        find, labels = class_names.NameIndex(classes.tolist()).find, labels.astype(str)
    values, rows = np.unique(labels, return_inverse=True)
    found = map(find, values.tolist())
    places = np.array([-1 if place is None else place for place in found], np.int32)
    if new := values[places < 0].tolist():
        raise UserError(
            f"{what}: {(places[rows] < 0).sum()} of {len(labels)} rows have classes that training never saw: "
            f"{', '.join(map(repr, new[:5]))}{', …' * (len(new) > 5)}",
            "drop these rows, or add rows of these classes to the training file",
        )
    return places[rows]
