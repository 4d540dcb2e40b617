import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, matthews_corrcoef
from sklearn.metrics import log_loss as sklearn_log_loss

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
    assert metrics.mcc(counts) == pytest.approx(matthews_corrcoef(labels, predictions), abs=1e-12)
    assert ("f1" in metrics.compute_scores(counts)) == (classes == 2)
    if classes == 2:
        assert metrics.f1(counts) == pytest.approx(f1_score(labels, predictions), rel=1e-12)
    else:
        with pytest.raises(UserError, match=f"two classes, and there are {classes}"):
            metrics.f1(counts)


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize(
    ("labels", "predictions"),
    [([0, 1, 1], [1, 1, 1]), ([1, 1, 1], [0, 1, 1]), ([0, 0], [0, 0]), ([1, 1], [1, 1]), ([0, 1], [1, 0])],
)
def test_mcc_and_f1_of_one_class_are_those_of_scikit_learn(labels, predictions):
    """Both are 0 / 0 somewhere here, and 0 then."""
    counts = metrics.confusion(labels, predictions, 2)
    assert metrics.mcc(counts) == pytest.approx(matthews_corrcoef(labels, predictions), abs=1e-12)
    assert metrics.f1(counts) == pytest.approx(f1_score(labels, predictions, zero_division=0), abs=1e-12)


def test_mcc_and_f1_by_hand_of_a_million_rows():
    """TP 900,000, FN 5, FP 90,000, TN 9,995: products of such counts exceed what int64 holds."""
    counts = np.array([[9_995, 90_000], [5, 900_000]])
    rows = 9_995.0 * 900_000 - 5 * 90_000
    assert metrics.mcc(counts) == pytest.approx(rows / np.sqrt(99_995.0 * 900_005 * 990_000 * 10_000), rel=1e-12)
    assert metrics.f1(counts) == pytest.approx(1_800_000 / 1_890_005, rel=1e-12)


@pytest.mark.parametrize("score", [metrics.accuracy, metrics.macro_f1, metrics.mean_per_class, metrics.mcc, metrics.f1])
def test_an_empty_split_is_an_error(score):
    with pytest.raises(UserError, match="empty"):
        score(metrics.confusion([], [], 3))


def draw_answers(classes=4, n=500, seed=0, rare=0.05):
    rng = np.random.default_rng(seed)
    p = np.r_[rare, np.full(classes - 1, (1 - rare) / (classes - 1))]
    labels = rng.choice(classes, n, p=p)
    logits = rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[labels]
    return metrics.Answers(labels, logits.argmax(1), metrics.compute_losses(logits, labels)), logits


def score(metric, answers):
    needed = answers.losses
    if metric.needs == "confusion":
        k = 1 + max(answers.labels.max(), answers.predictions.max())
        needed = metrics.confusion(answers.labels, answers.predictions, k)
    return metric.score(needed)


def test_the_log_loss_is_that_of_scikit_learn():
    answers, logits = draw_answers()
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert metrics.log_loss(answers.losses) == pytest.approx(sklearn_log_loss(answers.labels, odds), rel=1e-12)
    assert metrics.compute_losses(np.array([[1e4, 0]], np.float32), [1]) == pytest.approx([1e4])
    with pytest.raises(UserError, match="empty"):
        metrics.log_loss([])


# Those of numbers: test_correlations.py.
@pytest.mark.parametrize("name", [name for name, of in metrics.METRICS.items() if of.needs != "numbers"])
def test_a_score_is_the_mean_of_its_shares_and_their_spread_that_of_the_bootstrap(name):
    metric, (answers, _) = metrics.METRICS[name], draw_answers(2 if name == "f1" else 4)
    n = len(answers.labels)
    values = metric.share(answers).values
    assert values.mean() == pytest.approx(score(metric, answers), rel=1e-12)
    rng = np.random.default_rng(1)
    drawn = [score(metric, metrics.Answers(*(x[rows] for x in answers))) for rows in rng.integers(0, n, (1000, n))]
    assert values.std(ddof=1) / np.sqrt(n) == pytest.approx(np.std(drawn), rel=0.1)


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "mean_per_class", "mcc", "f1"])
def test_a_flip_is_what_a_right_row_more_adds(name):
    """Test against the score itself, of rows all of which are right but one."""
    metric = metrics.METRICS[name]
    labels = np.repeat([0, 1], [4, 400])
    right = metrics.Answers(labels, labels)
    wrong = metrics.Answers(labels, np.where(np.arange(404) == 403, 0, labels))
    gain = len(labels) * (score(metric, right) - score(metric, wrong))
    flips = metric.share(wrong).flips
    assert flips.max() >= gain * 0.95
    if name == "accuracy":
        np.testing.assert_array_equal(flips, [1])
    if name == "mean_per_class":
        np.testing.assert_allclose(flips, [404 / 8, 404 / 800])


def test_a_constant_answer_has_no_spread_but_its_flips():
    """The coefficient has no derivative there; a row of class 1 that becomes right moves it a lot."""
    labels = np.repeat([0, 1], [70, 30])
    share = metrics.METRICS["mcc"].share(metrics.Answers(labels, np.zeros(100, int)))
    assert not share.values.any()
    one = metrics.mcc(np.array([[70, 0], [29, 1]]))
    other = metrics.mcc(np.array([[69, 1], [30, 0]]))
    np.testing.assert_allclose(share.flips, [100 * abs(other), 100 * one], rtol=1e-12)
    np.testing.assert_array_equal(share.counts, [70, 30])
