"""Test records that cannot be decoded: their replacements in training, and the errors of evaluation."""

import io
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nml_jax.data import sources
from nml_jax.data.sources.noisy import NoisyLabels, SwappedCaptions
from nml_jax.data.sources.source import Arrays, Mixture, Source
from nml_jax.data.stratify import split_validation
from nml_jax.data.stream import order, pipeline
from nml_jax.data.stream.quarantine import Quarantine
from nml_jax.data.stream.reading import Reading
from nml_jax.errors import UserError
from nml_jax.noise import CaptionSwap
from nml_jax.prepare import image_folder, records

BROKEN = {2, 3, 11, 20}
N, BATCH = 21, 8


def config(**values):
    plain = {
        "crop": "pad", "pad": 2, "flip": 0.5, "randaugment": 0, "erase": 0.0, "repeats": 1,
        "interpolation": "bilinear", "antialias": True, "resize": "shortest", "test_size": None, "test_crop": 1.0,
    }  # fmt: skip
    return SimpleNamespace(**plain | values)


def png(i):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def source(broken=frozenset(BROKEN), n=N, keys=None):
    """Make a source. Among the broken records, some are cut, some are not images, and one is not an image array."""
    damage = (lambda i: png(i)[:60], lambda i: b"", lambda i: b"no image", lambda i: np.zeros((8, 8, 2), np.uint8))
    images = [damage[i % 4](i) if i in broken else png(i) for i in range(n)]
    return Arrays(images, np.arange(n) % 3, keys=keys, num_classes=3, fingerprint="toy")


def reading(augment=None, **how):
    return Reading(augment or config(), 8, (0.5,) * 3, (0.5,) * 3, **how)


def train(data, steps, batch=BATCH, seed=0, tokenize=None, weights=(), start_step=0, **how):
    """Return the first batches, with `quarantined` as one more key."""
    drawn = {"seed": seed, "tokenize": tokenize, "weights": weights, "start_step": start_step}
    stream = pipeline.train(data, reading(**how), batch=batch, **drawn)
    batches = [portion.batch | {"quarantined": portion.quarantined} for portion in itertools.islice(stream, steps)]
    stream.close()
    return batches


def whole(batches):
    return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


def test_others_replace_them_and_the_rest_stays_the_same():
    intact, damaged = whole(train(source(set()), 30)), whole(train(source(), 30))
    hit = np.isin(intact["id"], list(BROKEN))
    assert 0.1 < hit.mean() < 0.3
    np.testing.assert_array_equal(damaged["quarantined"], np.where(hit, intact["id"], -1))
    assert_same({k: v[~hit] for k, v in damaged.items()}, {k: v[~hit] for k, v in intact.items()})
    assert not np.isin(damaged["id"], list(BROKEN)).any()
    np.testing.assert_array_equal(damaged["label"], damaged["id"] % 3)
    plain = whole(train(source(), 30, augment=config(crop="none", flip=0.0)))
    np.testing.assert_array_equal(plain["id"], damaged["id"])
    pixels = {i: np.asarray(Image.open(io.BytesIO(png(i)))) for i in set(plain["id"].tolist())}
    np.testing.assert_array_equal(plain["image"], np.stack([pixels[i] for i in plain["id"].tolist()]))


def test_replacements_are_drawn_evenly_at_every_position():
    rows = whole(train(source(n=6, broken={0, 4}), 300, batch=6))  # an epoch a batch
    drawn = rows["id"][rows["quarantined"] >= 0]
    assert len(drawn) == 600
    counts = np.bincount(drawn, minlength=6)
    assert counts[[0, 4]].sum() == 0
    assert abs(counts[[1, 2, 3, 5]] - 150).max() < 4.5 * np.sqrt(600 * 0.25 * 0.75)
    seeds = [tuple(whole(train(source(), 6, seed=s))["id"].tolist()) for s in range(4)]
    assert len(set(seeds)) == 4


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_same_for_any_number_of_processes_and_threads(processes, repeats):
    augment = config(repeats=repeats)
    expected = train(source(), 9, augment=augment)
    assert (whole(expected)["quarantined"] >= 0).sum() > 5
    for threads in (0, 1, 3, 8):
        where = {"blocks": processes, "threads": threads, "augment": augment}
        parts = [train(source(), 9, block=i, **where) for i in range(processes)]
        for got, *rows in zip(expected, *parts, strict=True):
            assert_same(whole(rows), got)


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_same_wherever_a_run_resumes(repeats):
    augment = config(repeats=repeats)
    expected = train(source(), 9, augment=augment)
    for start in range(9):
        resumed = train(source(), 9 - start, augment=augment, start_step=start)
        for got, one in zip(resumed, expected[start:], strict=True):
            assert_same(got, one)


