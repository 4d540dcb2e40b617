import io
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.proto import tf_example_pb2

from nml_jax.data import sources
from nml_jax.data.images.codec import Undecodable
from nml_jax.data.sources import prepared
from nml_jax.data.sources.noisy import NoisyLabels, align_by_key
from nml_jax.data.sources.source import Subset, in_memory, select_classes
from nml_jax.data.stratify import split_validation
from nml_jax.errors import UserError
from nml_jax.prepare import image_folder, records


def load(split, kind="directory", path="", **about):
    return sources.load(kind, str(path), split, **about)


def image(value):
    out = io.BytesIO()
    Image.new("RGB", (6, 5), (value % 256, value // 256, 7)).save(out, "PNG")
    return out.getvalue()


def arrays(labels, num_classes=None, **about):
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return in_memory(pixels, labels, num_classes=num_classes or max(labels) + 1, name="toy", **about)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepare a directory with three shards: train has 10 + 7 + 3 images of classes b, d, é; test has 4 of é."""
    root = tmp_path_factory.mktemp("sources")
    n = 0
    for split, name, count in (("train", "b", 10), ("train", "d", 7), ("train", "é", 3), ("test", "é", 4)):
        (root / "src" / split / name).mkdir(parents=True)
        for i in range(count):
            (root / "src" / split / name / f"{i:02}.png").write_bytes(image(n := n + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "RECORDS_PER_SHARD", 7)
        patch.setattr(records, "CHUNK", 5)
        image_folder.build_image_folder(root / "src", root / "out")
    return root / "out"


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """Prepare a dataset like those of TFDS's catalogue: other feature names, no keys, no supervision index."""
    path = tmp_path_factory.mktemp("catalogue")
    (path / "toy_catalogue" / "1.0.0").mkdir(parents=True)
    features = {"picture": tfds.features.Image(), "kind": tfds.features.ClassLabel(num_classes=3)}
    write(
        path / "toy_catalogue" / "1.0.0",
        "toy_catalogue",
        features | {"weight": tfds.features.Scalar(np.float32)},
        {
            "train": [
                {"picture": image(i), "kind": i % 3, "weight": i / 2} for i in (3, 1, 4, 15, 9, 2, 6, 5, 35, 8, 97, 32)
            ],
            "blind": [{"picture": image(i), "kind": -1, "weight": 0.0} for i in range(2)],
        },
    )
    return path


def write(folder, name, features, splits):
    identity = DatasetIdentity(name=name, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name="toy")
    pair = ("picture", "kind") if "kind" in features else None
    features = tfds.features.FeaturesDict(features)
    info = tfds.core.DatasetInfo(builder=identity, features=features, supervised_keys=pair)
    writer = tfds.core.SequentialWriter(info, 5, file_format="array_record")
    writer.initialize_splits(list(splits))
    writer.add_examples(splits)
    writer.close_all()


# Sources in memory and overlays


def test_records():
    source = arrays([2, 0, 1, 2])
    assert len(source) == 4
    assert source.labels.dtype == np.int32
    assert source.class_names == ("0", "1", "2")
    assert source.keys is None
    record = source[3]
    assert (record["label"], record["label_clean"], record["id"]) == (2, 2, 3)
    assert (record["image"] == 3).all()
    assert source[-1]["id"] == 3
    assert [r["id"] for r in source] == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        source[4]


@pytest.mark.parametrize(
    ("labels", "cause"),
    [
        ([0, 3, 1], "record 1 has label 3, outside its 3 classes"),
        ([0, -1, 1], "record 1 has label -1, outside its 3 classes"),
        ([0.0, 1.0, 1.0], "labels are float64"),
        ([[0], [1], [1]], r"of shape \(3, 1\)"),
        ([0, 1], "3 images but 2 labels"),
    ],
)
def test_wrong_labels(labels, cause):
    with pytest.raises(UserError, match=cause):
        in_memory(np.zeros((3, 2, 2, 3), np.uint8), labels, num_classes=3, name="toy")


def test_class_names_are_as_many_as_classes():
    assert arrays([0, 1], class_names=["cat", "dog"]).class_names == ("cat", "dog")
    with pytest.raises(UserError, match="3 class names for 2 classes"):
        arrays([0, 1], class_names=["cat", "dog", "cow"])


def test_subset_counts_ids_from_zero():
    source = Subset(arrays([2, 0, 1, 2]), [3, 1])
    assert [(int(r["image"][0, 0, 0]), r["label"], r["id"]) for r in source] == [(3, 2, 0), (1, 0, 1)]
    assert source.num_classes == 3
    assert len(Subset(source, [])) == 0
    with pytest.raises(IndexError):
        Subset(source, [2])


def test_selected_classes_are_renumbered_in_the_order_given():
    source = select_classes(arrays([2, 0, 1, 2, 1], class_names=["a", "b", "c"]), (2, 1))
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert source.labels_clean.tolist() == [0, 1, 0, 1]
    assert source.class_names == ("c", "b")
    assert [int(r["image"][0, 0, 0]) for r in source] == [0, 2, 3, 4]
    for wrong in ((0, 3), (0, 0), (-1,)):
        with pytest.raises(UserError, match=f"class {wrong[-1]} in data.classes"):
            select_classes(arrays([2, 0, 1]), wrong)


def test_noise_lies_over_the_labels_and_the_clean_ones_stay():
    source = Subset(arrays([2, 0, 1, 2]), [3, 1, 2])
    noisy = NoisyLabels(source, np.array([2, 1, 0]))
    assert [(r["label"], r["label_clean"]) for r in noisy] == [(2, 2), (1, 0), (0, 1)]
    assert noisy.labels.tolist() == [2, 1, 0]
    assert noisy.labels_clean.tolist() == [2, 0, 1]
    assert source.labels.tolist() == [2, 0, 1]
    part = Subset(noisy, [1])
    assert (part[0]["label"], part[0]["label_clean"], part[0]["id"]) == (1, 0, 0)
    for wrong, cause in (([0, 1], "of shape"), ([0, 1, 3], "record 2 has label 3"), ([0.0, 1.0, 2.0], "float64")):
        with pytest.raises(UserError, match=cause):
            NoisyLabels(source, np.array(wrong))


def test_fingerprints_tell_contents_apart():
    base = [2, 0, 1, 2]
    source = arrays(base)
    same = [source, arrays(base), pickle.loads(pickle.dumps(source))]
    other = [
        arrays([2, 0, 1, 1]),
        arrays(base, num_classes=4),
        in_memory(np.zeros((4, 2, 2, 3), np.uint8), base, num_classes=3, name="toy"),
        in_memory(source.images, base, num_classes=3, name="another"),
        arrays(base, class_names=["a", "b", "c"]),
        Subset(source, [0, 1, 2, 3]),
        Subset(source, [1, 0, 2, 3]),
        select_classes(source, (1, 0, 2)),
        NoisyLabels(source, np.array(base)),
        NoisyLabels(source, np.array([2, 0, 1, 0])),
    ]
    assert len({s.fingerprint for s in same}) == 1
    assert len({s.fingerprint for s in [source, *other]}) == len(other) + 1


# Validation


def test_validation_is_stratified_exact_and_disjoint():
    labels = np.repeat([0, 1, 2, 3], [100, 50, 7, 1])[np.random.default_rng(0).permutation(158)]
    source = arrays(labels.tolist())
    train, validation = split_validation(source, 0.2)
    # quotas 20, 10, 1.4, 0.2; the whole is round(31.6) = 32, and the largest remainder is class 2's
    assert np.bincount(validation.labels).tolist() == [20, 10, 2]
    seen = [int(r["image"][0, 0, 0]) for part in (train, validation) for r in part]
    assert sorted(seen) == list(range(158))
    for part in (train, validation):
        assert (np.diff(part.indices) > 0).all()
        assert [r["id"] for r in part] == list(range(len(part)))


def test_validation_never_takes_a_whole_class():
    train, validation = split_validation(arrays([0, 0, 1, 2, 2, 2]), 0.9)
    assert np.bincount(train.labels, minlength=3).tolist() == [1, 1, 1]
    assert np.bincount(validation.labels, minlength=3).tolist() == [1, 0, 2]


def test_validation_depends_on_its_seed_and_never_changes():
    source = arrays([0, 1] * 20)
    for seed in (0, 1):  # the records of each class with the four smallest draws
        draws = np.random.Philox(key=seed).random_raw(40)
        expected = sorted(c + 2 * i for c in (0, 1) for i in np.argsort(draws[c::2])[:4])
        assert split_validation(source, 0.2, seed=seed)[1].indices.tolist() == expected
    assert split_validation(source, 0.2)[1].indices.tolist() == [0, 2, 9, 11, 17, 20, 21, 38]
    assert len(split_validation(source, 0.0)[1]) == 0
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="a validation share of"):
            split_validation(source, share)
    with pytest.raises(UserError, match=r"share of 0\.01 of 40 records is less than one record"):
        split_validation(source, 0.01)


# Digits


def test_digits():
    from sklearn.datasets import load_digits

    train, test = (load(split, "digits") for split in ("train", "test"))
    assert (len(train), len(test)) == (1442, 355)
    assert sorted(map(int, [*train.keys, *test.keys])) == list(range(1797))
    counts = np.bincount(load_digits().target)
    assert np.bincount(test.labels).tolist() == [n // 5 for n in counts]
    for source in (train, test):
        for i in (0, 100, len(source) - 1):
            record, original = source[i], int(source.keys[i])
            assert record["image"].dtype == np.uint8
            assert record["label"] == load_digits().target[original]
            exact = load_digits().images[original] * 255 / 16
            assert np.abs(record["image"] - exact[..., None]).max() <= 0.5
    assert max(train[i]["image"].max() for i in range(20)) == 255


def test_digits_of_some_classes():
    source = load("test", "digits", classes=(5, 6, 7, 8, 9), num_classes=5)
    assert source.class_names == ("5", "6", "7", "8", "9")
    assert set(source.labels) == set(range(5))
    assert source.fingerprint != load("test", "digits").fingerprint


# Prepared directories


def test_directory(folder):
    source = load("train", path=folder)
    assert len(source) == 20
    assert source.class_names == ("b", "d", "é")
    assert source.labels.tolist() == [0] * 10 + [1] * 7 + [2] * 3
    assert [source[i]["image"] for i in range(20)] == [image(i + 1) for i in range(20)]
    assert (source.keys[0], source.keys[19]) == ("train/b/00.png", "train/é/02.png")
    assert load("test", path=folder).num_classes == 3


@pytest.mark.parametrize(
    ("split", "records"),
    [
        ("train[:50%]", [*range(5), *range(10, 14), 17]),  # half of each class
        ("train[50%:]", [*range(5, 10), *range(14, 17), 18, 19]),
        ("train[-20%:]+test", [8, 9, 16, 19, *range(20, 24)]),
        ("train[6:15]", range(6, 15)),
        ("train[-3:]", range(17, 20)),
        ("test+train[13:15]", [20, 21, 22, 23, 13, 14]),
    ],
)
def test_parts_and_sums_of_splits(folder, split, records):
    source = load(split, path=folder)
    assert [r["image"] for r in source] == [image(i + 1) for i in records]
    labels = [0] * 10 + [1] * 7 + [2] * 7
    assert source.labels.tolist() == [labels[i] for i in records]
    whole = [*load("train", path=folder).keys, *(f"test/é/{i:02}.png" for i in range(4))]
    assert list(source.keys) == [whole[i] for i in records]


def test_fingerprint_is_of_the_records_not_of_the_words(folder):
    def of(split):
        return load(split, path=folder).fingerprint

    assert of("train") == of("train[:100%]") == of("train[:20]")
    assert len({of("train"), of("test"), of("train[:19]"), of("train+test")}) == 4


def test_classes_of_a_directory(folder):
    source = load("train", path=folder, classes=(2, 0))
    assert source.class_names == ("é", "b")
    assert [source.keys[0], source.keys[-1]] == ["train/b/00.png", "train/é/02.png"]
    assert source[12]["image"] == image(20)
    with pytest.raises(UserError, match="'test' has no record"):
        load("test", path=folder, classes=(0, 1))


def test_sources_are_picklable_and_shared_by_threads(folder):
    source = pickle.loads(pickle.dumps(load("train", path=folder, classes=(0, 1, 2))))
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda i: source[i % 20]["image"], range(200)))
    assert images == [image(i % 20 + 1) for i in range(200)]


