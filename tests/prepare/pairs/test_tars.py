import io
import json
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from nml_jax.errors import UserError
from nml_jax.prepare import image_files
from nml_jax.prepare.__main__ import main
from nml_jax.prepare.pairs import shards, tars
from tests.prepare.pairs.sources import build, captions, keys, pair, picture, stored, tar


def test_tars_of_img2dataset(tmp_path):
    src = tmp_path / "src"
    tar(src / "00000.tar", pair("000000001", 1, "one") + pair("000000000", 0, " zero\n"))
    tar(src / "00001.tar", pair("000010000", 2, "two", captions=["first", "second"]))
    pq.write_table(pa.table({"url": ["x"]}), src / "00000.parquet")  # what img2dataset writes beside the tars
    (src / "00000_stats.json").write_text("{}")
    manifest, refused = build(src, tmp_path / "new" / "out")
    out = tmp_path / "new" / "out"
    assert refused == []
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert keys(out) == ["00000.tar/000000001", "00000.tar/000000000", "00001.tar/000010000"]  # the source's order
    assert captions(out) == [["one"], ["zero"], ["first", "second"]]
    assert manifest["splits"]["train"] == {"records": 3, "captions": 4, "sha256": manifest["splits"]["train"]["sha256"]}
    read = stored(out)
    assert [r["image"] for r in read] == [picture(i, "JPEG") for i in (1, 0, 2)]
    assert [r["key"].decode() for r in read] == keys(out)
    assert "label" not in read[0]
    info = tfds.builder_from_directory(out).info
    assert info.disable_shuffling
    assert info.splits["train"].shard_lengths == [2, 1]
    assert "tensorflow" not in sys.modules


def test_every_suffix_and_any_order_of_members(tmp_path):
    """Check members of a key that are not neighbours, lie in folders, or have further dots in their names."""
    images = {"a/1.JPEG": picture(1, "JPEG"), "b.v2.png": picture(2), "c.webp": picture(3, "WEBP")}
    names = [("a/1.txt", b"x"), ("./b.v2.txt", "\ufeffé".encode()), ("c.txt", b"z")]
    extra = [("d.cls", b"3"), (".hidden.png", b"?"), ("__MACOSX/._c.png", b"?"), ("readme", b"hello")]
    tar(tmp_path / "x.tar", [*images.items(), *extra, *names])
    _, refused = build(tmp_path / "x.tar", tmp_path / "out")
    assert refused == []
    assert keys(tmp_path / "out") == ["x.tar/a/1", "x.tar/b.v2", "x.tar/c"]
    assert captions(tmp_path / "out") == [["x"], ["é"], ["z"]]


