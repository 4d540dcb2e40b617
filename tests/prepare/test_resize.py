import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nml_jax.data import sources
from nml_jax.data.images import codec
from nml_jax.prepare import image_folder
from nml_jax.prepare.__main__ import main
from nml_jax.prepare.pairs import build as image_text
from tests.prepare.test_image_folder import GOOD, fill, open_split

SHARED = Path(__file__).parents[3] / "shared" / "data"


def smooth(height, width, seed=0):
    """Return pixels whose colours change slowly, so that they survive JPEG compression."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels, kind="JPEG", orientation=1):
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(out, kind, exif=exif, **{"quality": 95} if kind == "JPEG" else {})
    return out.getvalue()


PHOTOS = {
    "0 wide.jpg": (encode(smooth(60, 90)), (40, 60)),
    "1 tall.png": (encode(smooth(100, 50), "PNG"), (80, 40)),
    "2 turned.jpg": (encode(smooth(60, 90), orientation=6), (60, 40)),
    "3 exact.jpg": (encode(smooth(40, 300)), None),
    "4 small.png": (encode(smooth(9, 8), "PNG"), None),
    "5 small turned.jpg": (encode(smooth(30, 20), orientation=8), None),
    "6 odd.bmp": (encode(smooth(41, 97), "BMP"), (40, 95)),
}


def expect_shrunk(records):
    for (name, (content, shape)), record in zip(PHOTOS.items(), records, strict=True):
        if shape is None:
            assert record["image"] == content, name
            continue
        assert record["image"][:3] == b"\xff\xd8\xff"
        pixels = codec.decode(record["image"])
        assert pixels.shape[:2] == shape, name
        expected = Image.fromarray(codec.decode(content)).resize(shape[::-1], Image.Resampling.BOX)
        assert np.abs(pixels.astype(int) - np.asarray(expected)).mean() < 3, name


def test_images_larger_than_asked_are_shrunk(tmp_path, capsys):
    src = fill(tmp_path / "src", {f"train/a/{name}": content for name, (content, _) in PHOTOS.items()})
    fill(src, {"test/a/1.png": PHOTOS["4 small.png"][0]})
    for resize in (None, 40, 50, 400):
        out = tmp_path / f"out{resize}"
        flags = [] if resize is None else [f"--resize={resize}"]
        assert main(["image_folder", str(src), str(out), *flags]) == 0
    expect_shrunk(open_split(tmp_path / "out40", "train"))
    assert [r["image"] for r in open_split(tmp_path / "out400", "train")] == [c for c, _ in PHOTOS.values()]
    manifests = {o.name: json.loads((o / "manifest.json").read_text("utf-8")) for o in tmp_path.glob("out*")}
    how = {"format": "JPEG", "quality": 95, "subsampling": "4:2:0", "interpolation": "area"}
    assert manifests["out40"]["resized"] == {"shorter_side": 40, **how, "images": {"test": 0, "train": 4}}
    assert manifests["out400"]["resized"]["images"] == {"test": 0, "train": 0}
    assert "resized" not in manifests["outNone"]
    assert len({open_split(tmp_path / name, "train").fingerprint for name in manifests}) == 4
    assert len({open_split(tmp_path / name, "test").fingerprint for name in manifests}) == 4


def test_shrunk_images_are_as_small_as_they_say(tmp_path):
    """Read 4:2:0 and quality 95 from the file itself, and check that no EXIF block would turn it again."""
    image_folder.build_image_folder(
        fill(tmp_path / "src", {"train/a/1.jpg": PHOTOS["2 turned.jpg"][0]}), tmp_path / "out", resize=40
    )
    with Image.open(io.BytesIO(open_split(tmp_path / "out", "train")[0]["image"])) as image:
        assert not image.getexif()
        assert image.layer[0][1:3] == (2, 2)
        tables = image.quantization
    reference = Image.open(io.BytesIO(encode(smooth(9, 9))))
    assert tables == reference.quantization


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("beam", [None, "--runner=DirectRunner"])
def test_pairs_larger_than_asked_are_shrunk(tmp_path, beam):
    if beam:
        pytest.importorskip("apache_beam", reason="Apache Beam is not installed; it needs an environment of its own")
    src = fill(tmp_path / "src", {f"train/{name}": content for name, (content, _) in PHOTOS.items()})
    rows = "".join(f"{name},of {name}\n" for name in PHOTOS)
    fill(src, {"train/pairs.csv": f"image,caption\n{rows}".encode()})
    how = {"workers": 1, "beam": beam}
    manifests = {n: image_text.build_image_text([src], tmp_path / f"out{n}", resize=n, **how) for n in (None, 40, 50)}
    source = sources.load("directory", str(tmp_path / "out40"), "train", captions=True)
    expect_shrunk(source)
    assert source.captions[3] == ["of 3 exact.jpg"]
    assert manifests[40]["resized"]["images"] == {"train": 4}
    assert (manifests[40]["resized"]["shorter_side"], manifests[50]["resized"]["shorter_side"]) == (40, 50)
    assert "resized" not in manifests[None]
    assert len({manifest["splits"]["train"]["sha256"] for manifest in manifests.values()}) == 3


def test_a_side_of_zero_is_refused(tmp_path, capsys):
    src = fill(tmp_path / "src", GOOD)
    for kind in ("image_folder", "image_text"):
        assert main([kind, str(src), str(tmp_path / "out"), "--resize=0"]) == 2
        assert "--resize must be at least 1, got 0" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            main([kind, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert "Costs: random crops come from fewer pixels" in said
        assert "8 % of 500 x 375 is 122 pixels wide" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")
def test_real_photos(tmp_path):
    command = [sys.executable, str(SHARED / "unpack.py"), str(tmp_path), "flowers5", "pacs", "--limit", "3"]
    subprocess.run(command, check=True, capture_output=True)
    for name, split, n, classes in (("flowers5", "train", 15, 5), ("pacs", "photo", 21, 7)):
        manifest = image_folder.build_image_folder(tmp_path / name, tmp_path / f"{name}.out")
        assert manifest["refused"] == [{"file": "labels.txt", "reason": image_folder.STRAY}]
        source = open_split(tmp_path / f"{name}.out", split)
        assert (len(source), source.num_classes) == (n, classes)
        for record, key in zip(source, source.keys, strict=True):
            assert record["image"] == (tmp_path / name / key).read_bytes()
            assert codec.decode(record["image"]).shape == (64, 64, 3)
            assert source.class_names[record["label"]] == Path(key).parts[1]
