"""Whether a method is any good at all: chance and the most frequent class beside every score."""

import types
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from nml_jax.errors import UserError
from nml_jax.reporting import answers
from nml_jax.reporting.page import show
from nml_jax.reporting.statistics import choose_method
from nml_jax.reporting.statistics.baselines import find_baseline, find_interval
from nml_jax.reporting.statistics.choose_method import Contest
from nml_jax.reporting.statistics.studies import Method
from nml_jax.reporting.tables import classes, methods
from nml_jax.runs.classes import TASKS, write_counts
from nml_jax.runs.files import write_json
from nml_jax.runs.heads import confusion_path, read_confusion, write_confusions
from nml_jax.runs.rows import read_rows
from nml_jax.stages import report
from tests.reporting.test_report import SPLITS, write_cell
from tests.reporting.test_report_methods import study_of, write_experiment

TESTS = (("sst", "id", 600), ("mpqa", "ood", 1000))
COUNTS = {"sst": (310, 290), "mpqa": (688, 312)}
METHODS = (("lbfgs", None), ("linear", None), ("nmtune", "paper"))


def make_contest(folder: Path, levels: dict[str, float], **fields) -> Contest:
    """Return a contest in which every method has about the given accuracy on each test, with some luck."""

    def score(method: str, preset: str | None, split: str, draw: float) -> float:
        return levels.get(f"{method} {split}", levels.get(split, 0.5)) + 0.001 * draw

    write_experiment(folder, **{"score": score, "tests": TESTS, "methods": METHODS, **fields})
    for cell in folder.iterdir():
        splits = [{"split": s, "rows": sum(n), "views": 1, "per_class": list(n)} for s, n in COUNTS.items()]
        write_json(cell / "features.json", {"classes": ["negative", "positive"], "splits": splits})
    (found,) = choose_method.find_contests(study_of(folder))
    return found


def test_a_file_on_which_no_method_is_of_use(tmp_path: Path) -> None:
    found = make_contest(tmp_path / "x", {"sst": 0.85, "mpqa": 0.61})
    for text in (answers.write_verdict(found), answers.write_answer(found)):
        assert text.startswith("Use the L-BFGS probe")
        assert text.endswith(
            "No method beats always answering 'negative' (68.8 %) on mpqa: the 95 % interval of each reaches down to "
            "that."
        )
        assert "out-of-domain (mpqa)" not in text
    assert [found.advised(test) for test in found.decided] == [found.reference, None]
    report.build([tmp_path / "x"], tmp_path / "x")
    assert "No method beats always answering" in (tmp_path / "x" / "report.html").read_text()


def test_nothing_is_recommended_where_nothing_works(tmp_path: Path) -> None:
    for i, seeds in enumerate(((0, 1, 2), (0, 1))):
        found = make_contest(tmp_path / str(i), {"sst": 0.52, "mpqa": 0.61}, seeds=seeds)
        text = answers.write_verdict(found)
        assert text == answers.write_answer(found)
        assert text.startswith("No method beats always answering 'negative' (51.7 %) on sst and always answering ")
        assert answers.advise(found) == {}
        assert "Use " not in "".join(methods.write_text(found))


def test_the_reference_is_not_recommended_where_only_another_method_works(tmp_path: Path) -> None:
    levels = {"sst": 0.85, "mpqa": 0.715, "nmtune mpqa": 0.73}
    found = make_contest(tmp_path / "x", levels, seeds=(0, 1))  # too few seeds for a claim
    assert [found.clears(method, found.decided[1]) for method in found.methods] == [False, False, True]
    assert str(found.advised(found.decided[1])) == "NMTune (paper)"


def test_baselines_are_those_of_scikit_learn(tmp_path: Path) -> None:
    found = make_contest(tmp_path / "x", {"sst": 0.85, "mpqa": 0.75})
    base = find_baseline(found.study, found.decided[1])
    assert base is not None
    truth, always = [0] * 688 + [1] * 312, [0] * 1000
    assert (base.answer, base.chance) == ("negative", 0.5)
    assert base.scores == pytest.approx({
        "log_loss": log_loss(truth, np.tile([0.688, 0.312], (1000, 1))),
        "accuracy": 0.688,
        "macro_f1": f1_score(truth, always, average="macro", zero_division=0),
        "mean_per_class": balanced_accuracy_score(truth, always),
        "mcc": 0.0,
        "f1": 0.0,
    })  # fmt: skip
    assert base.chances["mcc"] == 0
    assert base.chances["f1"] == pytest.approx(f1_score(truth, [1] * 1000))  # the best guess
    table = show([methods.list_scores(found)])
    assert "always &#39;negative&#39;" in table
    assert "68.8" in table
    assert "chance" in table
    lines = methods.write_text(found)
    assert sum("always 'negative'" in line and "68.8" in line for line in lines) == 1


def test_the_lower_bound_allows_for_seeds_and_rows(tmp_path: Path) -> None:
    found = make_contest(tmp_path / "x", {"sst": 0.85, "mpqa": 0.75})
    key = found.decided[1]._replace(method=found.reference)
    mean = found.stat(found.reference, found.decided[1]).mean
    low, high = find_interval(found.study, key)
    assert mean + 0.0255 < high < mean + 0.035
    assert mean - 0.035 < low < mean - 0.0268  # the rows alone: 1.96 · √(0.75 · 0.25 / 1000) = 0.0268


