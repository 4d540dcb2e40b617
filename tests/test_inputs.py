"""Files that a config names are told apart by their content, wherever they lie."""

import json
import os
from pathlib import Path

import pytest

from nml_jax import inputs
from nml_jax.assembly import agreement
from nml_jax.data import sources
from nml_jax.settings import expand_sweep
from tests.scenes import digits_experiment


def write_dataset(folder: Path, records: int) -> Path:
    """Write what tells prepared datasets apart, with files that only have the right names."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"splits": {"train": {"records": records}}}))
    (folder / "x-train.array_record-00000-of-00001").write_bytes(bytes(8))
    return folder


def test_a_folder_is_described_by_its_manifest_and_the_sizes_of_its_records(tmp_path: Path):
    one, copy, other = (write_dataset(tmp_path / name, n) for name, n in (("one", 200), ("copy", 200), ("other", 180)))
    (copy / "supervision").mkdir()  # an index that a run has kept
    (copy / "supervision" / "train.npy").write_bytes(b"x")
    os.utime(copy / "manifest.json", (0, 0))
    assert inputs.describe_content(one) == inputs.describe_content(copy)
    assert inputs.describe_content(one) != inputs.describe_content(other)
    (copy / "x-train.array_record-00000-of-00001").write_bytes(bytes(7))  # cut off on its way
    assert inputs.describe_content(one) != inputs.describe_content(copy)


def test_a_large_file_is_described_by_its_size_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inputs, "LARGE", 2**21)
    paths = [tmp_path / name for name in "abc"]
    for path, end in zip(paths, (b"x", b"x", b"y"), strict=True):
        path.write_bytes(bytes(2**21) + end)
    os.utime(paths[1], (0, 0))  # copies have times of their own
    one, copy, other = map(inputs.describe_content, paths)
    assert one == copy != other
    assert inputs.describe_content(tmp_path / "gone") == "nothing"


def test_what_a_job_reads(tmp_path: Path):
    (tmp_path / "noise.npy").write_bytes(b"x")
    config = digits_experiment.config(**{"noise_file": str(tmp_path / "noise.npy"), "runtime.threads": 3})
    sources.load("digits", "", "train")
    found = agreement.collect_inputs(config, expand_sweep(config, digits_experiment.PINNED), ["tune"])
    assert found["config.seed"] == "0"
    assert found["--force"] == "tune"
    assert found[str(tmp_path / "noise.npy")].startswith("1 bytes (SHA-256 ")
    assert found["digits, split train"].split(" (")[0].endswith(" records")
    assert "config.runtime.threads" not in found
    assert "config.runtime.save_every" in found
    assert agreement.collect_training(12)["number of steps"] == "12"