def test_copies_of_repeated_augmentation_share_their_replacement():
    rows = whole(train(source(), 18, augment=config(repeats=3, pad=4)))
    ids, quarantined = rows["id"].reshape(-1, 3), rows["quarantined"].reshape(-1, 3)
    assert (ids == ids[:, :1]).all()
    assert (quarantined == quarantined[:, :1]).all()
    images = rows["image"].reshape(-1, 3, 8 * 8 * 3)[quarantined[:, 0] >= 0]
    assert len(images) > 5
    assert (images[:, 0] != images[:, 1]).any(1).mean() > 0.8


@pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
def test_replacements_come_from_the_same_part_of_a_mixture(weights):
    mixed = Mixture([source({0, 5}), source({1, 2, 3}, n=5)])
    rows = whole(train(mixed, 40, weights=weights))
    hit = rows["quarantined"] >= 0
    assert set(rows["quarantined"][hit].tolist()) == {0, 5, N + 1, N + 2, N + 3}
    np.testing.assert_array_equal(rows["quarantined"][hit] < N, rows["id"][hit] < N)
    assert set(rows["id"][rows["quarantined"] >= N].tolist()) == {N, N + 4}


def test_noise_stays_with_the_id():
    clean = source()
    rows = whole(train(NoisyLabels(clean, (clean.labels + 1) % 3), 9))
    np.testing.assert_array_equal(rows["label_clean"], rows["id"] % 3)
    np.testing.assert_array_equal(rows["label"], (rows["id"] + 1) % 3)


class Captioned(Source):
    """A source whose captions begin with the record's number. Some records are broken, one has broken captions."""

    def __init__(self):
        super().__init__(captions=Captions(), fingerprint="toy")

    def image(self, i):
        return b"?" if i in BROKEN else png(i)


class Captions:
    def __len__(self):
        return N

    def __getitem__(self, i):
        return [f"{i} {j}" for j in range(3)] if i != 7 else [b"\xff".decode()]


def tokenize(texts):
    return np.array([[int(word) for word in text.split()] for text in texts], np.int32)


def test_captions_are_those_of_the_replacement_and_may_be_broken_too():
    rows = whole(train(Captioned(), 12, tokenize=tokenize))
    np.testing.assert_array_equal(rows["text"][:, 0], rows["id"])
    assert set(rows["text"][:, 1].tolist()) == {0, 1, 2}
    assert set(rows["quarantined"].tolist()) == {-1, 7, *BROKEN}
    assert pipeline.find_reason(Captioned(), 7).startswith("7: its captions are damaged: 'utf-8' codec can't decode")

    swap = CaptionSwap(n=N, rate=0.5, seed=0)
    rows = whole(train(SwappedCaptions(Captioned(), swap), 12, tokenize=tokenize))
    np.testing.assert_array_equal(rows["text"][:, 0], [swap(i) for i in rows["id"].tolist()])
    assert 7 not in rows["text"][:, 0]


@pytest.mark.parametrize("broken", [{0, 1, 2, 3}, {0, 1, 2}])
def test_where_nothing_can_stand_in(broken):
    mixed = Mixture([source(broken, n=4, keys=list("abcd")), source(set(), keys=list("x" * N))])
    if len(broken) < 4:
        rows = whole(train(mixed, 10, threads=0))
        assert set(rows["id"][rows["quarantined"] >= 0].tolist()) == {3}
        return
    for threads in (0, 2):
        with pytest.raises(UserError, match=r"record [abcd] cannot be decoded, nor can any of 100 drawn") as e:
            train(mixed, 10, threads=threads)
        assert "again" in e.value.cure


def test_records_that_decode_draw_no_replacement(monkeypatch):
    monkeypatch.setattr(order, "draw_replacement", lambda *args: lambda *args: (1 / 0 for _ in range(1)))
    train(source(set()), 3)
    with pytest.raises(ZeroDivisionError):
        train(source(), 3, threads=0)


def test_reasons_are_one_line_with_the_key():
    data = source(keys=[f"train/{i}\n.png" for i in range(N)])
    reasons = {i: pipeline.find_reason(data, i) for i in (*sorted(BROKEN), 0)}
    assert reasons[2] == "train/2 .png: not an image"
    assert reasons[3] == "train/3 .png: an array of uint8 (8, 8, 2) is not uint8 [H, W, 1 | 3 | 4]"
    assert reasons[20].startswith("train/20 .png: truncated or damaged: ")
    assert reasons[0] == "train/0 .png: decoded when it was read again"
    assert pipeline.find_reason(source(), 11).startswith("11: ")
    assert all("\n" not in line for line in reasons.values())


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize(("keys", "name"), [(None, "2"), ([f"a/{i}.png" for i in range(N)], "a/2.png")])
def test_evaluation_refuses_and_names_the_record(threads, keys, name):
    with pytest.raises(UserError, match=f"^record {name} cannot be decoded: not an image\n") as e:
        list(pipeline.evaluate(source(keys=keys), reading(threads=threads), batch=BATCH))
    assert "leaves none out" in e.value.cure


