"""The head that a report hands over: its file, its own score, and the command that gives the same score."""

import dataclasses
import json
import re
import shlex
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from configs import features as experiment
from nml_jax import main, predict
from nml_jax.reporting import answers, handed
from nml_jax.reporting.statistics.choose_method import Contest, find_contests
from nml_jax.reporting.statistics.grouping import find_studies
from nml_jax.runs.finished import read_finished

KINDS = np.array(["ant", "bee", "cat"])


def draw(n: int, seed: int, shift: float = 0.0) -> tuple[list[str], list[str], np.ndarray]:
    """Return ids, labels and embeddings of three classes that overlap."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, len(KINDS), n)
    X = rng.normal(size=(n, 6)) + 1.2 * np.eye(len(KINDS), 6)[codes] + shift
    return [f"{seed}-{i}" for i in range(n)], KINDS[codes].tolist(), X.astype(np.float32)


def write(folder: Path, name: str, ids: list[str], kinds: list[str], X: np.ndarray) -> None:
    """Write JSON lines or Arrow, whose label has a name of its own beside another column of words."""
    if name.endswith(".jsonl"):
        rows = zip(ids, kinds, X.tolist(), strict=True)
        lines = [json.dumps({"id": i, "note": "x", "kind": kind, "e": x}) for i, kind, x in rows]
        (folder / name).write_text("\n".join(lines))
    else:
        table = pa.table({"id": ids, "note": ["x"] * len(ids), "kind": kinds, "e": list(X)})
        with pa.ipc.new_file(folder / name, table.schema) as file:
            file.write_table(table)


def run(folder: Path, **values) -> Contest:
    """Run features, tune and report on two files; return the contest that the report shows."""
    config = experiment.get_config()
    with config.unlocked():
        config.stages = ("features", "tune", "report")
        config.update_from_flattened_dict({
            "features.train": "train.jsonl", "features.test": "test.arrow", "features.ood": "far.jsonl",
            "features.label": "kind", "features.columns": "e", "sweep.seed": (0, 1), "tune.epochs": 4,
            "tune.lrs": (0.01, 0.003), "tune.methods": ("lbfgs",), **values,
        })  # fmt: skip
    main.launch(config, folder, pinned={})
    (contest,) = find_contests(find_studies(read_finished([folder])[0])[0])
    return contest


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, n, seed, shift in (("train.jsonl", 90, 0, 0.0), ("test.arrow", 61, 1, 0.0), ("far.jsonl", 47, 2, 0.4)):
        write(tmp_path, name, *draw(n, seed, shift))
    return tmp_path


def test_predict_prints_the_accuracy_of_the_report_to_the_digit(files: Path, capsys: pytest.CaptureFixture):
    """For every file of every method on every test, and for the command in the report's box as it stands."""
    contest = run(files / "w", **{"tune.methods": ("lbfgs", "mlp"), "features.scale": 0.3})
    capsys.readouterr()
    names = {"test": "test.arrow", "far": "far.jsonl"}
    scores = set()
    for head in (head for method in contest.methods for head in handed.list_heads(contest, method)):
        for test, row in head.tests.items():
            argv = [str(head.path), names[test.split], "--columns=e", "--keep=id", "--out=p.csv"]
            assert predict.main(argv) == 0
            shown = handed.format_score(row.value, row.n_test).partition(" of ")[0]
            assert f"accuracy on the labels in the file: {shown}\n" in capsys.readouterr().err
            lines = (files / "p.csv").read_text().splitlines()
            assert lines[0] == "row,id,prediction"
            assert lines[1].startswith(f"0,{'1' if test.split == 'test' else '2'}-0,")
            scores.add(shown)
    assert len(scores) > 2
    page = unescape((files / "w" / "report.html").read_text()).replace("\N{NO-BREAK SPACE}", " ")
    (command,) = re.findall(r'<pre class="command"[^>]*>(.*?)</pre>', page)
    python, flag, module, *argv = shlex.split(command)
    assert (python, flag, module) == ("python", "-m", "nml_jax.predict")
    assert argv[1:] == ["test.arrow", "--columns", "e"]
    assert predict.main(argv) == 0
    printed = re.search(r"accuracy on the labels in the file: (.*)\n", capsys.readouterr().err)
    assert printed
    box = page[page.index('<section class="verdict"') : page.index("</section>")]
    assert f"{printed[1]} of 61 rows, 95 % interval " in box
    assert "the same in each of 2 seeds; trained on all 90 training rows, those of the validation part included." in box
    by_f1 = tuple(test._replace(metric="macro_f1") for test in contest.tests)
    answer = handed.answer(dataclasses.replace(contest, tests=by_f1), contest.reference, contest.decided)
    assert answer is not None
    assert all(re.search(r"^\d+\.\d\d % of .*; macro-F1 \d+\.\d %$", line)
               for line in answer.about[handed.SCORES])  # fmt: skip
    assert "Settings were chosen once for each method" in page
    assert "Halving took place" in page
    assert "It stopped early" in page


def test_without_refit_the_report_says_which_rows_a_file_has_not_seen(files: Path):
    contest = run(files / "w", **{"tune.refit": False, "sweep.seed": (0,)})
    (head,) = handed.list_heads(contest, contest.reference)
    assert head.n_train == 72
    said = "trained on 72 training rows, without the validation part, as validation judged it"
    assert handed.describe_rows(contest, head) == said
    assert said in (files / "w" / "report.html").read_text()


def test_a_file_of_held_out_rows_says_so_and_names_no_test_file(files: Path):
    contest = run(files / "w", **{"features.test": "", "features.ood": "", "sweep.seed": (0,)})
    (head,) = handed.list_heads(contest, contest.reference)
    assert handed.describe_rows(contest, head).endswith("; the rest of the file was held out to score it")
    answer = handed.answer(contest, contest.reference, contest.decided)
    assert answer is not None
    assert answer.command.endswith(" FEATURES --columns e")


def test_a_file_that_scores_worse_than_its_method_is_told(files: Path):
    contest = run(files / "w", **{"sweep.seed": (0,)})
    assert handed.warn_of_worse(contest, [*answers.advise(contest)]) == ""
    for key, by_condition in contest.study.table.items():
        if key.metric == "accuracy" and key.split == "far":
            by_condition[0].update({(1, 1): 1.0, (2, 2): 1.0})  # other seeds, of the same method
    text = handed.warn_of_worse(contest, [contest.reference])
    assert re.match(
        r"The first file scores worse than .* beyond its interval: \d+\.\d\d % on far, where the mean", text
    )
