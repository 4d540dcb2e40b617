"""Build a prepared ArrayRecord dataset from detection data in COCO's format, without TensorFlow.

SRC is a folder or a zip with at least one json, and the images in folders or zips. Every json is a split:
instances_val.json is "val". Several of plain names are called after their folders, as val/instances.json or
val/_annotations.coco.json; a single instances.json is "train", for a folder that holds every json does not count. File
names are matched exactly first, then in Unicode NFC. Records keep the bytes of the images, and the names, ids, boxes,
polygons and RLEs as the json writes them.

An image without its file, with a file of another size or a damaged one is refused; annotations are left out or mended
as annotations.py says. manifest.json lists and counts all of it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from nml_jax.data.class_names import compose, escape_name, read_name
from nml_jax.data.sources import texts
from nml_jax.errors import UserError
from nml_jax.prepare import archives, records
from nml_jax.prepare.coco.annotations import Instances, parse
from nml_jax.prepare.listing import Item, Listing, find_training_split
from nml_jax.prepare.out_folder import check_out

COCO_FOLDER = "from a folder or zip with json files in COCO's format and images"
# Files of COCO's distribution that hold other annotations, and names that say nothing about the split.
OTHERS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
PLAIN = ("instances", "annotations", "_annotations.coco", "_annotations", "coco", "labels")
FOLDERS = ("annotations", "images")
IDS = 20  # of annotations with the same mend that the manifest lists
Read = Callable[[], tuple[bytes, str]]


class Found(Listing):
    """The listing of SRC. A split is the list of its images' entries."""

    splits: dict[str, list[dict[str, Any]]]
    field = "annotations"

    def __init__(self, src: Path):
        super().__init__(src)
        self.files, clutter = archives.index_files(src)
        self.left_out = [{"file": escape_name(src.name), "reason": why, "files": n} for why, n in clutter.items()]
        self.instances: dict[str, Instances] = {}
        self._homes: dict[str, PurePosixPath] = {}  # the folder of each split's json
        self._plain: set[str] = set()  # the splits whose json does not name them
        chosen = self._list_jsons()
        shared = _find_shared([PurePosixPath(name).parts[:-1] for name in chosen])
        for name in chosen:
            content, reason = self.files[name]()
            if reason:
                raise UserError(f"{name} in {src} cannot be read: {reason}", "get it again")
            split = name_split("/".join(PurePosixPath(name).parts[shared:]))
            records.check_split(split, f"rename {name}")
            if split in self.instances:
                raise UserError(f"{src} has two json files of the split {split!r}", "name each after its split")
            self.instances[split] = parse(name, content)
            self._homes[split] = PurePosixPath(name).parent
            self._plain |= {split} if _read_stem(name) is None else set()
        self.splits = {split: of.images for split, of in self.instances.items()}
        self.classes = merge_classes(self.instances)
        self.seen = len(self.files) + sum(clutter.values())
        self._paths = self._index_paths()
        self._find_files()

    def _list_jsons(self) -> list[str]:
        """List the json files in COCO's format; leave out those of other annotations."""
        found = [name for name in self.files if name.lower().endswith(".json")]
        others = [name for name in found if PurePosixPath(name).name.startswith(OTHERS)]
        self.left_out += [{"file": name, "reason": "other annotations than boxes", "files": 1} for name in others]
        if not (chosen := [name for name in found if name not in others]):
            raise UserError(f"{self.src} holds no json of boxes", "give a folder with instances.json and its images")
        return chosen

    def _index_paths(self) -> dict[str, list[str]]:
        """Return the paths of all files but the json files, by their names without folders, in Unicode NFC."""
        paths: dict[str, list[str]] = {}
        for name in self.files:
            if not name.lower().endswith(".json"):
                paths.setdefault(compose(PurePosixPath(name).name), []).append(name)
        return paths

    def _find_files(self) -> None:
        """Find the file of every image, and leave out the files of no image."""
        self.where: dict[tuple[str, Any], str] = {}
        self._reasons: dict[tuple[str, Any], str] = {}  # why an image has none
        for split, entries in self.splits.items():
            for entry in entries:
                self._find_file(split, entry)
            self._leave_to_one(split, {entry["id"]: entry["file_name"] for entry in entries})
        used = set(self.where.values())
        unused = [path for paths in self._paths.values() for path in paths if path not in used]
        for path in sorted(unused):
            self.left_out.append({"file": path, "reason": "no json has an image of this file", "files": 1})

    def _find_file(self, split: str, entry: Mapping[str, Any]) -> None:
        """Find the path of an image's file: the one in a folder of its split's name, or else nearest to its json.

        If the json does not name its split, the nearness comes first.
        """
        file, key = entry["file_name"], (split, entry["id"])
        paths = self._paths.get(compose(PurePosixPath(file).name), [])
        named = [_match(path, file) for path in paths]
        ends = [path for path, words in zip(paths, named, strict=True) if words == max(named)]
        home = self._homes[split]

        def rank(path: str) -> tuple[Any, ...]:
            folders = [compose(part.removesuffix(".zip")) for part in PurePosixPath(path).parts[:-1]]
            near, other = PurePosixPath(path).is_relative_to(home), compose(split) not in folders
            return (not near, other, len(folders)) if split in self._plain else (other, not near, len(folders))

        best = sorted(path for path in ends if rank(path) == min(map(rank, ends)))
        if len(best) == 1:
            self.where[key] = best[0]
        else:
            self._reasons[key] = f"it may be {best[0]} or {best[1]}" if best else "there is no such file"

    def _leave_to_one(self, split: str, names: Mapping[Any, str]) -> None:
        """Leave a file that was found for several images to the one that names more of its path, or to none."""
        owners: dict[str, list[Any]] = {}
        for image in names:
            if path := self.where.get((split, image)):
                owners.setdefault(path, []).append(image)
        for path, images in owners.items():
            named = {image: _match(path, names[image]) for image in images}
            best = [image for image in images if named[image] == max(named.values())]
            for image in images if len(best) > 1 else [image for image in images if image not in best]:
                del self.where[split, image]
                other = next(of for of in images if of != image)
                self._reasons[split, image] = f"{path} may be the file of image {other}"

    def iterate_items(self, split: str) -> Iterator[Item]:
        numbers = {name: i for i, name in enumerate(self.classes)}
        of = self.instances[split]
        labels = {i: numbers[name] for i, name in of.categories.items()}
        for entry in of.images:
            key = split, entry["id"]
            load: Read = self.files[self.where[key]] if key in self.where else self._explain(*key)
            annotations = [{**one, "label": labels[one["category_id"]]} for one in of.objects[entry["id"]]]
            about = {"id": entry["id"], "height": entry["height"], "width": entry["width"]}
            text = json.dumps(about | {"annotations": annotations}, ensure_ascii=False)
            yield Item(text, entry["file_name"], load, (entry["height"], entry["width"]))

    def _explain(self, split: str, image: Any) -> Read:
        """Return what reads an image without a file: it gives the reason."""
        reason = f"{self._reasons[split, image]}; it is image {image} of the json"
        return lambda: (b"", reason)

    def advise(self, split: str) -> str:
        return f"put its images beside the json of {split}, in a folder or a zip"

    def count_classes(self, split: str, values: list[Any]) -> dict[str, int]:
        counts: Counter[int] = Counter()
        for text in values:
            counts.update(one["label"] for one in json.loads(text)["annotations"] if not one["iscrowd"])
        return {name: counts[i] for i, name in enumerate(self.classes)}

    def write_index(self, folder: Path, split: str, values: list[Any]) -> None:
        """Write the annotations, and for each image its height, width, objects and objects with masks."""
        sizes = []
        for image in map(json.loads, values):
            masks = [one["segmentation"] is not None for one in image["annotations"] if not one["iscrowd"]]
            sizes.append([image["height"], image["width"], len(masks), sum(masks)])
        np.save(folder / f"{split}.sizes.npy", np.array(sizes, np.int32))
        texts.write(folder / f"{split}.annotations", values)

    def complete_manifest(self, folder: Path) -> dict[str, Any]:
        """Return the manifest's entries about categories and annotations."""
        ids = {split: {name: i for i, name in of.categories.items()} for split, of in self.instances.items()}
        own = {split: [of.get(name) for name in self.classes] for split, of in ids.items()}
        mended = {split: dict(sorted((+of.mended).items())) for split, of in self.instances.items()}
        left_out = [{"split": split, **one} for split, of in self.instances.items() for one in of.left_out]
        first = {split: {what: every[:IDS] for what, every in sorted(of.mended_ids.items()) if every}
                 for split, of in self.instances.items()}  # fmt: skip
        return {"category_ids": own, "annotations_mended": mended, "annotations_mended_ids": first,
                "annotations_left_out": left_out}  # fmt: skip


