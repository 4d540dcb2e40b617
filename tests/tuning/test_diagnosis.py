"""`diagnose` gives the known answer on simple features."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from nml_jax import spectrum
from nml_jax.data.stratify import split_rows
from nml_jax.errors import UserError
from nml_jax.tuning import diagnosis
from nml_jax.tuning.diagnosis import NAMES, Diagnosis, compute_interval, diagnose, diagnose_checked, measure_features

N, D = 600, 4  # and two classes, so that all tests share one compiled program


def easy(n=N):
    """Draw two classes that a linear probe separates without an error."""
    y = np.arange(n) % 2
    return (np.random.default_rng(0).normal(size=(n, D)) + 20 * np.eye(2, D)[y]).astype(np.float32), y


def crossed():
    """Draw two classes by the product of two signs (exclusive or), which no linear probe can separate."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-1, 1], (N, 2))
    X = 0.2 * rng.normal(size=(N, D))
    X[:, :2] += signs
    return X.astype(np.float32), np.where(signs.prod(1) > 0, "same", "different")


def test_no_difference_is_shown_if_the_probe_is_perfect():
    F, y = easy()
    found = diagnose(F, y)
    assert np.mean(found.probe) == 1.0
    assert found.verdict.startswith("no difference shown")
    assert found.interval[0] <= found.difference <= 0
    assert (found.n, found.dim, found.num_classes, found.rows, len(found.probe)) == (N, D, 2, N, 5)


def test_nmtune_is_better_if_an_mlp_is_needed():
    found = diagnose(*crossed())
    assert np.mean(found.probe) < 0.65
    assert found.difference > 0.2
    assert found.interval[0] > 0
    assert found.verdict.startswith("NMTune as released is better")


def test_the_text_has_every_number():
    found = Diagnosis(dict.fromkeys(NAMES, 0.25), (0.5, 0.75), (0.75, 1.0), (0.125, 0.375), 1200, 16, 3, 400, 3)
    text = str(found)
    for words in ("1,200 rows × 16 features, 3 classes", "2-fold", "400 rows", "62.50 %", "87.50 %", "+25.00 points",
                  "+12.50 to +37.50", "NMTune as released is better", *NAMES.values()):  # fmt: skip
        assert words in text
    assert "400 rows of 2 classes" in str(dataclasses.replace(found, classes=2))
    worse = Diagnosis({}, (0.5,), (0.4,), (-0.2, -0.01), 1, 1, 2, 1, 2)
    assert worse.verdict.startswith("the tuned linear probe is better")
    assert Diagnosis({}, (0.5,), (0.4,), (-0.2, 0.0), 1, 1, 2, 1, 2).verdict.startswith("no difference shown")
    assert Diagnosis({}, (0.5,), (0.4,), (-0.1, -0.1), 1, 1, 2, 1, 2).verdict.startswith("no difference shown")
    assert "the probe chose among 6 settings, NMTune had one" in worse.verdict


def test_interval_by_hand():
    """Differences 0, 1, 2 of three folds: mean 1, variance 1, times 1/3 + 1/2; t of two degrees at 97.5 % is 4.3027."""
    half = 4.302652729749464 * np.sqrt(5 / 6)
    assert compute_interval(np.array([0.0, 1.0, 2.0])) == pytest.approx((1 - half, 1 + half), rel=1e-9)
    assert compute_interval(np.full(5, 0.25)) == (0.25, 0.25)
    x = np.random.default_rng(0).normal(size=5)
    low, high = compute_interval(x)
    plain = stats.t.interval(0.95, 4, x.mean(), stats.sem(x))
    # wider because folds share training rows
    assert (high - low) / (plain[1] - plain[0]) == pytest.approx(np.sqrt((1 / 5 + 1 / 4) / (1 / 5)))


def test_measures_are_those_of_the_features():
    F, y = easy()
    found = measure_features(F, y)
    assert set(found) == set(NAMES)
    s = spectrum.singular_values(F)
    for name in ("sve", "lsvr", "top_share", "effective_rank"):
        assert found[name] == pytest.approx(getattr(spectrum, name)(s))
    assert found["stable_rank"] == pytest.approx((s**2).sum() / s[0] ** 2)
    assert found["class_mean_accuracy"] == 1.0
    rotated = F @ np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0]
    assert measure_features(rotated, y) == pytest.approx(found, rel=1e-4)


def test_only_some_rows_are_cross_validated_and_a_class_of_one_row_is_not():
    F, y = easy(2 * N + 1)
    y[0] = 7
    found = diagnose(F, y, rows=N)
    assert (found.n, found.num_classes, found.rows, len(found.probe)) == (2 * N + 1, 3, N, 5)


def test_a_rare_class_does_not_reduce_folds():
    F, y = easy(N + 3)
    y[:3] = 7
    found = diagnose(F, y, rows=N + 3)
    assert (found.num_classes, found.rows, len(found.probe)) == (3, N, 5)


