"""Write sources of image-text pairs, and build datasets from them."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from nml_jax.data.sources import texts
from nml_jax.prepare.pairs import build as image_text

ROOT = Path(__file__).parents[3]


def picture(seed, kind="PNG", size=(6, 5)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out := io.BytesIO(), kind)
    return out.getvalue()


def tar(path, members, cut=0):
    """Write a tar of (name, content) members. Content None makes a symbolic link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                file.addfile(info)
            else:
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    path.write_bytes(out.getvalue()[:cut] if cut else out.getvalue())
    return path


def pair(key, seed, caption="a caption", **fields):
    """Return the members that img2dataset writes for a pair."""
    about = {"caption": caption, "url": "http://x", "key": key, "status": "success", **fields}
    return [(f"{key}.jpg", picture(seed, "JPEG")), (f"{key}.json", about), (f"{key}.txt", caption.encode())]


def build(src, out, **options):
    """Build with one worker. Return the manifest and the refusals: [(file, key, reason)]."""
    options = {"workers": 1} | options
    manifest = image_text.build_image_text([src] if isinstance(src, Path) else src, out, **options)
    assert json.loads((out / "manifest.json").read_text("utf-8")) == manifest
    lines = [json.loads(line) for line in (out / "refused.jsonl").read_text("utf-8").splitlines()]
    for kind, what in (("refused", "pair"), ("refused_captions", "caption"), ("refused_files", "file")):
        assert sum(manifest[kind].values()) == sum(line["what"] == what for line in lines)
    check_sums(manifest)
    return manifest, [(line["file"], line["key"], line["reason"]) for line in lines]


def check_sums(manifest):
    """Check that accepted, refused and left-out pairs, captions and lines are all that there are."""
    seen, splits = manifest["seen"], manifest["splits"].values()
    assert sum(split["records"] for split in splits) + sum(manifest["refused"].values()) == seen["pairs"]
    kept = sum(split["captions"] for split in splits) + sum(manifest["refused_captions"].values())
    assert kept + seen["captions_of_refused"] == seen["captions"]
    if lines := seen.get("lines"):
        kinds = ("rows", "refused", "continued", "blank", "header")
        assert sum(lines[kind] for kind in kinds) == lines["lines"]


def keys(out, split="train"):
    return list(texts.Texts(out / "supervision" / f"{split}.keys"))


def captions(out, split="train"):
    return [texts.split(text) for text in texts.Texts(out / "supervision" / f"{split}.captions")]


def stored(out, split="train"):
    builder = tfds.builder_from_directory(out)
    return list(builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}))


def contents(out):
    return {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def write_csv(path, rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as f:
        csv.writer(f, delimiter=delimiter).writerows(rows)
    return path


def write_table(folder, rows, header=("image", "caption", "label")):
    """Write a table, and the images that it names."""
    for row in rows:
        (folder / row[0]).write_bytes(picture(1))
    return write_csv(folder / "x.csv", [header, *rows])


def many(src, n=6, large=b""):
    """Write tars with three good pairs each, one that is good or large, and one that is refused."""
    for i in range(n):
        members = [m for j in range(3) for m in pair(f"{i}{j}", 10 * i + j, f"{i} {j}")]
        tar(src / f"{i}.tar", [*members, (f"{i}x.png", large or picture(i)), (f"{i}x.txt", b"x"), ("y.png", b"")])
    return src
