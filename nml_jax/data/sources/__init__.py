"""Sources: random access to images with labels or captions, and where a config finds them."""

from typing import Any

from nml_jax.data.sources.digits import read_digits
from nml_jax.data.sources.source import Source, select_classes
from nml_jax.errors import UserError


def load(data: Any, split: str, *, captions: bool = False) -> Source:
    """The source that the section `config.data` describes, but for its mixture.

    Args:
        data: holds source, path, name, classes and num_classes.
        split: a split; for TFDS also a part, "train[:50%]", or a sum, "train+validation".
        captions: supervised by captions, else by labels.

    Raises:
        UserError: no such source, dataset or split; no record in it; labels or classes that do not match.
    """
    if data.source == "digits":
        if captions:
            raise UserError("the digits have no captions", "set data.source=directory and data.path")
        source = read_digits(split)
    elif data.source in ("directory", "tfds"):
        from nml_jax.data.sources import prepared  # imports TFDS, a second that digits need not wait

        source = prepared.load(data, split, captions=captions)
    else:
        raise UserError(f"data.source={data.source!r}", "data.source is one of digits, directory, tfds")
    if captions:
        if len(data.classes):
            raise UserError(f"data.classes={tuple(data.classes)} chooses labels; here are captions", "leave it out")
        if not len(source):
            raise UserError(f"split {split!r} has no record", "choose a larger part of it")
        return source
    if len(data.classes):
        source = select_classes(source, tuple(data.classes))
    if data.num_classes is not None and data.num_classes != source.num_classes:
        raise UserError(
            f"data.num_classes={data.num_classes}, but split {split!r} has {source.num_classes} classes",
            f"set --config.data.num_classes={source.num_classes}, or leave it out",
        )
    if not len(source):
        raise UserError(f"split {split!r} has no record", "choose a larger part of it, or other classes")
    return source
