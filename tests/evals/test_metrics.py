import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from nml_jax.errors import UserError
from nml_jax.evals import metrics

# True class by predicted class: class 2 is never predicted, class 3 has no example but one prediction.
BY_HAND = np.array([[3, 1, 0, 0], [0, 2, 0, 1], [2, 0, 0, 0], [0, 0, 0, 0]])


def test_scores_by_hand():
    assert metrics.accuracy(BY_HAND) == pytest.approx(5 / 9)
    assert metrics.mean_per_class(BY_HAND) == pytest.approx((3 / 4 + 2 / 3 + 0) / 3)
    assert metrics.macro_f1(BY_HAND) == pytest.approx((6 / (4 + 5) + 4 / (3 + 3) + 0 / (2 + 0) + 0 / (0 + 1)) / 4)


def test_confusion_by_hand():
    labels, predictions = [0, 1, 1, 2], [0, 2, 1, 0]
    np.testing.assert_array_equal(metrics.confusion(labels, predictions, 3), [[1, 0, 0], [0, 1, 1], [1, 0, 0]])


def test_classes_without_examples_or_predictions_change_nothing():
    more = np.zeros((6, 6), int)
    more[:4, :4] = BY_HAND
    for score in (metrics.accuracy, metrics.mean_per_class, metrics.macro_f1):
        assert score(more) == score(BY_HAND)


@pytest.mark.parametrize("classes", [2, 5, 40])  # with 40 classes, some of the 60 examples' classes are missing
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_scores_are_those_of_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    labels, predictions = rng.integers(0, classes, (2, 60))
    predictions[:30] = labels[:30]
    counts = metrics.confusion(labels, predictions, classes)
    assert metrics.accuracy(counts) == pytest.approx(accuracy_score(labels, predictions), rel=1e-12)
    assert metrics.macro_f1(counts) == pytest.approx(f1_score(labels, predictions, average="macro"), rel=1e-12)
    assert metrics.mean_per_class(counts) == pytest.approx(balanced_accuracy_score(labels, predictions), rel=1e-12)


@pytest.mark.parametrize("score", [metrics.accuracy, metrics.macro_f1, metrics.mean_per_class])
def test_an_empty_split_is_an_error(score):
    with pytest.raises(UserError, match="empty"):
        score(metrics.confusion([], [], 3))
