"""Test that feature banks give back what was written, under its key."""

import json

import numpy as np
import pytest

from nml_jax.data.features import banks
from nml_jax.errors import UserError


def blocks(n: int, size: int, dim: int = 3):
    for start in range(0, n, size):
        ids = np.arange(start, min(start + size, n), dtype=np.int32)
        features = (ids[:, None, None] + np.arange(dim) / 10).astype(np.float32)
        yield {"features": features, "label": ids % 2, "id": ids}


def write(folder, n=10, size=4, key="k"):
    return banks.write(folder, blocks(n, size), key=key, num_classes=2, class_names=("a", "b"))


def test_rows_come_back_in_order_over_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(banks, "SHARD_ROWS", 3)
    bank = write(tmp_path / "bank")
    assert [shard["rows"] for shard in bank.index["shards"]] == [3, 3, 3, 1]
    assert len(bank) == 10
    np.testing.assert_array_equal(bank.read("id"), np.arange(10))
    np.testing.assert_array_equal(bank.read("features")[:, 0, 0], np.arange(10, dtype=np.float32))
    assert bank.index["layers"] == {"features": [1, 3]}


def test_a_bank_with_another_key_counts_as_none(tmp_path):
    folder = tmp_path / "bank"
    assert banks.find(folder, "k") is None
    write(folder)
    assert banks.find(folder, "other") is None
    assert banks.find(folder, "k") is not None
    write(folder, n=2, key="other")
    assert len(banks.Bank(folder)) == 2


def test_a_thousand_flipped_bits_are_each_refused_by_name(tmp_path):
    folder = tmp_path / "bank"
    write(folder)
    rng, files = np.random.default_rng(0), sorted(folder.iterdir())
    for path in (files[i] for i in rng.integers(0, len(files), 1000)):
        sound = path.read_bytes()
        flipped = bytearray(sound)
        flipped[rng.integers(len(sound))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=path.name):
            banks.Bank(folder).read("features")
        path.write_bytes(sound)
    banks.Bank(folder).read("features")


@pytest.mark.parametrize("damage", ["gone", "truncated", "index"])
def test_a_damaged_bank_is_refused(tmp_path, damage: str):
    folder = tmp_path / "bank"
    write(folder)
    shard = folder / "00000.safetensors"
    if damage == "gone":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        (folder / "index.json").unlink()
    with pytest.raises(UserError):
        banks.Bank(folder).read("features")


def test_values_that_are_not_finite_are_refused_on_both_sides(tmp_path):
    bad = {"features": np.full((2, 1, 3), np.nan, np.float32), "label": np.zeros(2, np.int32), "id": np.arange(7, 9)}
    with pytest.raises(UserError, match="record 7"):
        banks.write(tmp_path / "bank", [bad], key="k", num_classes=2, class_names=("a", "b"))
    assert not (tmp_path / "bank").exists()
    bank = write(tmp_path / "bank")
    import hashlib

    import safetensors.numpy

    data = safetensors.numpy.save({**bad, "id": bad["id"].astype(np.int32)})
    (bank.folder / "00000.safetensors").write_bytes(data)
    index = bank.index | {
        "shards": [{"file": "00000.safetensors", "rows": 2, "sha256": hashlib.sha256(data).hexdigest()}]
    }
    index["sha256"] = banks._hash_index(index)
    (bank.folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="row 0"):
        banks.Bank(bank.folder).read("features")


def test_no_rows_is_an_error_and_leaves_what_was_there(tmp_path):
    write(tmp_path / "bank")
    with pytest.raises(UserError, match="no records"):
        write(tmp_path / "bank", n=0)
    assert len(banks.Bank(tmp_path / "bank")) == 10


@pytest.mark.parametrize("name", ["00000.safetensors", "index.json"])
def test_a_folder_in_place_of_a_file_is_refused(tmp_path, name):
    write(tmp_path / "bank")
    (tmp_path / "bank" / name).unlink()
    (tmp_path / "bank" / name).mkdir()
    with pytest.raises(UserError, match=f"{name}"):
        banks.Bank(tmp_path / "bank").read("features")


def test_a_bank_is_copied_only_with_its_key(tmp_path):
    write(tmp_path / "bank")
    write(tmp_path / "a" / "copy", n=2, key="other")
    assert not banks.copy(tmp_path / "bank", tmp_path / "a" / "copy", "other")
    assert not banks.copy(tmp_path / "nothing", tmp_path / "a" / "copy", "k")
    assert banks.copy(tmp_path / "bank", tmp_path / "a" / "copy", "k")
    assert banks.Bank(tmp_path / "a" / "copy").index == banks.Bank(tmp_path / "bank").index
    np.testing.assert_array_equal(banks.Bank(tmp_path / "a" / "copy").read("id"), np.arange(10))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["copy"]
