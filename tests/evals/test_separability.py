"""Class separability against values worked out by hand and a plain leave-one-out."""

import numpy as np
import pytest

from nml_jax.errors import UserError
from nml_jax.evals import separability as module
from nml_jax.evals.separability import measure_separability


def blobs(n: int = 60, d: int = 5, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, k, n)
    return rng.standard_normal((k, d))[labels] + rng.standard_normal((n, d)), labels


def plain(F, labels) -> dict[str, float]:
    """Compute both measures by scatter matrices, and by leaving out every row in turn."""
    centre, within, between, right = F.mean(0), 0, 0, 0
    for c in set(labels):
        rows = F[labels == c]
        within = within + (rows - rows.mean(0)).T @ (rows - rows.mean(0))
        between = between + len(rows) * np.outer(rows.mean(0) - centre, rows.mean(0) - centre)
    for i in range(len(F)):
        rest = np.arange(len(F)) != i
        distance = {c: np.linalg.norm(F[i] - F[rest & (labels == c)].mean(0)) for c in set(labels[rest])}
        right += min(distance, key=distance.__getitem__) == labels[i]
    return {"fisher_ratio": np.trace(between) / np.trace(within), "class_mean_accuracy": right / len(F)}


def test_by_hand():
    """Class a at 0 and 2, b at 5 and 9: means 1, 7, all 4. Left out, 5 is 4 from 9 and from 1: a tie."""
    got = measure_separability([[0.0], [2.0], [5.0], [9.0]], ["a", "a", "b", "b"])
    assert got == {"fisher_ratio": pytest.approx(36 / 10), "class_mean_accuracy": 0.75}
    assert measure_separability([[0.0], [2.0], [5.1], [9.0]], ["a", "a", "b", "b"])["class_mean_accuracy"] == 1


@pytest.mark.parametrize("block", [4096, 7])
def test_is_the_plain_leave_one_out(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    F, labels = blobs()
    assert measure_separability(F, labels) == pytest.approx(plain(F, labels))
    assert 0.4 < measure_separability(F, labels)["class_mean_accuracy"] < 0.95
    F32 = F.astype(np.float32)
    assert measure_separability(F32, labels) == pytest.approx(plain(F32.astype(np.float64), labels))


def test_shift_scale_and_rotation_do_not_matter():
    F, labels = blobs()
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    for changed in (F + 1e6, F * 1e-20, F * 1e20, F @ rotation):
        assert measure_separability(changed, labels) == pytest.approx(measure_separability(F, labels), rel=1e-6)


def test_a_row_alone_in_its_class_is_wrong():
    F = np.array([[0.0], [0.1], [0.2], [9.0]])
    assert measure_separability(F, [0, 0, 0, 1])["class_mean_accuracy"] == 0.75
    assert measure_separability(F, [0, 1, 2, 3]) == {
        "fisher_ratio": pytest.approx(1 / module.EPS),
        "class_mean_accuracy": 0,
    }


def test_classes_of_no_extent():
    F, labels = np.repeat([[0.3, 0.1], [1.7, 2.2]], 3, axis=0), np.repeat([0, 1], 3)
    got = measure_separability(F, labels)
    assert got["class_mean_accuracy"] == 1
    assert 1e14 < got["fisher_ratio"] <= 1.01 / module.EPS


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30])
def test_constant_features(value):
    got = measure_separability(np.full((7, 3), value), [0, 1, 1, 0, 2, 1, 1])
    assert got == {"fisher_ratio": 0, "class_mean_accuracy": 0}


@pytest.mark.parametrize(
    ("F", "labels", "message"),
    [
        (np.ones((3, 2)), [1, 1, 1], "all rows are of class"),
        (np.ones((3, 2)), [0, 1], r"features \(3, 2\) and labels \(2,\)"),
        (np.ones(3), [0, 1, 1], r"features \(3,\)"),
        (np.ones((0, 2)), [], r"features \(0, 2\)"),
        (np.array([[1.0], [np.nan]]), [0, 1], "row 1 of"),
        (np.array([[-np.inf], [1.0]]), [0, 1], "row 0 of"),
        (np.array([[None], [1.0]]), [0, 1], "row 0 of"),
    ],
)
def test_bad_calls(F, labels, message):
    with pytest.raises(UserError, match=message):
        measure_separability(F, labels)