def test_disagreement_of_measures_is_said(tmp_path: Path) -> None:
    found = make_contest(tmp_path / "x", {"sst": 0.85, "mpqa": 0.75, "linear sst": 0.87})
    assert answers.say_disagreement(found) == ""
    for key, sources in found.study.table.items():
        if key.metric == "mean_per_class" and key.split == "sst" and key.method and key.method.name == "nmtune":
            sources[0].update(dict.fromkeys(sources[0], 0.9))
    assert answers.say_disagreement(found) == (
        "Accuracy and the mean per class disagree about which method is first: on sst by accuracy the linear probe, by "
        "the mean per class NMTune (paper)."
    )


def write_matrices(found: Contest, matrices: dict[str, np.ndarray]) -> None:
    """Write the confusion matrices of all heads of a contest."""
    for cell in found.study.cells:
        for row in cell.rows:
            if row.method and row.metric == "accuracy":
                write_confusions(confusion_path(cell.folder, vars(row)), matrices)


def test_a_table_per_class_and_a_confusion_matrix(tmp_path: Path) -> None:
    found = make_contest(tmp_path / "x", {"sst": 0.85, "mpqa": 0.61})
    assert classes.list_classes(found) == []  # as in older runs
    write_matrices(found, {"sst": np.array([[300, 10], [90, 200]]), "mpqa": np.array([[688, 0], [312, 0]])})
    blocks = classes.list_classes(found)
    assert [block.title for block in blocks] == ["Classes of sst", "Classes of mpqa"]
    by_class, matrix = (block.content for block in blocks[0].content)
    assert by_class.groups[""] == [
        ["negative", "310", "76.9", "96.8", "85.7"],  # 300 / 390, 300 / 310, 600 / 700
        ["positive", "290", "95.2", "69.0", "80.0"],
    ]
    assert matrix.groups[""] == [["negative", "300.0", "10.0"], ["positive", "90.0", "200.0"]]
    assert blocks[1].content[0].content.groups[""][1] == ["positive", "312", "–", "0.0", "0.0"]
    report.build([tmp_path / "x"], tmp_path / "x")
    assert "Confusion matrix" in (tmp_path / "x" / "report.html").read_text()


def test_many_classes_are_shown_in_part(tmp_path: Path) -> None:
    matrix = np.diag(np.full(100, 50))
    matrix[7, 9], matrix[8, 7] = 30, 20
    blocks = classes._show_matrix(matrix, [f"c{i}" for i in range(100)], 1, "x")
    lines = blocks[0].content.groups[""]
    assert (len(lines), lines[0][0]) == (classes.MOST, "c7")
    assert blocks[1].content.groups[""] == [["c7", "c9", "30"], ["c8", "c7", "20"]]


def test_confusions_are_kept(tmp_path: Path) -> None:
    of = {"stage": "tune", "task": "features", "method": "mlp", "preset": None, "train_share": 1.0,
          "downstream_noise": 0.0, "head_seed": 0}  # fmt: skip
    matrices = {"a": np.array([[3, 0, 1], [0, 0, 0], [2, 5, 0]]), "b": np.zeros((2, 2), np.int64)}
    path = confusion_path(tmp_path, of)
    write_confusions(path, matrices)
    for name, matrix in matrices.items():
        row = types.SimpleNamespace(**of, split=name, wise_alpha=None)
        np.testing.assert_array_equal(read_confusion(tmp_path, row), matrix)
        assert read_confusion(tmp_path / "none", row) is None
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="force=tune"):
        read_confusion(tmp_path, row)


def test_features_of_encoders_have_baselines_and_classes_too(tmp_path: Path) -> None:
    """Test a study over the noise: every test, in the first and the last condition."""
    counts = {"digits/test": {"zero": 300, "one": 60}, "digits/test/shift": {"zero": 200, "one": 160}}
    matrices = {"test": np.array([[290, 10], [20, 40]]), "test/shift": np.array([[150, 50], [80, 80]])}
    for rate in (0.0, 0.3):
        cell = write_cell(tmp_path / "x", rate=rate, heads=(("linear", None),), splits=SPLITS[:2], head_seeds=1)
        write_counts(cell / TASKS, counts)
        for row in read_rows(cell):
            if row.method and row.metric == "accuracy":
                write_confusions(confusion_path(cell, vars(row)), matrices)
    study = study_of(tmp_path / "x")
    overview, *folded = classes.list_classes_by_condition(study, "digits", Method("linear"))
    assert [line[:3] for line in overview.content.groups[""]] == [
        ["test", "zero", "83.3"],
        ["test/shift", "zero", "55.6"],
    ]
    assert [block.title for block in folded] == [
        "Classes of digits, test at 0 % noise", "Classes of digits, test/shift at 0 % noise",
        "Classes of digits, test at 30 % noise", "Classes of digits, test/shift at 30 % noise",
    ]  # fmt: skip
    assert folded[0].content[0].content.groups[""][1][:2] == ["one", "60"]
    report.build([tmp_path / "x"], tmp_path / "x")
    text = (tmp_path / "x" / "report.html").read_text()
    assert "Classes and baselines" in text
    assert text.count("<summary>Classes of digits, test") == 4
