"""Test regressions through the stages: features and texts with scores, GLUE's STS-B, reports and predictions."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge

from configs import features as experiment
from configs import glue as glue_config
from nml_jax import main, predict
from nml_jax.errors import UserError
from nml_jax.evals.answers import Answers
from nml_jax.reporting.statistics.compare import find_leaves
from nml_jax.reporting.statistics.grouping import find_studies
from nml_jax.reporting.statistics.studies import MEAN, PRIMARY, Key, Method
from nml_jax.runs.finished import list_runs, read_finished
from nml_jax.runs.predictions import read_predictions
from nml_jax.runs.rows import read_rows
from tests.stages.test_texts import write_folder

SMALL = {"sweep.seed": (0, 1, 2), "tune.epochs": 2, "tune.lrs": (0.01,), "tune.alphas": (1.0, 10.0),
         "tune.widen": False, "tune.methods": ("ridge", "mlp"), "stages": ("features", "tune", "report")}  # fmt: skip


def write_features(folder: Path) -> dict[str, str]:
    rng, paths = np.random.default_rng(0), {}
    for name, n in (("train", 80), ("test", 40), ("ood", 30)):
        X = rng.normal(size=(n, 5)).astype(np.float32)
        y = X @ [1, -2, 0, 0, 3] + 7.5 + rng.normal(size=n)
        paths[f"features.{name}"] = str(folder / f"{name}.csv")
        with open(paths[f"features.{name}"], "w", newline="") as file:
            table = csv.writer(file)
            table.writerow([*(f"f{i}" for i in range(5)), "rating"])
            table.writerows([*map(repr, map(float, row)), f"{score:.3f}"] for row, score in zip(X, y, strict=True))
    return {**paths, "features.label": "rating"}


def read_table(path: str) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", skiprows=1)


def test_ratings_from_a_table_to_report_and_predictions(tmp_path: Path, capsys):
    files = write_features(tmp_path)
    config = experiment.get_config("regression")
    config.update_from_flattened_dict(SMALL | files)
    main.launch(config, tmp_path / "runs", pinned={})
    said = capsys.readouterr()
    assert "train: 80 scores from" in said.err
    assert "R² less that of the ridge probe in points" in said.out
    assert "The deciding metric is R²" in said.out
    assert (tmp_path / "runs" / "report.html").is_file()
    run = tmp_path / "runs" / "seed=1"
    row = next(r for r in read_rows(run) if (r.method, r.metric, r.split) == ("ridge", "pearson", "ood"))
    kept = read_predictions(run, row)
    assert kept is not None
    test = read_table(files["features.ood"])
    np.testing.assert_allclose(kept.label, test[:, 5], rtol=1e-6)
    assert row.value == pytest.approx(pearsonr(kept.label.astype(float), kept.answer.astype(float))[0], abs=1e-12)
    # the same numbers by scikit-learn, on standardised features
    train = read_table(files["features.train"])
    mean, std = train[:, :5].mean(0), train[:, :5].std(0)
    own = Ridge(alpha=row.hyper["alpha"]).fit((train[:, :5] - mean) / std, train[:, 5])  # type: ignore[index]
    want = own.predict((test[:, :5] - mean) / std)
    np.testing.assert_allclose(kept.answer, want, rtol=1e-3, atol=1e-3)

    head = run / "heads" / "features" / "ridge,seed=1.safetensors"
    assert predict.main([str(head), files["features.ood"], "--out", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open() as file:
        predicted = [float(line["prediction"]) for line in csv.DictReader(file)]
    np.testing.assert_allclose(predicted, want, rtol=1e-3, atol=1e-3)
    assert f"pearson {row.value:.4f}" in capsys.readouterr().err
    assert predict.main([str(head), files["features.ood"], "--proba"]) == 2


@pytest.mark.parametrize(("keys", "words"), [
    ({"tune.methods": ("lbfgs", "mlp")}, "lbfgs predicts classes"),
    ({"tune.metric": "accuracy"}, "tune.metric=accuracy is of classes"),
    ({"tune.class_weight": ("balanced",)}, "tune.class_weight.* is for classes"),
    ({"tune.suspects": "drop"}, "tune.suspects=drop is for classes"),
    ({"tune.noises": (0.0, 0.1)}, "tune.noises=.* is for classes"),
    ({"features.regression": False, "tune.methods": ("ridge",)}, "labels are not classes"),
    ({"features.label": "word"}, "row 0 has 'x' where a number is to be predicted"),
    ({"tune.metric": "primary"}, "tune.metric='primary'"),
])  # fmt: skip
def test_what_is_refused(tmp_path: Path, keys: dict[str, Any], words: str):
    files = write_features(tmp_path)
    for path in (files["features.train"], files["features.test"], files["features.ood"]):
        lines = Path(path).read_text().splitlines()
        Path(path).write_text("\n".join([f"{lines[0]},word", *(f"{line},x" for line in lines[1:])]))
    config = experiment.get_config("regression")
    config.update_from_flattened_dict(SMALL | files | keys)
    with pytest.raises(UserError, match=words):
        main.launch(config, tmp_path / "runs", pinned={})
    assert not (tmp_path / "runs" / "seed=0").exists()


def write_glue(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    words = ["hello", "world", "word", "text", "in", "a", "b"]

    def say() -> str:
        return " ".join(rng.choice(words, rng.integers(1, 6)))

    for name, n in (("train", 60), ("dev", 30)):
        lines = [f"news\tf\t2012\t{i}\t{rng.uniform(0, 5):.2f}\t{say()}\t{say()}" for i in range(n)]
        (folder / "STS-B").mkdir(parents=True, exist_ok=True)
        (folder / "STS-B" / f"{name}.tsv").write_text("\n".join(lines))
        lines = [f"s\t{i % 3 > 0:d}\t\t{say()}" for i in range(n)]
        (folder / "CoLA").mkdir(exist_ok=True)
        (folder / "CoLA" / f"{name}.tsv").write_text("\n".join(lines))
    (folder / "SICK").mkdir()
    lines = ["sentence_A\tsentence_B\trelatedness_score", *(f"{say()}\t{say()}\t{1 + i % 5}" for i in range(12))]
    (folder / "SICK" / "SICK.test.tsv").write_text("\n".join(lines))
    return folder


def test_glue_mixes_classes_and_scores(tmp_path: Path, capsys):
    write_folder(tmp_path / "bert")
    config = glue_config.get_config(str(tmp_path / "bert"))
    config.update_from_flattened_dict({
        **SMALL, "stages": ("extract", "tune", "report"), "tune.methods": ("lbfgs", "ridge", "linear"),
        "tune.cs": (0.1,),
        "glue.folder": str(write_glue(tmp_path / "data")), "texts.length": 24, "texts.buckets": (8, 16),
        "extract.batch": 16, "sweep.seed": (0, 1, 2),
    })  # fmt: skip
    main.launch(config, tmp_path / "runs", pinned={}, dry_run=True)
    assert "stsb: " in capsys.readouterr().out
    main.launch(config, tmp_path / "runs", pinned={})
    said = capsys.readouterr()
    assert "stsb is a regression: lbfgs predicts classes, and is left out" in said.err
    (study,) = find_studies(read_finished(list_runs(tmp_path / "runs"))[0])
    mean = Key(PRIMARY, MEAN, MEAN, "id", method=Method("ridge"))
    parts = {"cola": "mcc", "stsb": "pearson"}
    values = [study.table[mean._replace(task=task, metric=metric)][0] for task, metric in parts.items()]
    for seed, value in study.table[mean][0].items():
        assert value == pytest.approx(np.mean([own[seed] for own in values]))
    assert {(leaf.task, leaf.metric): w for leaf, w in find_leaves(study, mean).items()} == {
        ("cola", "mcc"): 0.5, ("stsb", "pearson"): 0.5}  # fmt: skip
    # L-BFGS has no STS-B, so it has no mean over both; only STS-B has an out-of-domain test
    assert mean._replace(method=Method("lbfgs")) not in study.table
    assert mean._replace(metric="accuracy") not in study.table
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "cola (Matthews correlation on dev)" in page
    assert "stsb (Pearson" in page


def test_constant_predictions_are_undefined_and_in_no_mean(tmp_path: Path, capsys, monkeypatch):
    from nml_jax.evals import numbers

    files = write_features(tmp_path)
    config = experiment.get_config("regression")
    config.update_from_flattened_dict(SMALL | files | {"tune.methods": ("ridge",), "tune.metric": "rmse"})
    plain: Any = numbers.NumberScorer.answers.fget  # type: ignore[attr-defined]

    def answer(self: Any) -> Answers:
        answers = plain(self)
        return Answers(answers.labels, np.full(len(answers.labels), 3.0)) if len(answers.labels) == 30 else answers

    monkeypatch.setattr(numbers.NumberScorer, "answers", property(answer))
    main.launch(config, tmp_path / "runs", pinned={})
    said = capsys.readouterr().out
    assert "Undefined, as all predictions or all targets are equal, and in no mean: Pearson's correlation" in said
    rows = read_rows(tmp_path / "runs" / "seed=0")
    assert [r.value for r in rows if (r.metric, r.split) == ("pearson_undefined", "ood")] == [1.0]
    assert not [r for r in rows if (r.metric, r.split) == ("pearson", "ood")]
    assert "pearson_undefined" in (tmp_path / "runs" / "summary.csv").read_text()
