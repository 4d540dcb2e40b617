"""Frames of videos as a test set: the classes in each frame, and the frames around each anchor frame."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from nml_jax.errors import UserError
from nml_jax.runs.files import write_json


class Frames(NamedTuple):
    """Labels and groups of a split of N frames.

    Attributes:
        labels: for each frame, all classes in it; the record's own label comes first.
        groups: for each anchor frame, its id and then the ids of the similar frames around it.
    """

    labels: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]


def write_frames(folder: Path, split: str, frames: Frames) -> None:
    write_json(_frames_path(folder, split), frames._asdict())


def read_frames(folder: Path, split: str) -> Frames:
    """Read the frames of a split, which the builder wrote beside the records.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = _frames_path(folder, split)
    try:
        stored: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return Frames(*(tuple(tuple(map(int, ids)) for ids in stored[field]) for field in Frames._fields))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is missing or damaged: {e}", "prepare the dataset again") from e


def _frames_path(folder: Path, split: str) -> Path:
    return folder / "supervision" / f"{split}.frames.json"
