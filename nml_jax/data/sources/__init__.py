"""Sources: random access to images with labels or captions, and where a config finds them."""

from collections.abc import Sequence

from nml_jax.data.sources.digits import read_digits
from nml_jax.data.sources.source import Source, select_classes
from nml_jax.errors import UserError


def load(
    kind: str,
    path: str,
    split: str,
    *,
    name: str = "",
    classes: Sequence[int] = (),
    num_classes: int | None = None,
    captions: bool = False,
) -> Source:
    """Find a dataset and open one of its splits.

    Args:
        kind: digits, directory or tfds, as `config.data.source` says.
        path: of a prepared directory; of tfds its data directory, "" for the usual one.
        split: a split; for TFDS also a part, "train[:50%]", or a sum, "train+validation".
        name: of a tfds dataset.
        classes: keep these only, renumbered in this order; () keeps all.
        num_classes: how many there must be then; None allows any number.
        captions: supervised by captions, else by labels.

    Raises:
        UserError: no such source, dataset or split; no record in it; labels or classes that do not match.
    """
    if kind == "digits":
        if captions:
            raise UserError("the digits have no captions", "set data.source=directory and data.path")
        source = read_digits(split)
    elif kind in ("directory", "tfds"):
        from nml_jax.data.sources import prepared  # imports TFDS, a second that digits need not wait

        source = prepared.load(kind, path, split, name=name, captions=captions)
    else:
        raise UserError(f"data.source={kind!r}", "data.source is one of digits, directory, tfds")
    if captions:
        if len(classes):
            raise UserError(f"data.classes={tuple(classes)} chooses labels; here are captions", "leave it out")
        if not len(source):
            raise UserError(f"split {split!r} has no record", "choose a larger part of it")
        return source
    if len(classes):
        source = select_classes(source, tuple(classes))
    if num_classes is not None and num_classes != source.num_classes:
        raise UserError(
            f"data.num_classes={num_classes}, but split {split!r} has {source.num_classes} classes",
            f"set --config.data.num_classes={source.num_classes}, or leave it out",
        )
    if not len(source):
        raise UserError(f"split {split!r} has no record", "choose a larger part of it, or other classes")
    return source