@pytest.mark.parametrize(
    ("split", "cause", "cure"),
    [
        ("val", "no split 'val'", "its splits are test, train"),
        ("train[:5", r"no split 'train\[:5'", "its splits are test, train"),
        ("train[:0%]", "has no record", "a larger part"),
        ("train[-2%:]", "has no record", "a larger part"),
    ],
)
def test_wrong_splits(folder, split, cause, cure):
    with pytest.raises(UserError, match=cause) as e:
        load(split, path=folder)
    assert cure in e.value.cure


def test_wrong_arguments(folder, tmp_path):
    for wrong, cause, cure in (
        ({"kind": "tfrecords"}, "data.source='tfrecords'", "digits, directory, tfds"),
        ({"path": folder, "num_classes": 4}, "data.num_classes=4", "data.num_classes=3"),
        (
            {"path": tmp_path},
            "holds no prepared dataset",
            f"nml_jax.prepare image_folder SRC {tmp_path}",
        ),
        ({"path": tmp_path / "none"}, "holds no prepared dataset", "build it"),
    ):
        with pytest.raises(UserError, match=cause) as e:
            load("train", **wrong)
        assert cure in e.value.cure
        assert "\n" not in e.value.cause + e.value.cure
    with pytest.raises(UserError, match="digits has no split 'val'"):
        load("val", "digits")


