"""Read a split of texts that TFDS has prepared as ArrayRecord files, without TensorFlow."""

from pathlib import Path
from typing import Any

from nml_jax.data.text.tables import Table, name_classes
from nml_jax.errors import UserError


def list_splits(folder: Path) -> list[str]:
    """Return the names of the splits in a prepared folder."""
    return list(_open(folder).info.splits)


def read_records(folder: Path, split: str) -> Table:
    """Return the columns of a split: texts as str, classes by name where the folder names them.

    Raises:
        UserError: the folder is damaged, or has other files than ArrayRecord.
    """
    builder = _open(folder)
    try:
        records = list(builder.as_data_source(split))
    except Exception as e:  # TFDS, protobuf and ArrayRecord raise many kinds for damaged files
        raise UserError(f"{folder}: split {split!r} cannot be read: {_shorten(e)}", "prepare it again") from e
    columns: dict[str, list[Any]] = {name: [_convert(record[name]) for record in records] for name in records[0]}
    for name in columns:
        if names := getattr(builder.info.features[name], "names", None):
            columns[name] = name_classes(columns[name], names)
    return Table(columns)


def _open(folder: Path) -> Any:
    import tensorflow_datasets as tfds  # takes a second, which other files do not need

    try:
        return tfds.builder_from_directory(folder)
    except Exception as e:
        raise UserError(f"{folder} is not a readable dataset: {_shorten(e)}", "prepare it again") from e


def _shorten(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _convert(value: Any) -> Any:
    """Return a cell as Python has it."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value.item() if hasattr(value, "item") else value