@pytest.mark.parametrize(("classes", "each", "folds"), [(60, 4, 4), (40, 50, 5)])
def test_with_many_classes_only_some_are_compared_so_that_each_has_enough_rows(classes: int, each: int, folds: int):
    """100 rows of all classes would be one or two rows of each, too few to choose a setting by."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(classes), each)
    found = diagnose(rng.normal(size=(classes, D))[y] + 0.01 * rng.normal(size=(len(y), D)), y, rows=100)
    of = 100 // min(each, 2 * folds)
    assert (found.n, found.num_classes, found.classes, found.rows) == (classes * each, classes, of, 100)
    assert len(found.probe) == folds
    assert np.mean(found.probe) > 0.9  # the strongest penalty of the grid would reach a third of that
    assert f"{folds}-fold cross-validation on 100 rows of {of} classes" in str(found)


def test_features_that_cannot_be_cross_validated_are_measured():
    F, y = easy()
    found = diagnose_checked(F, np.arange(N) // 2, folds=5, rows=2000, seed=0)
    why = "cannot be cross-validated: fewer than two classes have 4 rows: nothing can be held out"
    assert found.verdict == why
    assert str(found).endswith(why)
    assert found.measures["sve"] == measure_features(F, y)["sve"]
    assert (found.probe, found.nmtune, found.rows, found.num_classes) == ((), (), 0, N // 2)
    assert np.isnan(found.difference)


def spoil(value):
    F, y = easy()
    F[17, 3] = value
    return F, y


@pytest.mark.parametrize(
    ("F", "y", "cause"),
    [
        (*spoil(np.nan), "row 17"),
        (*spoil(np.inf), "row 17"),
        (easy()[0], easy()[1][:-1], r"\(600, 4\) and labels \(599,\) do not fit"),
        (easy()[0][0], easy()[1], "do not fit"),
        (easy()[0], np.zeros(N), "num_classes=1 is less than 2"),
        (easy()[0], np.arange(N), "fewer than two classes have 4 rows"),
        (easy()[0][:4], [0, 0, 1, 2], "fewer than two classes have 4 rows"),
        (np.zeros((0, 4)), np.zeros(0), "0 sample"),
        (np.zeros((N, 4)), easy()[1], "F: every feature is constant"),
        (np.ones((N, 4)), easy()[1], "F: every feature is constant"),
        (np.where(np.arange(N)[:, None] == 17, 1e300, np.float64(easy()[0])), easy()[1], "row 17"),
        (np.full((N, 4), "a", object), easy()[1], "could not convert string to float: 'a'; give features"),
        ([[1, 2], [3]], [0, 1], "; give features"),
        (easy()[0] * 1j, easy()[1], "[Cc]omplex data not supported; give features"),
        (easy()[0], [None, "a"] * (N // 2), "Unknown label type"),
        (easy()[0], [None] * N, "Unknown label type"),
        (easy()[0], np.where(easy()[1], np.nan, 1), "Input y contains NaN"),
        (easy()[0], np.random.default_rng(0).normal(size=N), "continuous"),
        (easy()[0], easy()[1] * 1j, "Unknown label type|Complex data not supported"),
        (easy()[0], np.eye(2)[easy()[1]], "do not fit"),
    ],
)
def test_degenerate_input(F, y, cause):
    with pytest.raises(ValueError, match=cause) as e:
        diagnose(F, y)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "value"), [("folds", 1), ("folds", -3), ("folds", 2.5), ("folds", None), ("rows", 0), ("rows", 19)]
)
def test_invalid_arguments(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}; give an integer"):
        diagnose(*easy(), **{name: value})


def test_folds_keep_groups_together():
    y, groups = np.repeat(np.arange(30) % 3, 4), np.repeat(np.arange(30), 4)
    for train, test in split_rows(y, 5, 0, groups):
        assert set(groups[train]).isdisjoint(groups[test])
        assert len(np.unique(y[train])) == 3
        assert len(test)
    with pytest.raises(UserError, match="leave some class without rows"):
        split_rows(y, 5, 0, np.where(y == 0, 0, groups))  # a class of one group
    folds, part = diagnosis._choose_rows(y, 5, 100, 0, groups)
    assert (folds, len(part)) == (5, 100)


def test_groups_are_diagnosed_by_others():
    """Rows come in fours with a label that says nothing: only their like could tell it."""
    rng = np.random.default_rng(0)
    X, y = np.repeat(rng.normal(size=(40, 50)), 4, axis=0), np.repeat(np.arange(40) % 2, 4)
    free, bound = (diagnose(X, y, folds=2, rows=160, groups=own) for own in (None, np.repeat(range(40), 4)))
    assert np.mean(free.probe) > 0.9
    assert np.mean(bound.probe) < 0.7