def _match(path: str, file: str) -> tuple[int, bool]:
    """Return how much of a path a json's name of a file names, and whether it does so exactly, not only in NFC.

    A name of other folders names nothing of the path but its end.
    """
    exact = f"/{path}".endswith(f"/{file}")
    whole = exact or compose(f"/{path}").endswith(compose(f"/{file}"))
    return len(compose(file)) * whole, exact or (not whole and PurePosixPath(path).name == PurePosixPath(file).name)


def _find_shared(paths: list[tuple[str, ...]]) -> int:
    """Return how many folders from the top all paths have in common."""
    levels = enumerate(zip(*paths, strict=False))
    return next((i for i, names in levels if len(set(names)) > 1), min(map(len, paths)))


def _read_stem(name: str) -> str | None:
    """Return the name of a json without its end; None if it is one that says nothing about the split."""
    stem = PurePosixPath(name).name[: -len(".json")]
    return None if stem.lower() in PLAIN else stem


def name_split(name: str) -> str:
    """Return the split that a json is of, from its path below the folders that hold every json."""
    if (stem := _read_stem(name)) is not None:
        return read_name(stem.removeprefix("instances_"))
    folders = [part.removesuffix(".zip") for part in PurePosixPath(name).parts[:-1] if part.lower() not in FOLDERS]
    return read_name(folders[-1]) if folders else "train"


def merge_classes(instances: dict[str, Instances]) -> list[str]:
    """Return the names of the categories of the training split, by id, and then further ones of the others."""
    train = find_training_split(instances) or next(iter(instances))
    order = [train, *(split for split in instances if split != train)]
    return list(dict.fromkeys(name for split in order for name in instances[split].categories.values()))


def build_coco_folder(src: Path, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Build the dataset `out`, which appears once it is complete, and return the manifest.

    Args:
        src: folder or zip, see above.
        workers: number of threads that read and check images; None: one per core.

    Raises:
        UserError: a json is not in COCO's format, a split has no usable image, or `out` exists already or cannot be
            written.
    """
    src = src.resolve()
    if not src.exists():
        raise UserError(f"{src} does not exist", "give a folder or zip with a json in COCO's format")
    check_out(src, out)
    return records.build("coco_folder", Found(src), out, workers=workers)
