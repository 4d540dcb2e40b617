"""`find_label_errors` finds the wrong labels that were laid on, and no others."""

import csv
import io

import numpy as np
import pytest

import nml_jax
from nml_jax.noise.mixture import count_pairs, fit_mixture
from nml_jax.spreadsheet import restore_cell
from nml_jax.tuning import probes
from nml_jax.tuning.label_errors import CS, compute_interval, widen_interval

N, D, K = 300, 6, 3


def clouds(gap: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw K clouds that a linear probe can tell apart."""
    y = np.arange(N) % K
    return (np.random.default_rng(0).normal(size=(N, D)) + gap * np.eye(K, D)[y]).astype(np.float32), y


@pytest.fixture(scope="module")
def found():
    """Return the clean labels, the noisy ones, and what is found: a tenth is wrong, always one class further."""
    X, y = clouds()
    given = nml_jax.corrupt_labels(y, num_classes=K, seed=0, kind="pair", rate=0.1)
    names = np.array(["=ant", "bee", "cat"])
    return y, given, nml_jax.find_label_errors(X, names[given], ids=[f"row {i}" for i in range(N)])


def test_the_suspects_are_the_wrong_labels(found):
    y, given, errors = found
    rows = np.array([suspect.row for suspect in errors.suspects])
    wrong = np.flatnonzero(y != given)
    assert len(np.intersect1d(rows, wrong)) >= 29  # of 30
    assert len(np.setdiff1d(rows, wrong)) <= 1
    assert [errors.classes[y[row]] for row in rows if y[row] != given[row]] == [
        suspect.likely for suspect in errors.suspects if y[suspect.row] != given[suspect.row]
    ]
    confidences = [suspect.confidence for suspect in errors.suspects]
    assert confidences == sorted(confidences, reverse=True)
    assert 0.5 < min(confidences) <= max(confidences) <= 1
    assert errors.suspects[0].id == f"row {errors.suspects[0].row}"


def test_the_share_and_the_joint_matrix_are_those_of_the_noise(found):
    y, given, errors = found
    assert errors.share == pytest.approx(0.1, abs=0.01)
    assert errors.interval[0] < 0.1 < errors.interval[1]
    truth = np.zeros((K, K))
    np.add.at(truth, (given, y), 1 / N)
    np.testing.assert_allclose(errors.joint, truth, atol=0.01)
    assert errors.joint.sum() == pytest.approx(1)
    assert np.trace(errors.joint) == pytest.approx(1 - errors.share)
    assert str(errors).startswith(f"{len(errors.suspects)} of 300 labels are suspects; about 10.")


def test_the_csv_has_a_line_for_each_suspect_and_no_formula(found, tmp_path):
    errors = found[2]
    errors.save(tmp_path / "suspects.csv")
    head, *lines = csv.reader(io.StringIO((tmp_path / "suspects.csv").read_text()))
    assert head == ["row", "id", "given_label", "likely_label", "confidence"]
    assert [int(line[0]) for line in lines] == [suspect.row for suspect in errors.suspects]
    assert {line[2] for line in lines} == {"'=ant", "bee", "cat"}
    assert [restore_cell(line[3]) for line in lines] == [suspect.likely for suspect in errors.suspects]
    with pytest.raises(ValueError, match="cannot"):
        errors.save(tmp_path)


def test_right_labels_are_left_alone():
    errors = nml_jax.find_label_errors(*clouds())
    assert errors.suspects == ()
    assert errors.share < 0.005
    assert errors.interval[0] == 0
    assert "it is not shown that some are wrong: at most " in str(errors)


def test_hard_rows_are_not_taken_for_wrong_labels():
    """Clouds that overlap so much that an eighth of the rows is nearer to another centre: no label is wrong."""
    X, y = clouds(2.0)
    nearest = X[:, :K].argmax(1)
    assert (nearest != y).mean() > 0.12
    errors = nml_jax.find_label_errors(X, y)
    assert errors.share < 0.06
    assert errors.interval[0] == 0
    assert len(errors.suspects) < 0.3 * (nearest != y).sum()


def test_rows_of_tiny_classes_are_not_judged():
    X, y = clouds()
    y = y + 1
    y[:2] = 0
    errors = nml_jax.find_label_errors(X, y)
    assert np.flatnonzero(~errors.judged).tolist() == [0, 1]
    assert not {0, 1} & {suspect.row for suspect in errors.suspects}
    assert errors.classes.tolist() == [0, 1, 2, 3]
    assert not errors.joint[0].any()
    assert "2 rows are not judged" in str(errors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.arange(N)}, "fewer than two classes have 5 rows"),
        ({"ids": [1, 2]}, "2 ids for 300 rows"),
        ({"folds": 1}, "folds=1"),
        ({"F": np.full((N, D), np.nan, np.float32)}, "row"),
    ],
)
def test_what_cannot_be_judged_is_refused(change, message):
    X, y = clouds()
    arguments = {"F": X, "y": y, **change}
    with pytest.raises(ValueError, match=message):
        nml_jax.find_label_errors(arguments.pop("F"), arguments.pop("y"), **arguments)


def test_the_mixture_recovers_its_own_parameters():
    """Draw true classes from q, labels from T, and give the logits of q times a temperature."""
    rng, n, tau = np.random.default_rng(0), 20_000, 3.0
    z = 4 * rng.normal(size=(n, K))
    q = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    T = np.array([[0.8, 0.2, 0.0], [0.0, 0.9, 0.1], [0.05, 0.05, 0.9]])
    y = (q.cumsum(1) < rng.random((n, 1))).sum(1)
    g = (T[y].cumsum(1) < rng.random((n, 1))).sum(1)
    mixture = fit_mixture(tau * z, g)
    np.testing.assert_allclose(mixture.transition, T, atol=0.02)
    assert mixture.temperature == pytest.approx(tau, rel=0.1)
    exact = q * T[:, g].T
    np.testing.assert_allclose(mixture.posterior, exact / exact.sum(1, keepdims=True), atol=0.12)


def test_pairs_are_counted_by_hand():
    posterior = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    np.testing.assert_allclose(count_pairs(posterior, np.array([0, 1, 0])), [[1.4, 0.2], [0.6, 0.8]])


def test_the_interval_is_wilsons_and_widens():
    error = (0.1 * 0.9 / 100) ** 0.5
    bounds = compute_interval(0.1, error, 100)
    assert bounds == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert compute_interval(0.1, error, 400) == pytest.approx(bounds)  # 300 of 400 rows say nothing
    assert compute_interval(0.0, 0.001, 100)[0] == 0
    assert widen_interval(bounds, 0.0, 0.0) == pytest.approx(bounds)
    half = np.hypot((0.1744 - 0.0552) / 2, 0.05)
    assert widen_interval(bounds, 0.05, 0.2) == pytest.approx((0.1148 - half - 0.02, 0.1148 + half), abs=1e-4)
    assert widen_interval(bounds, 0.0, 0.9)[0] == 0


def test_the_error_of_the_share_is_that_of_sure_rows_or_wider():
    """Of rows that are certain, the share has the error of a count; of rows that are hard, a larger one."""
    g = (np.arange(1000) % 10 == 0).astype(int)
    sure, hard = np.zeros((1000, 2)), np.random.default_rng(0).normal(size=(1000, 2))
    sure[:, 0] = 50.0
    assert fit_mixture(sure, g).error == pytest.approx((0.1 * 0.9 / 1000) ** 0.5, rel=0.1)
    drawn = (np.random.default_rng(1).random(1000) < 1 / (1 + np.exp(hard[:, 0] - hard[:, 1]))).astype(int)
    assert fit_mixture(hard, np.where(g == 1, 1 - drawn, drawn)).error > 0.02


def test_rows_of_a_group_are_judged_by_other_groups():
    """Every row is there five times with its label: by its copies each label is right, by others a tenth is wrong."""
    rng = np.random.default_rng(0)
    y = np.arange(80) % K
    X = rng.normal(size=(80, 60)) + 5.0 * np.eye(K, 60)[y]  # more features than rows: a probe can learn rows by heart
    given = nml_jax.corrupt_labels(y, num_classes=K, seed=0, kind="pair", rate=0.1)
    X, given, groups = np.repeat(X, 5, axis=0), np.repeat(given, 5), np.repeat([f"g{i}" for i in range(80)], 5)
    wrong = np.repeat(y, 5) != given
    shares = []
    for own in (None, groups):
        errors = nml_jax.find_label_errors(X, given, groups=own)
        shares.append(errors.wrong[wrong].mean())
    assert shares[0] < 0.3 < shares[1]
    for bad, cause in ((groups[:-1], "for 400 rows"), (["a"] * 400, "all rows are one group")):
        with pytest.raises(ValueError, match=cause):
            nml_jax.find_label_errors(X, given, groups=bad)
    with pytest.raises(ValueError, match="fewer than two classes have 5 groups"):
        nml_jax.find_label_errors(X, given, groups=given)


def test_the_probes_that_choose_the_penalty_also_predict(monkeypatch):
    """On 300 rows all five folds choose; then five probes are fitted without the suspects, and none besides."""
    fit, grids = probes.fit_lbfgs, []

    def count(X, y, cs, **how):
        grids.append(tuple(cs))
        return fit(X, y, cs, **how)

    monkeypatch.setattr(probes, "fit_lbfgs", count)
    nml_jax.find_label_errors(*clouds())
    assert grids[:5] == [CS] * 5
    assert len(grids) == 10
    assert {len(grid) for grid in grids[5:]} == {1}
