"""Frames of videos as a test set: what is in each, and which surround which anchor frame."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from nml_jax.errors import UserError
from nml_jax.runs.files import write_json


class Frames(NamedTuple):
    """Of a split of N frames.

    Attributes:
        labels: of each frame all classes in it; the record's own label is the first.
        groups: of each anchor frame the ids of the frames around it that were found alike, its own id first.
    """

    labels: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]


def write_frames(folder: Path, split: str, frames: Frames) -> None:
    write_json(_frames_path(folder, split), frames._asdict())


def read_frames(folder: Path, split: str) -> Frames:
    """The frames of a split, as the builder wrote them beside the records.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = _frames_path(folder, split)
    try:
        stored: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return Frames(*(tuple(tuple(map(int, ids)) for ids in stored[field]) for field in Frames._fields))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is missing or damaged: {e}", "prepare the dataset anew") from e


def _frames_path(folder: Path, split: str) -> Path:
    return folder / "supervision" / f"{split}.frames.json"