# From a prepared directory


@pytest.fixture
def folder(tmp_path):
    """Prepare a directory with 36 images in 3 shards."""
    for i in range(36):
        path = tmp_path / "src" / "train" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "RECORDS_PER_SHARD", 12)
        image_folder.build_image_folder(tmp_path / "src", tmp_path / "out")
    return tmp_path / "out"


def open_folder(folder):
    return sources.load("directory", str(folder), "train")


def shard(folder, number) -> Path:
    (path,) = folder.glob(f"*.array_record-{number:05}*")
    return path


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_damaged_chunks_and_shards_of_array_record(folder):
    intact = whole(train(open_folder(folder), 18))
    names = list(open_folder(folder).keys)
    broken = {names.index("train/a/04.png"), names.index("train/b/35.png")}
    for i in broken:
        path = shard(folder, i // 12)
        flip(path, path.read_bytes().find(names[i].encode()))
    end = shard(folder, 1)
    flip(end, len(end.read_bytes()) - 65536)  # its footer
    broken |= set(range(12, 24))
    expected = train(open_folder(folder), 18)
    rows = whole(expected)
    np.testing.assert_array_equal(rows["quarantined"], np.where(np.isin(intact["id"], list(broken)), intact["id"], -1))
    assert not np.isin(rows["id"], list(broken)).any()
    same = rows["quarantined"] < 0
    assert_same({k: v[same] for k, v in rows.items()}, {k: v[same] for k, v in intact.items()})
    for threads, processes in ((0, 1), (8, 1), (8, 2)):  # on one source, whose readers have failed before
        data = open_folder(folder)
        for _ in range(2):
            parts = [train(data, 18, threads=threads, block=i, blocks=processes) for i in range(processes)]
            for got, *pieces in zip(expected, *parts, strict=True):
                assert_same(whole(pieces), got)
    assert pipeline.find_reason(data, min(broken)).startswith(f"{names[min(broken)]}: damaged in storage: Corrupted")


def test_noise_selection_and_validation_lie_over_a_damaged_directory(folder):
    clean = open_folder(folder)
    path = shard(folder, 0)
    flip(path, path.read_bytes().find(clean.keys[4].encode()))
    clean, _ = split_validation(open_folder(folder), 0.2)
    noisy = NoisyLabels(clean, 1 - clean.labels)
    rows = whole(train(noisy, 18))
    (i,) = set(rows["quarantined"].tolist()) - {-1}
    assert pipeline.find_reason(noisy, i).startswith("train/a/08.png: damaged in storage")
    np.testing.assert_array_equal(rows["label"], 1 - clean.labels[rows["id"]])


def test_a_shard_that_is_gone_stops_the_run(folder):
    """Another process may still see the shard, so replacements could differ between processes."""
    shard(folder, 1).unlink()
    with pytest.raises(UserError, match=r"cannot be read: open\(\) failed: No such file"):
        train(open_folder(folder), 9)


# The file of a run


def test_undecodable_records_are_on_record_once_with_the_reason(tmp_path, capsys):
    keys = tuple(f"images/{i}.png" for i in range(N))
    add = Quarantine(tmp_path, source(keys=keys), 1.0)
    add([3, 2, 3])
    add([2])
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["id"], line["reason"].split(":")[0]) for line in lines] == [(3, "images/3.png"), (2, "images/2.png")]
    assert capsys.readouterr().err.count("record replaced by another: images/") == 2
    again = Quarantine(tmp_path, source(keys=keys), 1.0)  # a restart
    again([2, 11])
    assert [json.loads(x)["id"] for x in (tmp_path / "quarantine.jsonl").read_text().splitlines()] == [3, 2, 11]


def test_above_the_budget_the_run_stops(tmp_path):
    add = Quarantine(tmp_path, source(), 2 / N)
    add([2, 3])
    with pytest.raises(UserError, match=rf"3 of {N} training records cannot be decoded.*runtime.quarantine=0.0952"):
        add([11])
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 3
    Quarantine(tmp_path / "other", source(), 0.0, active=False)([2])  # one is always allowed
    assert not (tmp_path / "other").exists()


def test_a_restart_with_too_small_a_budget_stops_at_the_next_one(tmp_path):
    Quarantine(tmp_path, source(), 1.0)([2, 3])
    with pytest.raises(UserError, match="3 of"):
        Quarantine(tmp_path, source(), 0.0)([11])