def test_bad_pairs_of_a_tar_are_refused_with_reasons(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 100)
    image = picture(0)
    members = [
        *pair("good", 0, "good"),
        ("no caption.png", image),
        ("no image.txt", b"x"),
        *[("empty.png", image), ("empty.txt", b" \n")],
        *[("long.png", image), ("long.txt", b"x" * 10_000)],
        *[("longest.png", image), ("longest.txt", b"x" * 5000)],
        *[("latin.png", image), ("latin.txt", b"caf\xe9")],
        *[("nul.png", image), ("nul.txt", b"a\0b")],
        *[("bomb.png", picture(0, size=(11, 10))), ("bomb.txt", b"x")],
        *[("text.png", b"no image"), ("text.txt", b"x")],
        *[("half.png", image[:-20]), ("half.txt", b"x")],
        *[("nothing.png", b""), ("nothing.txt", b"x")],
        *[("link.png", None), ("link.txt", b"x")],
        *[("json.png", image), ("json.json", b"{"), ("json.txt", b"x")],
        *[("list.png", image), ("list.json", b"[]"), ("list.txt", b"x")],
        *[("null.png", image), ("null.json", {"caption": None})],
        *[("number.png", image), ("number.json", {"captions": [3]}), ("number.txt", b"x")],
        *[("half a pair.png", image), ("half a pair.json", {"captions": ["\ud800", "good", ""]})],
        *[("\udcff.png", image), ("\udcff.txt", b"x")],
        *pair("good", 1, "again"),
        ("good.png", image),
    ]
    src = tar(tmp_path / "x.tar", members)
    assert main(["image_text", str(src), str(tmp_path / "out"), "--workers=1"]) == 0
    said = capsys.readouterr().out
    assert "train: 3 images with 3 captions" in said
    assert "refused pairs: 18, listed in" in said
    assert "refused captions of pairs that were kept: 2, listed in" in said
    assert said.count("  1 x caption is not UTF-8") == 2  # of a pair, and of one that was kept
    assert keys(tmp_path / "out") == [f"x.tar/{key}" for key in ("good", "longest", "half a pair")]
    assert captions(tmp_path / "out") == [["good"], ["x" * 5000], ["good"]]
    lines = [json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text("utf-8").splitlines()]
    assert {line["file"] for line in lines} == {"x.tar"}
    refused = [(line["key"], line["reason"].split(":")[0]) for line in lines]
    assert sorted(refused) == sorted(
        [
            ("no caption", "no caption"),
            ("no image", "no image with this key"),
            ("empty", "empty caption"),
            ("long", "caption longer than 5000 characters"),
            ("latin", "caption is not UTF-8"),
            ("nul", "caption with a NUL character"),
            ("bomb", "more than 0.0001 megapixels"),
            ("text", "not an image"),
            ("half", "truncated or damaged"),
            ("nothing", "empty"),
            ("link", "a link or device, no file"),
            ("json", "KEY.json is not JSON"),
            ("list", "KEY.json is not a JSON object"),
            ("null", "no caption"),
            ("number", "caption is not text"),
            ("half a pair", "caption is not UTF-8"),
            ("half a pair", "empty caption"),
            ("\\xff", "the key is not UTF-8"),
            ("good", "another member with this key came before"),
            ("good", "another member with this key came before"),
        ]
    )
    assert [line["reason"] for line in lines if line["what"] == "caption"] == ["caption is not UTF-8", "empty caption"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["refused_captions"] == {"caption is not UTF-8": 1, "empty caption": 1}
    assert manifest["refused"]["empty caption"] == 1
    assert sum(manifest["refused"].values()) + 3 == PAIRS


PAIRS = 19 + 2  # keys, and two members whose key came before


def test_a_pair_is_refused_for_one_reason(tmp_path):
    """Count bad captions and a bad image of one pair once: records and refused pairs sum to all pairs."""
    bad = [("0.png", b"no image"), ("0.json", {"captions": ["", "\ud800", "fine"]})]
    worse = [("1.png", b"no image"), ("1.json", {"captions": ["", "\ud800"]})]
    manifest, refused = build(tar(tmp_path / "x.tar", [*bad, *worse, *pair("2", 2)]), tmp_path / "out")
    assert [(key, reason) for _, key, reason in refused] == [("0", "not an image"), ("1", "empty caption")]
    assert manifest["refused_captions"] == {}


def test_a_tar_cut_anywhere_keeps_what_came_before(tmp_path):
    members = pair("0", 0, "zero") + pair("1", 1, "one")
    first, both = (
        len(tar(tmp_path / "x.tar", some).read_bytes().rstrip(b"\0")) // 512 * 512 + 512
        for some in (members[:3], members)
    )
    for i, end in enumerate(at + extra for at in range(512, both + 1, 512) for extra in (0, 100)):
        src = tar(tmp_path / f"{i}" / "x.tar", members, cut=end)
        try:
            _, refused = build(src, tmp_path / f"{i}" / "out")
            kept = captions(tmp_path / f"{i}" / "out")
        except UserError as e:
            refused, kept = [("x.tar", "", e.cause)], []
        whole = (end >= first) + (end >= both)
        assert kept in (WHOLE[:whole], WHOLE[: whole + 1])  # the JSON alone may hold the caption
        assert any(word in reason for _, _, reason in refused for word in ("cut", "no tar file", "no image")), refused


WHOLE = [["zero"], ["one"]]


def test_data_after_the_end_of_a_tar_is_reported(tmp_path):
    src = tar(tmp_path / "x.tar", pair("0", 0))
    src.write_bytes(src.read_bytes() + tar(tmp_path / "y.tar", pair("1", 1)).read_bytes())
    assert build(src, tmp_path / "out")[1] == [("x.tar", "", "more data behind the end of the tar is not read")]
    src.write_bytes(src.read_bytes()[:5000].rstrip(b"\0") + b"\0" * 512)
    assert len(build(src, tmp_path / "out2")[1]) == 1


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_links_and_sparse_members(tmp_path, kind):
    long = "é" * 90 + "/" + "x" * 150
    with tarfile.open(tmp_path / "x.tar", "w", format=kind, pax_headers={"comment": "ü"}) as file:
        for name, content in ((f"{long}.png", picture(0)), (f"{long}.txt", b"x"), ("h.png", None), ("h.txt", b"x")):
            info = tarfile.TarInfo(name)
            info.mtime = 1.5  # a fraction does not fit into the plain header
            info.size = len(content or b"")
            if content is None:
                info.type, info.linkname = tarfile.LNKTYPE, f"{long}.png"
            file.addfile(info, io.BytesIO(content) if content else None)
    assert build(tmp_path / "x.tar", tmp_path / "out")[1] == [("x.tar", "h", "a link or device, no file")]
    assert keys(tmp_path / "out") == [f"x.tar/{long}"]


def test_large_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MAX_BYTES", 1000)
    large = b"x" * 1001
    members = [*pair("0", 0), ("1.png", large), ("1.txt", b"x"), ("2.png", picture(2)), ("2.txt", large)]
    _, refused = build(tar(tmp_path / "x.tar", members), tmp_path / "out")
    assert refused == [("x.tar", key, "more than 512 MiB") for key in "12"]


def test_no_usable_pair_names_the_suffixes(tmp_path):
    members = [("a.left.gif", picture(0)), ("a.txt", b"x"), ("b.GIF", picture(0)), ("readme", b"x")]
    with pytest.raises(UserError) as e:
        build(tar(tmp_path / "x.tar", members), tmp_path / "out")
    assert e.value.cause == (
        "the sources have no usable pair (x.tar); the first of 1 refused is x.tar a: no image with this key; "
        "suffixes in x.tar: .gif (2), .txt (1), no suffix (1)"
    )
    assert e.value.cure == (
        "give images (.jpg, .jpeg, .png, .webp) and captions (.txt, .json) under the same key; "
        "a key is the member's name up to its last dot, as in KEY.jpg and KEY.txt"
    )


@pytest.mark.parametrize(
    "caption",
    ["&nbsp;", "&amp;nbsp; ", "\ufeff", "\x07\x1f", "\u200b\u2060", "\u00ad", "&shy;&#8203;", "\u2800", "\0"],
)
def test_captions_that_show_nothing_are_empty(caption):
    assert shards.check_caption(caption) == ("", "empty caption")
    assert shards.check_caption(caption.encode()) == ("", "empty caption")
    assert shards.check_caption("\u200ba&nbsp;b") == ("\u200ba&nbsp;b", "")
