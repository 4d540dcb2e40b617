"""List the images that a builder makes a dataset from."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, NamedTuple

from nml_jax.data.class_names import list_names
from nml_jax.errors import UserError


class Item(NamedTuple):
    """An image that becomes a record or is refused."""

    label: str  # name of the class, or the text under `Listing.field`
    key: str
    load: Callable[[], tuple[bytes, str]]  # returns (bytes, "") or (b"", reason); any thread may call it
    size: tuple[int, int] | None = None  # the height and width that it must have; None: any


class Listing:
    """The images to build a dataset from.

    Attributes:
        src: folder or archive of the images.
        splits: split -> its images; the length is their number.
        classes: names of the classes in the order of the labels.
        refused: {"file": key, "reason": reason} of every refused file.
        left_out: {"file": key, "reason": reason, "files": number of files} of what is not an image of the dataset.
        dropped: names of classes without a usable image in the training split.
        seen: number of files, whether used or not: those accepted, refused and left out. None if it is not known.
        resize: largest shorter side of an image in pixels, or None.
        resized: split -> number of images that were shrunk.
        field: what the records call an image's value: "label", the number of its class, or the name of a text.
    """

    resize: int | None = None
    field = "label"

    def __init__(self, src: Path):
        self.src = src
        self.splits: Mapping[str, Sized] = {}
        self.classes: list[str] = []
        self.refused: list[dict[str, str]] = []
        self.left_out: list[dict[str, Any]] = []
        self.dropped: list[str] = []
        self.seen: int | None = None
        self.resized: Counter[str] = Counter()

    def iterate_items(self, split: str) -> Iterator[Item]:
        """Yield the images of a split in the order of its records."""
        raise NotImplementedError

    def count_left_out(self) -> Counter[str]:
        """Count the files that are left out, by reason without its details."""
        counts: Counter[str] = Counter()
        for entry in self.left_out:
            counts[entry["reason"]] += entry["files"]
        return counts

    def advise(self, split: str) -> str:
        """Return the advice for a split without a usable image."""
        return f"get {self.src} again"

    def count_classes(self, split: str, values: list[Any]) -> dict[str, int]:
        """Count each class in a split, from the values of its records."""
        counts = Counter(values)
        return {name: counts[i] for i, name in enumerate(self.classes)}

    def complete_manifest(self, folder: Path) -> dict[str, Any]:
        """Return further entries for the manifest. Called when all records are in `folder`; may write files there."""
        return {}

    def write_index(self, folder: Path, split: str, values: list[Any]) -> None:
        """Write the values of a split's records into the supervision index, `folder`."""
        import numpy as np

        np.save(folder / f"{split}.npy", np.array(values, np.int32))


def find_training_split(splits: Collection[str]) -> str | None:
    """Return the split that classes must have images in: "train", or the only one; None if it is not clear."""
    return "train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else None


def make_no_image_error(listing: Listing, split: str) -> UserError:
    """Make the error of a split without a usable image."""
    why = f" but of classes without one in the training split: {list_names(listing.dropped)}" if listing.dropped else ""
    return UserError(f"split {split!r} has no usable image{why}", listing.advise(split))
