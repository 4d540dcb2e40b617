"""Labels from a file are aligned with the records that are trained on, or refused in words that fit."""

from pathlib import Path

import numpy as np
import pytest

from configs import digits
from nml_jax import noise, settings
from nml_jax.assembly import noisy_data
from nml_jax.data import sources
from nml_jax.errors import MissingInput, UserError


def make(path: Path | str, **overrides):
    """Return a run of human labels from a file."""
    config = digits.get_config()
    with config.unlocked():
        config.update_from_flattened_dict(
            {"noise_kind": "labels", "noise_file": str(path), "data.classes": (), "data.num_classes": None} | overrides
        )
    return next(iter(settings.expand_sweep(config).values()))


@pytest.fixture
def whole() -> np.ndarray:
    """Return labels for all training digits: every tenth is that of the next class."""
    labels = sources.load("digits", "", "train").labels.astype(np.int64)
    labels[::10] = (labels[::10] + 1) % 10
    return labels


def test_labels_of_the_whole_split_are_aligned_and_that_is_said(tmp_path: Path, whole: np.ndarray, capsys):
    np.save(tmp_path / "all.npy", whole)
    config = make(tmp_path / "all.npy")
    train, _ = noisy_data.load_splits(config)
    noisy, ledger = noisy_data.corrupt(config, train)
    np.testing.assert_array_equal(noisy, whole[train.indices])
    assert (ledger.asked, ledger.n) == (None, len(train))
    assert ledger.count == (whole != sources.load("digits", "", "train").labels)[train.indices].sum() > 0
    assert f"its {len(whole):,} labels are taken for those of the split before" in capsys.readouterr().err
    np.save(tmp_path / "own.npy", noisy)  # labels of the training records alone mean the same
    np.testing.assert_array_equal(noisy_data.corrupt(make(tmp_path / "own.npy"), train)[0], noisy)
    assert "are taken for" not in capsys.readouterr().err


def test_a_label_that_is_no_class_is_named_by_its_place_in_the_file(tmp_path: Path, whole: np.ndarray):
    config = make(tmp_path / "all.npy")
    np.save(tmp_path / "all.npy", whole)
    train, _ = noisy_data.load_splits(config)
    place = train.indices[5]
    whole[place] = 77
    np.save(tmp_path / "all.npy", whole)
    with pytest.raises(UserError, match=rf"all\.npy: label {place} \(from 0\) is 77, not in 0 to 9"):
        noisy_data.corrupt(config, train)


def test_labels_of_the_split_before_classes_were_selected(tmp_path: Path, whole: np.ndarray):
    clean = sources.load("digits", "", "train").labels
    shifted = np.where(clean == 3, 7, clean)
    np.save(tmp_path / "all.npy", shifted)
    config = make(tmp_path / "all.npy", **{"data.classes": (7, 3, 1)})
    train, _ = noisy_data.load_splits(config)
    noisy, _ = noisy_data.corrupt(config, train)
    np.testing.assert_array_equal(noisy, np.where(train.labels == 1, 0, train.labels))  # 3 is class 1, 7 is class 0
    np.save(tmp_path / "all.npy", np.where(clean == 3, 2, clean))
    with pytest.raises(UserError, match=r"has a label 2, a class that data\.classes leaves out"):
        noisy_data.corrupt(config, train)


def test_a_wrong_number_of_labels_names_all_that_would_do(tmp_path: Path, whole: np.ndarray):
    np.save(tmp_path / "few.npy", whole[:-1])
    config = make(tmp_path / "few.npy")
    train, _ = noisy_data.load_splits(config)
    with pytest.raises(UserError) as e:
        noisy_data.corrupt(config, train)
    n = len(whole)
    assert f"has {n - 1:,} labels, but {len(train):,} or {n:,} are needed" in e.value.cause
    assert "validation" in e.value.cause


@pytest.mark.parametrize(
    ("name", "data", "cause"),
    [
        ("h.safetensors", b"\x10\0\0\0\0\0\0\0{}", "it is a .safetensors file"),
        ("h.npz", b"PK\x03\x04", "it is a zip archive"),
        ("h.pkl", b"\x80\x04\x95", "it is a pickle"),
        ("h.npy", b"", "it is empty"),
        ("h.npy", b"1 2 3", "it does not begin as one"),
        ("h.npy", b"\x93NUMPY\x01", "is not a .npy array"),
    ],
)
def test_a_file_of_another_type_is_called_by_its_name(tmp_path: Path, name: str, data: bytes, cause: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as e:
        noisy_data.count_records(make(tmp_path / name))
    assert cause in e.value.cause
    assert "pickled" not in e.value.cause


def test_a_noise_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match="noise_kind=labels needs noise_file"):
        noisy_data.check_noise_file(make(""))
    with pytest.raises(MissingInput, match="is not a file"):
        noisy_data.count_records(make(tmp_path / "none.npy"))


def test_the_kinds_that_fix_their_rate_are_those_that_take_none():
    assert {kind for kind in noise.KINDS if "rate" not in noise.list_arguments(kind)} == {*settings.FIXED_RATE}


def test_a_noise_file_with_a_damaged_header_is_refused(tmp_path: Path, whole: np.ndarray):
    np.save(tmp_path / "all.npy", whole)
    data = (tmp_path / "all.npy").read_bytes()
    (tmp_path / "all.npy").write_bytes(data.replace(b"}", b"{"))
    config = make(tmp_path / "all.npy")
    with pytest.raises(UserError, match="header is damaged"):
        noisy_data.corrupt(config, noisy_data.load_splits(config)[0])