def test_a_damaged_directory(folder, tmp_path):
    for name, content, cause in (
        ("dataset_info.json", "{", "is not a readable dataset"),
        ("supervision/train.npy", "x", "train.npy is missing or damaged"),
    ):
        copy = tmp_path / name.split("/")[0]
        shutil.copytree(folder, copy)
        (copy / name).write_text(content)
        with pytest.raises(UserError, match=cause) as e:
            load("train", path=copy)
        assert "build" in e.value.cure


def test_a_damaged_record(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    shard = tmp_path / "copy" / "image_folder-train.array_record-00001"
    data = bytearray(shard.read_bytes())
    data[data.find(b"train/b/08.png")] ^= 1
    shard.write_bytes(data)
    source = load("train", path=tmp_path / "copy")
    for _ in range(2):
        with pytest.raises(Undecodable, match=r"^damaged in storage: Corrupted [^;]* \(record 8 in .*copy\)$"):
            source[8]
        assert [source[i]["image"] for i in (7, 9)] == [image(8), image(10)]  # the reader continues


def test_a_shard_that_was_cut(folder, tmp_path):
    """A shard cut while open still gives the records before the cut. Opened later, it gives none."""
    shutil.copytree(folder, tmp_path / "copy")
    shard = tmp_path / "copy" / "image_folder-train.array_record-00001"
    whole = shard.read_bytes()
    second = whole.find(b"train/b/08.png")
    open_before = load("train", path=tmp_path / "copy")
    assert open_before[13]["image"] == image(14)
    os.truncate(shard, second)
    assert open_before[7]["image"] == image(8)
    for i in range(8, 14):
        with pytest.raises(Undecodable, match=rf"(missing|damaged) in storage: .* \(record {i}"):
            open_before[i]
    source = load("train", path=tmp_path / "copy")
    for i in range(7, 14):
        with pytest.raises(Undecodable, match="damaged in storage: ArrayRecord file should be at least 64KB big"):
            source[i]
    assert [source[i]["image"] for i in (6, 14)] == [image(7), image(15)]


def test_what_the_operating_system_refuses_is_not_the_records_fault(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "image_folder-train.array_record-00001").unlink()
    source = load("train", path=tmp_path / "copy")
    with pytest.raises(UserError, match=r"record 8 cannot be read: open\(\) failed: No such file .*00001") as e:
        source[8]
    assert "repair the storage" in e.value.cure
    assert "\n" not in e.value.cause


@pytest.mark.parametrize("kind", ["other field", "other kind", "no example"])
def test_records_of_another_kind(kind):
    example = tf_example_pb2.Example()
    if kind == "other field":
        example.features.feature["picture"].bytes_list.value.append(image(1))
    elif kind == "other kind":
        example.features.feature["image"].int64_list.value.append(3)
    content = b"abc" if kind == "no example" else example.SerializeToString()
    source = prepared.Records([content], "image", Path("here"), [], labels=[0], num_classes=1, fingerprint="")
    cause = "no tf.train.Example" if kind == "no example" else "no field 'image' of kind bytes_list"
    with pytest.raises(Undecodable, match=rf"{cause}.* \(record 0 in here\)"):
        source[0]


# The catalogue


def test_catalogue_labels_are_read_once_and_kept(catalogue, monkeypatch):
    source = load("train", "tfds", name="toy_catalogue", path=catalogue)
    assert source.num_classes == 3
    assert source.class_names == ("0", "1", "2")
    assert source.keys is None
    values = [3, 1, 4, 15, 9, 2, 6, 5, 35, 8, 97, 32]
    assert [r["image"] for r in source] == [image(v) for v in values]
    assert source.labels.tolist() == [v % 3 for v in values]

    monkeypatch.setattr(prepared, "tqdm", None)  # needed to read labels from records
    again = load("train[2:5]", "tfds", name="toy_catalogue", path=catalogue)
    assert again.labels.tolist() == source.labels[2:5].tolist()
    path = str(catalogue / "toy_catalogue" / "1.0.0")
    assert load("train", path=path).fingerprint == source.fingerprint


def test_a_damaged_record_has_no_label(catalogue, tmp_path):
    shutil.copytree(catalogue, tmp_path / "copy")
    for index in (tmp_path / "copy").rglob("supervision"):
        shutil.rmtree(index)
    (shard,) = (tmp_path / "copy").rglob("*train.array_record-00001*")
    data = bytearray(shard.read_bytes())
    data[data.find(b"kind")] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"record 5 of split train in .* has no label: damaged in storage: Corrupted"):
        load("train", "tfds", name="toy_catalogue", path=tmp_path / "copy")


