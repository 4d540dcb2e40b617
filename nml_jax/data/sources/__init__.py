"""Open datasets as sources, which give random access to images with labels or captions, and to texts with labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nml_jax.data.sources import sentences
from nml_jax.data.sources.digits import read_digits
from nml_jax.data.sources.source import Source, select_classes
from nml_jax.errors import UserError

# The sources that this process has opened, in words: what -> number of records and fingerprint. The processes of a job
# compare them.
opened: dict[str, str] = {}


def load(
    kind: str,
    path: str,
    split: str,
    *,
    name: str = "",
    classes: Sequence[int] = (),
    num_classes: int | None = None,
    captions: bool = False,
    columns: str = "",
    label: str = "",
) -> Source:
    """Find a dataset and open one of its splits.

    Args:
        kind: `config.data.source`: digits, directory, tfds or texts.
        path: a prepared directory; for tfds its data directory, "" for the default one; for texts a folder of tables.
        split: a split; of directory and tfds also a part, "train[:50%]", or a sum, "train+validation"; of texts the
            name of a table without its ending.
        name: name of a tfds dataset.
        classes: keep only these, renumbered in this order; () keeps all.
        num_classes: number of classes there must be then; None allows any number.
        captions: True for supervision by captions, False for labels.
        columns, label: of texts: names of the columns, see `tables.choose_columns`.

    Raises:
        UserError: the source, dataset or split does not exist or has no records; labels or classes do not match.
    """
    chosen = {"name": name, "columns": columns, "label": label}
    source = _load(kind, path, split, chosen, classes=classes, num_classes=num_classes, captions=captions)
    what = ", ".join(filter(None, (path or kind, name, f"split {split}", f"classes {classes}" if len(classes) else "")))
    opened[what] = f"{len(source)} records (fingerprint {source.fingerprint[:8]})"
    return source


def _load(
    kind: str,
    path: str,
    split: str,
    chosen: Mapping[str, str],
    *,
    classes: Sequence[int],
    num_classes: int | None,
    captions: bool,
) -> Source:
    """Do as `load`, without keeping a record of it. `chosen` holds name, columns and label."""
    if kind == "digits":
        if captions:
            raise UserError("the digits have no captions", "set data.source=directory and data.path")
        source = read_digits(split)
    elif kind in ("directory", "tfds"):
        from nml_jax.data.sources import prepared  # imports TFDS, which takes a second that digits do not need

        source = prepared.load(kind, path, split, name=chosen["name"], captions=captions)
    elif kind == "texts":
        if captions:
            raise UserError("texts have labels, and no captions", "set objective.name=supervised")
        source = sentences.open_split(Path(path).expanduser(), split, chosen["columns"], chosen["label"])
    else:
        raise UserError(f"data.source={kind!r} does not exist", "choose one of digits, directory, tfds, texts")
    if captions:
        if len(classes):
            raise UserError(f"data.classes={tuple(classes)} needs labels, but the dataset has captions", "leave it out")
        if not len(source):
            raise UserError(f"split {split!r} has no records", "choose a larger part of it")
        return source
    if len(classes):
        source = select_classes(source, tuple(classes))
    if num_classes is not None and num_classes != source.num_classes:
        raise UserError(
            f"data.num_classes={num_classes}, but split {split!r} has {source.num_classes} classes",
            f"set --config.data.num_classes={source.num_classes}, or leave it out",
        )
    if not len(source):
        raise UserError(f"split {split!r} has no records", "choose a larger part of it, or other classes")
    return source
