"""Read a json in COCO's format and check every entry of it.

What makes the whole unreliable is refused, such as an id or name of an image or category that comes twice. Any other
annotation that cannot be used is left out and listed, and one that can be mended is mended and counted.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from nml_jax.data.class_names import read_name
from nml_jax.data.images import masks
from nml_jax.errors import UserError
from nml_jax.prepare.coco.fields import CATEGORY, CURE, is_id, read_entry, read_image, read_whole
from nml_jax.prepare.records import check_class

SHARED = "an id that other annotations have, too"
STRAY = "or take it out of SRC if it is not a json of COCO's format"
FAR = 1e9  # of a number of a box: beyond it nothing is a place
PARTS = {"images": list, "annotations": list, "categories": list}


class Instances(NamedTuple):
    """A json that was read.

    Fields:
        images: the entries of the images, with id, file_name, height and width.
        categories: id -> name, in the order of the ids.
        objects: id of an image -> its annotations, which `check_objects` has found sound.
        left_out: {"file", "annotation", "reason"} of every annotation that is not used.
        mended: what was mended -> how often.
        mended_ids: what was mended -> the ids of the annotations, as far as they have some.
    """

    images: list[dict[str, Any]]
    categories: dict[int, str]
    objects: dict[Any, list[dict[str, Any]]]
    left_out: list[dict[str, Any]]
    mended: Counter[str]
    mended_ids: dict[str, list[Any]]


def parse(name: str, content: bytes) -> Instances:
    """Parse and check a json.

    Args:
        name: of the file, for messages.

    Raises:
        UserError: it is cut off or not in COCO's format, or ids or names come twice.
    """
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{name} is not a json, or is cut off: {e}", f"get it again, {STRAY}") from e
    if not isinstance(tree, dict) or not all(isinstance(tree.get(key), kind) for key, kind in PARTS.items()):
        has = f"has {', '.join(list(tree)[:5]) or 'nothing'}" if isinstance(tree, dict) else f"is {_name_kind(tree)}"
        cause = f"{name} is not in COCO's format: it {has}, not images, annotations and categories"
        raise UserError(cause, f"{CURE}, {STRAY}")
    images = [read_image(name, entry) for entry in tree["images"]]
    categories = _check_categories(name, tree["categories"])
    _refuse_twice(name, "image", [entry["id"] for entry in images])
    _refuse_twice(name, "file", [entry["file_name"] for entry in images])
    return _sort_objects(name, images, categories, tree["annotations"])


def _name_kind(tree: Any) -> str:
    return {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(tree), "a number")


def _check_categories(name: str, entries: list[Any]) -> dict[int, str]:
    """Return id -> name. Raise UserError if an id or name is missing or comes twice."""
    entries = [read_entry(name, "a category", entry, CATEGORY) for entry in entries]
    if not entries:
        raise UserError(f"{name} has no category", CURE)
    _refuse_twice(name, "category", [entry["id"] for entry in entries])
    named = {entry["id"]: read_name(entry["name"]) for entry in sorted(entries, key=lambda entry: entry["id"])}
    for of_category in named.values():
        check_class(of_category, f"rename the category in {name}")
    twice = [of for of, n in Counter(named.values()).items() if n > 1]
    if twice:
        ids = " and ".join(str(i) for i, of in named.items() if of == twice[0])
        raise UserError(f"{name}: the categories {ids} are both called {twice[0]!r}", "give each a name of its own")
    return named


def _refuse_twice(name: str, what: str, values: list[Any]) -> None:
    if twice := [value for value, n in Counter(values).items() if n > 1]:
        raise UserError(f"{name}: {what} {twice[0]!r} comes twice", "keep one entry for each")


def _sort_objects(name: str, images: list[Any], categories: dict[int, str], annotations: list[Any]) -> Instances:
    """Sort annotations by image. Leave out and mend what `Instances` lists."""
    known = {entry["id"]: entry for entry in images}
    out = Instances(images, categories, {entry["id"]: [] for entry in images}, [], Counter(), {})
    ids: Counter[Any] = Counter()
    for entry in annotations:
        own = read_whole(entry.get("id")) if isinstance(entry, dict) else None
        own = own if is_id(own) else None
        mended = Counter[str]()
        try:
            image = _get(known, entry.get("image_id")) if isinstance(entry, dict) else None
            if image is None:
                raise ValueError("of an image that is not listed")
            if _get(categories, entry.get("category_id")) is None:
                raise ValueError("of a category that is not listed")
            out.objects[image["id"]].append(check_object({**entry, "id": own}, image["height"], image["width"], mended))
        except ValueError as e:
            out.left_out.append({"file": name, "annotation": own, "reason": str(e)})
            continue
        ids[own] += 1
        out.mended.update(mended)
        for what in mended if own is not None else ():
            out.mended_ids.setdefault(what, []).append(own)
    out.mended["an annotation without an id"] = ids.pop(None, 0)
    out.mended["annotation id 0, which evaluation numbers again"] = ids[0]
    out.mended[SHARED] = sum(n for n in ids.values() if n > 1)
    out.mended_ids[SHARED] = [own for own, n in ids.items() if n > 1]
    return out


def _get(known: Mapping[Any, Any], value: Any) -> Any:
    """Return what has this id, 3.0 for 3 included; None if nothing has, or if this is not an id (a list, true)."""
    return known.get(value) if is_id(value) or type(value) is float else None


def check_object(entry: Mapping[str, Any], height: int, width: int, mended: Counter[str]) -> dict[str, Any]:
    """Return an annotation with id, category_id, bbox, area, iscrowd and segmentation (or None).

    Raises:
        ValueError: neither its box nor its mask can be used; says why.
    """
    box, crowd = entry.get("bbox"), entry.get("iscrowd")
    crowd = 0 if crowd is None else crowd
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd is {ascii(crowd)[:40]}, not 0 or 1")
    segmentation = _check_mask(entry.get("segmentation"), height, width, mended)
    if box in (None, []):
        if segmentation is None:
            raise ValueError("neither a box nor a mask that can be used")
        x1, y1, x2, y2 = masks.measure(segmentation, height, width)[1]
        box = [x1, y1, x2 - x1, y2 - y1]
        mended["a box from the mask, as there was none"] += 1
    _check_box(box, height, width, mended)
    area: Any = entry.get("area")
    if type(area) not in (int, float) or not 0 <= area <= (height + 1) * (width + 1):
        fault = "there was none" if area is None else "its own is not one within its image"
        area = masks.measure(segmentation, height, width)[0] if segmentation else _measure_box(box, height, width)
        mended[f"an area from the mask or box, as {fault}"] += 1
    if segmentation is None:
        mended["no mask that can be used: it counts for boxes alone"] += 1
    return {"id": entry.get("id"), "category_id": entry["category_id"], "bbox": box, "area": area,
            "iscrowd": int(crowd), "segmentation": segmentation}  # fmt: skip


def _check_box(box: Any, height: int, width: int, mended: Counter[str]) -> None:
    """Raise ValueError unless a box x, y, w, h is four finite numbers with an extent within the image."""
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        raise ValueError("a box that is not four numbers")
    if not all(abs(number) < FAR for number in box):
        raise ValueError(f"a box with a number that is not finite: {str(box)[:80]}")
    x, y, w, h = box
    if w <= 0 or h <= 0:
        raise ValueError(f"a box without extent: {box}")
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        raise ValueError(f"a box beyond the image of {width} x {height}: {box}")
    if x < 0 or y < 0 or x + w > width + 1 or y + h > height + 1:
        mended["a box that reaches beyond its image; training cuts it"] += 1


def _measure_box(box: list[float], height: int, width: int) -> float:
    """Return the area of the part of a box that lies within its image."""
    x, y, w, h = box
    return (min(x + w, width) - max(x, 0)) * (min(y + h, height) - max(y, 0))


def _check_mask(segmentation: Any, height: int, width: int, mended: Counter[str]) -> Any:
    """Return a segmentation that can be used, without the polygons that cannot; None if no pixel is left."""
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, list):
        kept = []
        for polygon in segmentation:
            try:
                masks.check([polygon], height, width)
                kept.append(polygon)
            except ValueError as e:
                mended[f"a part of a mask left out: {e}"] += 1
        segmentation = kept
    else:
        try:
            masks.check(segmentation, height, width)
        except (ValueError, TypeError) as e:
            mended[f"a mask left out: {e}".split(" of size ")[0].split(" add up ")[0]] += 1
            return None
    if not segmentation:
        return None
    if not masks.measure(segmentation, height, width)[0]:
        mended["a mask left out: it has no pixel in its image"] += 1
        return None
    return segmentation