def test_labels_are_not_kept_where_nothing_can_be_written(catalogue, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared.np, "save", full)
    for part in (catalogue / "toy_catalogue" / "1.0.0" / "supervision").glob("*"):
        part.unlink()
    source = load("train", "tfds", name="toy_catalogue", path=catalogue)
    assert len(source.labels) == 12
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert not list((catalogue / "toy_catalogue" / "1.0.0" / "supervision").iterdir())


def test_a_split_without_labels(catalogue):
    with pytest.raises(UserError, match="record 0 has label -1") as e:
        load("blind", "tfds", name="toy_catalogue", path=catalogue)
    assert "a split without labels cannot be used" in e.value.cure


@pytest.mark.parametrize(
    ("name", "cause", "cure"),
    [
        ("cifar1O", "no dataset 'cifar1O'", "did you mean cifar10"),
        ("cifar10", "'cifar10' is not prepared in", "tfds build cifar10 --file_format=array_record --data_dir="),
        ("cifar10/x", "no dataset 'cifar10/x'", "name it"),
        ("two words", "no dataset 'two words'", "name it"),
        ("coco", "needs TensorFlow", "pip install nml_jax[prepare] && tfds build coco"),
    ],
)
def test_a_dataset_that_is_not_there(tmp_path, name, cause, cure):
    with pytest.raises(UserError, match=cause) as e:
        load("train", "tfds", name=name, path=tmp_path)
    assert cure in e.value.cure
    assert "\n" not in e.value.cause + e.value.cure


