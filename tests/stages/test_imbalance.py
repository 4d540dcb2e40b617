"""Imbalanced feature files from end to end: weights of classes, a metric that decides, probabilities, groups."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss, matthews_corrcoef, recall_score

from nml_jax import corrupt_labels, main, suspects
from nml_jax.errors import UserError
from nml_jax.evals.metrics import METRICS, Answers
from nml_jax.reporting.page import show
from nml_jax.reporting.statistics import choose_method, grouping
from nml_jax.reporting.tables import methods
from nml_jax.runs.finished import read_finished
from nml_jax.runs.predictions import read_predictions
from nml_jax.runs.rows import read_rows
from nml_jax.tuning import head_file
from tests.stages.test_features import CLASSES, SMALL, D, experiment, launch

SHARES = (0.8, 0.14, 0.06)
QUICK = {
    "features.group": "patient",
    "stages": ("features", "tune", "report"),
    "tune.methods": ("lbfgs", "linear"),
    "tune.start": "fresh",
}


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw three overlapping classes, two of them rare; five rows each share a group, and their noise."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(rng.choice(3, n // 5, p=SHARES), 5)
    shared = np.repeat(rng.normal(size=(n // 5, D)), 5, axis=0)
    features = 0.9 * shared + 0.3 * rng.normal(size=(n, D)) + 1.5 * np.eye(3, D)[codes]
    return features.astype(np.float32), np.array(CLASSES)[codes]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, n, seed in (("train", 300, 0), ("test", 600, 1), ("far", 400, 2)):
        features, labels = draw(n, seed)
        columns = {f"f{i}": features[:, i] for i in range(D)}
        table = pa.table({**columns, "patient": [f"p{i // 5}" for i in range(n)], "label": labels})
        pyarrow.csv.write_csv(table, folder / f"{name}.csv")
    return folder


def name_files(files: Path) -> dict[str, str]:
    named = (("train", "train"), ("test", "test"), ("ood", "far"))
    return {f"features.{key}": str(files / f"{name}.csv") for key, name in named}


@pytest.fixture(scope="module")
def runs(files: Path, tmp_path_factory) -> Path:
    """Return the folder of three runs with all that this file is about."""
    workdir = tmp_path_factory.mktemp("run") / "features"
    config = experiment.get_config()
    own = {"tune.metric": "mean_per_class", "tune.class_weight": ("balanced",), "tune.calibrate": True,
           "sweep.seed": (0, 1, 2)}  # fmt: skip
    with config.unlocked():
        config.update_from_flattened_dict(SMALL | QUICK | name_files(files) | own)
    main.launch(config, workdir, pinned={})
    return workdir


def test_what_heads_answered_is_on_record(runs: Path):
    rows = {(row.method, row.split, row.metric): row for row in read_rows(runs / "seed=0") if row.stage == "tune"}
    for method in ("lbfgs", "linear"):
        for split in ("test", "far"):
            row = rows[method, split, "accuracy"]
            found = read_predictions(runs / "seed=0", row)
            assert found is not None
            assert found.loss is not None
            answers = Answers(found.label.astype(int), found.answer.astype(int), found.loss)
            for name, metric in METRICS.items():
                if name == "f1" or metric.needs == "numbers":  # of two classes, or of a regression
                    assert (method, split, name) not in rows
                    continue
                own = metric.share(answers).values.mean()
                assert own == pytest.approx(rows[method, split, name].value, abs=1e-6)
            assert row.hyper is not None
            assert row.hyper["temperature"] != 1
            assert rows[method, split, "ece"].value != rows[method, split, "ece_before"].value
            assert found.confidence_before is not None


def test_the_head_file_holds_the_temperature_that_it_was_scored_with(files: Path, runs: Path):
    head = head_file.load(runs / "seed=0" / "heads" / "features" / "lbfgs,seed=0.safetensors")
    X, y = draw(600, 1)
    odds = head.probabilities(head.outputs(X)[1])
    rows = {(row.split, row.metric): row for row in read_rows(runs / "seed=0") if row.method == "lbfgs"}
    assert rows["test", "log_loss"].value == pytest.approx(log_loss(y, odds, labels=CLASSES), abs=1e-5)
    assert head.temperature == rows["test", "accuracy"].hyper["temperature"]
    train = draw(300, 0)
    scale = train[0].mean(0), train[0].std(0)
    own = LogisticRegression(C=rows["test", "accuracy"].hyper["C"], class_weight="balanced", max_iter=5000)
    own.fit((train[0] - scale[0]) / scale[1], train[1])
    agree = own.predict((X - scale[0]) / scale[1]) == np.array(CLASSES)[odds.argmax(1)]
    assert agree.mean() > 0.995
    recall = rows["test", "mean_per_class"].value
    assert recall == pytest.approx(recall_score(y, np.array(CLASSES)[odds.argmax(1)], average="macro"))


def test_the_report_decides_by_the_metric_and_shows_what_probabilities_are_worth(runs: Path, capsys):
    (study,) = grouping.find_studies(read_finished([runs])[0])
    (contest,) = choose_method.find_contests(study)
    assert (contest.metric, contest.points) == ("mean_per_class", "points")
    for test in contest.tests:
        versus = contest.versus[contest.methods[1], test]
        assert len(versus.plain.parts) == 2  # over seeds, and over rows
        assert versus.plain.low < versus.plain.difference < versus.plain.high
    text = (runs / "report.html").read_text()
    for words in ("The deciding metric is the mean per class", "calibration error %, before", "Reliability",
                  "Confusion matrix", "60 groups in column", "lies above 0"):  # fmt: skip
        assert words in re.sub(r"\s+", " ", text), words


def test_weights_change_the_heads_and_their_lack_does_not(files: Path, tmp_path: Path):
    recalls = []
    for i, weight in enumerate(((), (1.0, 1.0, 1.0), (("bee", 4.0), ("cat", 9.0)))):
        run = launch(tmp_path / str(i), **{**QUICK, **name_files(files), "stages": ("features", "tune"),
                                           "tune.methods": ("ridge",), "tune.class_weight": weight})  # fmt: skip
        rows = [row for row in read_rows(run) if (row.split, row.metric) == ("test", "mean_per_class")]
        recalls.append(rows[0].value)
    assert recalls[0] == recalls[1] < recalls[2] - 0.04


@pytest.mark.parametrize(
    ("own", "cause"),
    [
        ({"tune.class_weight": (("dog", 2.0),)}, "there is no class 'dog'"),
        ({"tune.class_weight": (1.0, 2.0)}, "2 weights for 3 classes"),
        ({"tune.metric": "f2"}, "tune.metric='f2'"),
        ({"tune.metric": "f1"}, "F1 of one of two classes, and there are 3"),
        ({"features.positive": "bee"}, "features.positive='bee' is not one of two classes"),
        ({"tune.metric": "log_loss", "tune.methods": ("ridge",)}, "needs probabilities, and ridge has none"),
        (
            {"tune.calibrate": True, "tune.validation": 0.0, "tune.patience": 0, "tune.halving": False},
            "no rows to find a temperature by",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(files: Path, tmp_path: Path, own, cause: str):
    with pytest.raises(UserError, match=cause) as error:
        launch(tmp_path / "w", **{**QUICK, **name_files(files), **own})
    assert error.value.cure
    assert not list(tmp_path.glob("w/*/heads"))


def test_f1_is_of_the_class_that_is_named(files: Path, tmp_path: Path, capsys):
    """Two classes whose positive one comes first in the alphabet; every number is scikit-learn's of the head's file."""
    X, y = draw(400, 3)
    for name, part in (("train", slice(0, 200)), ("test", slice(200, 400))):
        words = np.where(y[part] == CLASSES[0], "not_equivalent", "equivalent")
        np.savez(tmp_path / f"{name}.npz", features=X[part], labels=words)
    found = {}
    for positive in ("", "equivalent"):
        own = {"features.train": str(tmp_path / "train.npz"), "features.test": str(tmp_path / "test.npz"),
               "features.positive": positive, "features.group": ""}  # fmt: skip
        run = launch(
            tmp_path / f"w{positive}", **{**QUICK, **own, "tune.metric": "f1", "tune.methods": ("lbfgs", "knn")}
        )
        head = head_file.load(run / "heads" / "features" / "lbfgs,seed=0.safetensors")
        said = np.array(head.classes)[head.outputs(X[200:])[1].argmax(1)]
        rows = {(row.method, row.metric): row.value for row in read_rows(run) if row.split == "test"}
        true = np.where(y[200:] == CLASSES[0], "not_equivalent", "equivalent")
        assert rows["lbfgs", "f1"] == pytest.approx(
            f1_score(true, said, pos_label=positive or "not_equivalent"), abs=1e-12
        )
        assert rows["lbfgs", "mcc"] == pytest.approx(matthews_corrcoef(true, said), abs=1e-12)
        found[positive] = rows["lbfgs", "f1"]
        assert f"F1 is that of {positive or 'not_equivalent'!r}" in capsys.readouterr().err
        (study,) = grouping.find_studies(read_finished([run])[0])
        (contest,) = choose_method.find_contests(study)
        assert contest.metric == "f1"
        assert "F1" in show([methods.list_scores(contest)])
        share = (true == (positive or "not_equivalent")).mean()
        base = contest.baseline(contest.tests[0])
        assert base is not None
        assert base.best("f1") == pytest.approx(2 * share / (1 + share))
    assert found["equivalent"] < found[""]  # the rare class


def test_groups_judge_no_row_by_its_like(tmp_path: Path, capsys):
    """Of five copies of a row, all of one wrong label, only a judge that has seen none of them doubts it."""
    rng, codes = np.random.default_rng(0), np.arange(80) % 3
    X = rng.normal(size=(80, 60)) + 5.0 * np.eye(3, 60)[codes]
    given = corrupt_labels(codes, num_classes=3, seed=0, kind="pair", rate=0.1)
    columns = {f"f{i}": np.repeat(X[:, i], 5) for i in range(60)}
    patients, labels = np.repeat([f"p{i}" for i in range(80)], 5), np.array(CLASSES)[np.repeat(given, 5)]
    pyarrow.csv.write_csv(pa.table({**columns, "patient": patients, "label": labels}), tmp_path / "train.csv")
    found = []
    for more in (["--label", "label"], ["--group", "patient"]):
        assert suspects.main([str(tmp_path / "train.csv"), *more]) == 0
        found.append(len(capsys.readouterr().out.splitlines()) - 1)
    assert found[0] == 0
    assert found[1] >= 20  # of 40
