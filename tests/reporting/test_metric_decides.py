"""Reports whose claims go by another metric than accuracy, with intervals over seeds and test rows."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from nml_jax.evals.metrics import METRICS, Answers, compute_losses
from nml_jax.reporting import answers, claims
from nml_jax.reporting.page import show
from nml_jax.reporting.statistics import choose_method, paired
from nml_jax.reporting.statistics.choose_method import Contest
from nml_jax.reporting.tables import classes, methods
from nml_jax.runs.files import write_json
from nml_jax.runs.predictions import Predictions, predictions_path, read_predictions, write_predictions
from nml_jax.runs.rows import read_rows, write_rows
from nml_jax.stages import report
from tests.reporting.test_report_methods import PAPER, study_of, write_experiment

TESTS = (("photo", "id", 600), ("art", "ood", 900))
METHODS = (("lbfgs", None), ("mlp", None), ("nmtune", "paper"))
PRIORS = (0.8, 0.15, 0.05)


def draw_answers(split: str, n: int, method: str, seed: int) -> tuple[Predictions, Answers]:
    """NMTune is better at rare classes, the MLP too sure; the probe is neither."""
    rng, own = np.random.default_rng(len(split)), np.random.default_rng([seed, len(method)])
    labels = rng.choice(3, n, p=PRIORS)
    z = rng.normal(size=(n, 3)) + 0.2 * own.normal(size=(n, 3)) + 2.0 * np.eye(3)[labels] + np.log(PRIORS)
    z += {"lbfgs": 0.0, "mlp": 0.0, "nmtune": 3.0}[method] * np.eye(3)[labels] * (labels > 0)[:, None]
    z *= 3.0 if method == "mlp" else 1.0
    losses = compute_losses(z, labels)
    confidence = np.exp(z.max(1)) / np.exp(z).sum(1)
    return Predictions(labels, z.argmax(1), losses, confidence), Answers(labels, z.argmax(1), losses)


def make_contest(folder: Path, metric: str, **fields) -> Contest:
    """Return the contest of runs whose heads answer as above."""
    write_experiment(folder, tests=TESTS, methods=METHODS, seeds=(0, 1, 2), values={"tune.metric": metric}, **fields)
    for cell in folder.iterdir():
        rows, new, files = [row for row in read_rows(cell) if row.stage == "tune"], [], {}
        for row in (row for row in rows if row.metric == "accuracy"):
            found, own = draw_answers(row.split, row.n_test or 0, row.method or "", row.seed)
            files.setdefault(predictions_path(cell, vars(row)), {})[row.split] = found
            values = {name: float(of.share(own).values.mean()) for name, of in METRICS.items()} | {"ece": 0.1}
            new += [dataclasses.replace(row, metric=name, value=value) for name, value in values.items()]
        for path, tests in files.items():
            write_predictions(path, tests)
        write_rows(cell, "tune", [*new, *(row for row in rows if row.spectrum_mode)])
        counts = {split: np.bincount(draw_answers(split, n, "lbfgs", 0)[1].labels).tolist() for split, _, n in TESTS}
        splits = [{"split": split, "rows": sum(n), "views": 1, "per_class": n} for split, n in counts.items()]
        write_json(cell / "features.json", {"classes": ["a", "b", "c"], "splits": splits})
    (found,) = choose_method.find_contests(study_of(folder))
    return found


@pytest.mark.parametrize("metric", ["macro_f1", "mean_per_class", "mcc", "log_loss"])
def test_the_metric_decides_what_is_recommended(tmp_path: Path, metric: str) -> None:
    found = make_contest(tmp_path / "x", metric)
    assert found.metric == metric
    for test in found.decided:
        assert found.recommended(test) == PAPER
        versus = found.versus[PAPER, test]
        assert (versus.sign, versus.verdict) == (1, "better")
        assert math.copysign(1, versus.plain.difference) == METRICS[metric].way
        assert len(versus.plain.parts) == 2
        assert found.clears(PAPER, test)
    mlp = found.versus[found.methods[1], found.decided[0]]
    assert mlp.sign == (-1 if metric == "log_loss" else 0)
    text = answers.write_answer(found)
    title = METRICS[metric].title
    lower = ", and lower is better" * (metric == "log_loss")
    assert f"The deciding metric is {title}{lower}." in text
    assert ("nats (" in text) == (metric == "log_loss")
    assert f"difference in {title}" in answers.write_rule(found)
    assert ("lies below 0, and worse" in answers.write_rule(found)) == (metric == "log_loss")
    report.build([tmp_path / "x"], tmp_path / "x")
    page = (tmp_path / "x" / "report.html").read_text()
    assert f"{title[:1].upper()}{title[1:]} less that of the reference" in page
    assert "Reliability" in page
    assert ("Scores in % (MCC: 100 times its value)" in page) == (metric == "mcc")
    unit = {"mcc": "", "log_loss": " (nats)"}.get(metric, " %")
    assert claims.name_group("id", metric) == f"ID {title.removeprefix('the ')}{unit}"
    lines = methods.write_text(found)
    assert any("always 'a'" in line for line in lines)


def test_intervals_are_exact_for_the_log_loss(tmp_path: Path) -> None:
    """Two parts: of three seeds, and of the mean differences on each row."""
    found = make_contest(tmp_path / "x", "log_loss")
    test = found.tests[0]
    d = []
    for seed in range(3):
        first, second = (draw_answers("photo", 600, m, seed)[1].losses for m in ("lbfgs", "nmtune"))
        assert first is not None
        assert second is not None
        d.append(np.float32(second) - np.float32(first))
    over_seeds, over_rows = np.var(np.mean(d, 1), ddof=1) / 3, np.var(np.mean(d, 0), ddof=1) / 600
    parts = found.versus[PAPER, test].plain.parts
    assert [part.variance for part in parts] == pytest.approx([over_seeds, over_rows], rel=1e-4)
    assert 10 < parts[1].df < 599


def test_few_rows_of_a_rare_class_count_as_few() -> None:
    """A mean over classes of which one has five rows is as uncertain as these, and never certain."""
    labels = np.repeat([0, 1], [2000, 5])
    alike = METRICS["mean_per_class"].share(Answers(labels, labels))
    (part,) = paired.add_rows([(1.0, alike._replace(values=alike.values - alike.values))])
    assert math.sqrt(part.variance) == pytest.approx(0.5 * math.sqrt(2) / 5, rel=0.01)  # two rows more
    assert part.df == pytest.approx(6, abs=0.1)


def test_a_metric_without_record_falls_back_to_accuracy(tmp_path: Path) -> None:
    write_experiment(tmp_path / "x", tests=TESTS, methods=METHODS, seeds=(0, 1, 2))
    (found,) = choose_method.find_contests(study_of(tmp_path / "x"))
    assert (found.metric, found.points) == ("accuracy", "points")
    assert classes.show_calibration(found, "c") == []


def test_disagreement_names_the_deciding_metric(tmp_path: Path) -> None:
    found = make_contest(tmp_path / "x", "log_loss")
    for key, sources in found.study.table.items():
        if key.metric == "accuracy" and key.method and key.method.name == "mlp":
            sources[0].update(dict.fromkeys(sources[0], 0.99))
    text = answers.say_disagreement(found)
    assert text.startswith(
        "Accuracy, the mean per class and the log loss disagree about which method is first: on photo"
    )
    assert "by accuracy the MLP, by the mean per class NMTune (paper), by the log loss NMTune (paper)" in text


def test_calibration_is_shown_before_and_after(tmp_path: Path) -> None:
    found = make_contest(tmp_path / "x", "accuracy")
    blocks = classes.show_calibration(found, "c")
    assert [block.kind for block in blocks] == ["table", "figure"]
    assert "before" not in show(blocks)
    row = next(row for row in found.study.cells[0].rows if row.metric == "accuracy")
    read = read_predictions(found.study.cells[0].folder, row)
    assert read is not None
    assert read.label.dtype == np.uint8
    path = predictions_path(found.study.cells[0].folder, vars(row))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(Exception, match="force=tune"):
        read_predictions(found.study.cells[0].folder, row)