def test_a_directory_that_cannot_be_read_at_random(folder, tmp_path):
    info = json.loads((folder / "dataset_info.json").read_text())
    (tmp_path / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    (tmp_path / "features.json").write_text((folder / "features.json").read_text())
    with pytest.raises(UserError, match="holds tfrecord files") as e:
        load("train", path=tmp_path)
    assert "--file_format=array_record" in e.value.cure


def test_a_dataset_without_images_and_labels(tmp_path):
    write(tmp_path, "words", {"text": tfds.features.Text()}, {"train": [{"text": "hello"}]})
    with pytest.raises(UserError, match="does not pair an image with a class label: it has text"):
        load("train", path=tmp_path)


# Labels by key


def test_labels_are_aligned_by_key(folder, tmp_path):
    source = load("train[8:12]", path=folder)
    path = tmp_path / "labels.csv"
    lines = [f"{key},{n % 3}" for n, key in enumerate(source.keys)] + ["train/elsewhere.png,1"]
    for head in ([], ["key,label"]):
        path.write_text("\n".join([*head, *reversed(lines)]), "utf-8")
        labels = align_by_key(path, source)
        assert (labels.tolist(), labels.dtype) == ([0, 1, 2, 0], np.int32)
    for wrong, cause in (
        (lines[1:], "no label for 1 of 4 records, such as 'train/b/08.png'"),
        ([*lines, lines[0]], "1 keys twice"),
        ([*lines[1:], "train/b/08.png,daisy"], "a line 'train/b/08.png,daisy'"),
        ([*lines[1:], "train/b/08.png"], "a line 'train/b/08.png'"),
        ([*lines[1:], "train/b/08.png,7"], "record 0 has label 7"),
        ([*lines[1:], "train/b/08.png,-1"], "a line 'train/b/08.png,-1'"),
    ):
        path.write_text("\n".join(wrong), "utf-8")
        with pytest.raises(UserError, match=cause):
            align_by_key(path, source)
    path.write_bytes(b"train/b/08.png,\xff")
    with pytest.raises(UserError, match="is not a readable"):
        align_by_key(path, source)
    with pytest.raises(UserError, match="the dataset has no keys"):
        align_by_key(path, arrays([0, 1]))


def test_keys_in_another_form_of_unicode_are_found(tmp_path):
    composed, decomposed = "train/caf\u00e9/1.jpg", "train/cafe\u0301/1.jpg"
    other = "train/ant/\u00e4.jpg"
    source, both = arrays([0, 1], 3), arrays([0, 1], 3)
    source.keys, both.keys = [composed, other], [composed, decomposed]
    path = tmp_path / "labels.csv"
    path.write_text(f"{decomposed},2\ntrain/ant/a\u0308.jpg ,1\n", "utf-8")
    assert align_by_key(path, source).tolist() == [2, 1]
    path.write_text(f"{decomposed},2\n{composed},1\n", "utf-8")
    assert align_by_key(path, both).tolist() == [1, 2]  # two records, which a folder of both spellings has
    with pytest.raises(UserError, match=r"has two labels for 'train/café/1.jpg', spelled"):
        align_by_key(path, source)


def test_classes_of_a_mixture_may_be_spelled_in_two_ways():
    one, other = (
        sources.source.in_memory([np.zeros((1, 1, 3), np.uint8)], [0], num_classes=1, class_names=[name], name="x")
        for name in ("caf\u00e9", "cafe\u0301")
    )
    assert len(sources.source.Mixture([one, other])) == 2
