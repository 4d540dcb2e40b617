"""Studies on legal but odd runs: every sentence against numbers that are computed here by other code."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nml_jax.reporting.statistics import choose_method
from nml_jax.reporting.statistics.grouping import find_studies
from nml_jax.reporting.statistics.paired import compare, unit
from nml_jax.reporting.statistics.studies import Study
from nml_jax.reporting.studies import findings, latex, publish, recipes
from nml_jax.reporting.studies.findings import check_claims, describe, judge
from nml_jax.reporting.studies.numbers import Numbers
from nml_jax.reporting.studies.recipes import Claim, View
from nml_jax.runs.finished import read_finished
from nml_jax.runs.rows import Row, read_rows
from nml_jax.stages import report
from tests.reporting.test_report import small, write_cell

HEADS = (("lbfgs", None), ("mlp", None), ("nmtune", "paper"))
PROBE = HEADS[:1]
SENTENCE = re.compile(
    r"(?P<claim>.+?), (?P<at>[\d.]+) % noise( against (?P<base>[\d.]+) %)?(, preset paper)?: "
    r"(?P<difference>\S+)( points)? \((?P<low>\S+) to (?P<high>\S+?)(; (?P<n>\d) of \d seeds)?\); "
    r"published: (?P<published>[a-z ]+); (?P<verdict>[a-z ]+)\."
)


def read_study(folder: Path) -> Study:
    (found,) = find_studies(read_finished([folder])[0])
    return found


def keep_rows(folder: Path, keep: Callable[[Path, Row], bool]) -> None:
    for run in folder.iterdir():
        rows = [row for row in read_rows(run) if keep(run, row)]
        (run / "rows.jsonl").write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def look_up(table: Any, method: str, domain: str, x: float) -> Any:
    own = table[(table["method_key"] == method) & (table["domain"] == domain) & (table["split"] == "mean")]
    (line,) = own[(own["metric"] == "accuracy") & np.isclose(own["x"], x) & own["output"].isna()].itertuples()
    return line


@pytest.mark.parametrize("name", ["noise_rates", "nmtune"])
def test_every_sentence_is_in_the_summary(tmp_path: Path, name: str) -> None:
    folder = small(tmp_path / "runs", rates=(0.0, 0.1, 0.3), seeds=(0, 1, 2, 3, 4), heads=HEADS)
    written = publish.publish(name, read_study(folder), tmp_path)
    assert written
    table: Any = pd.read_csv(written.folder / "summary.csv")
    points: Any = pd.read_csv(written.folder / "figure.csv")
    names = {"the probe": "lbfgs", "the MLP": "mlp", "NMTune": "nmtune"}
    for text in written.sentences:
        found = SENTENCE.fullmatch(text)
        assert found, text
        domain = "ood" if text.startswith("Out-of-domain") else "id"
        if " gain of " in text:
            a, b = (look_up(table, names[who], domain, number(found["at"]) / 100)
                    for who in reversed(found["claim"].partition(" gain of ")[2].split(" over ")))  # fmt: skip
        else:
            a, b = (look_up(table, "lbfgs", domain, number(found[of]) / 100) for of in ("base", "at"))
        assert number(found["difference"]) == pytest.approx(100 * (b.mean - a.mean), abs=0.0051)
        panel = points[points["panel"] == f"{'Out-of-domain' if domain == 'ood' else 'In-domain'} accuracy"]
        own = [panel[(panel["series"] == side.method) & np.isclose(panel["x"], side.x)] for side in (a, b)]
        d = own[1].set_index("seed")["y"] - own[0].set_index("seed")["y"]
        half = stats.t.ppf(1 - 0.025 / len(written.sentences), len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
        low, high = (number(found[end]) / 100 for end in ("low", "high"))
        assert low <= d.mean() - half + 6e-5  # test rows only widen it
        assert high >= d.mean() + half - 6e-5
        shown = {"lower": high < 0, "higher": low > 0, "not lower": low > -0.01}[found["published"]]
        against = {"lower": low > 0, "higher": high < 0, "not lower": high < -0.01}[found["published"]]
        assert found["verdict"] == ("shown" if shown else "opposite" if against else "not shown")


def test_a_study_keeps_its_numbers_when_another_one_has_changed_the_folder(tmp_path: Path) -> None:
    folder = small(tmp_path / "runs", seeds=(0, 1, 2), heads=HEADS)
    written = publish.publish("nmtune", read_study(folder), tmp_path)
    assert written
    before = (written.folder / "summary.csv").read_bytes()
    assert b"nmtune" in before
    keep_rows(folder, lambda _, row: row.method != "nmtune")
    report.build([folder], tmp_path, study="spectra", runs=[run.name for run in folder.iterdir()])
    assert b"nmtune" not in (tmp_path / "summary.csv").read_bytes()
    assert (written.folder / "summary.csv").read_bytes() == before


def test_the_head_names_the_parts_of_a_score(tmp_path: Path) -> None:
    one = small(tmp_path / "one", seeds=(0, 1, 2), heads=PROBE)
    about = publish.explain(Numbers(read_study(one)), [], recipes.RECIPES["noise_rates"])
    assert "In-domain score: digits (accuracy on test)." in about
    assert "Out-of-domain score: the mean over the tests of digits (accuracy on test/shift and test/blur)." in about
    assert "6 runs, 3 seeds for each of 2 conditions." in about
    two = small(tmp_path / "two", seeds=(0, 1, 2), heads=PROBE, tasks=("cifar10", "cifar100"))
    about = publish.explain(Numbers(read_study(two)), [], recipes.RECIPES["noise_rates"])
    assert "In-domain score: the mean over cifar10 (accuracy on test) and cifar100 (accuracy on test)" in about


def test_a_grid_without_a_clean_run_says_what_it_compares_with(tmp_path: Path) -> None:
    study = read_study(small(tmp_path / "runs", rates=(0.15, 0.45), seeds=(0, 1, 2), heads=PROBE))
    words = [finding.words for finding in check_claims(recipes.RECIPES["noise_rates"], Numbers(study))]
    assert words == [f"{domain}-domain score of the probe, 45 % noise against 15 %" for domain in ("in", "out-of")]


def test_a_seed_that_is_missing_is_told(tmp_path: Path) -> None:
    folder = small(tmp_path / "runs", seeds=(0, 1, 2, 3), heads=PROBE)
    keep_rows(folder, lambda run, row: not (run.name == "noise=0.3,seed=1" and row.method and row.domain == "id"))
    said = [describe(finding) for finding in check_claims(recipes.RECIPES["noise_rates"], Numbers(read_study(folder)))]
    assert ["3 of 4 seeds" in text for text in said] == [True, False]


def test_two_seeds_have_an_interval_of_the_same_level(tmp_path: Path) -> None:
    study = read_study(small(tmp_path / "runs", seeds=(0, 1), heads=PROBE))
    first, *_ = check_claims(recipes.RECIPES["noise_rates"], Numbers(study))
    (_, _, make), *_ = findings.plan(recipes.RECIPES["noise_rates"], Numbers(study))
    assert first.found.low < make().low  # there are two comparisons
    assert first.verdict == "no claim"


def test_one_seed_draws_spectra_as_points(tmp_path: Path) -> None:
    study = read_study(small(tmp_path / "runs", rates=(0.0, 0.05, 0.3), seeds=(0,), heads=PROBE))
    assert publish.publish("spectra", study, tmp_path)
    table = (tmp_path / "studies" / "spectra" / "table.tex").read_text()
    assert "against" not in table  # a measure is no column
    assert r" & 0 \% & 5 \% & 30 \% \\" in table


def test_label_files_of_one_rate_stay_apart(tmp_path: Path) -> None:
    for file, score in (("none.npy", 0.9), ("mine.npy", 0.7), ("yours.npy", 0.5)):
        for seed in (0, 1, 2):
            more = {"noise_kind": "labels", "noise_file": file}
            rate = 0.0 if file == "none.npy" else 0.2
            write_cell(tmp_path / "runs", rate=rate, seed=seed, override=more, heads=PROBE, axes=("noise_file",),
                       score=lambda *_, value=score: value)  # fmt: skip
    study = read_study(tmp_path / "runs")
    view = View("", "score", "id")
    panel = publish.make_panel(view, Numbers(study), ())
    assert panel is not None
    ticks = panel.list_ticks()
    assert [*ticks["x_label"]] == ["0 % (none)", "20 % (mine)", "20 % (yours)"]
    assert [*ticks["at"]] == [0, 1, 2]
    assert r"90.0 $\pm$ 0.0 & 70.0 $\pm$ 0.0 & 50.0 $\pm$ 0.0" in latex.write_table([panel])
    svg, _ = publish.draw_figure("x", [panel])
    assert svg


def test_correlations_are_of_measures_of_the_same_run(tmp_path: Path) -> None:
    folder = small(tmp_path / "runs", rates=(0.0, 0.05, 0.1, 0.3), seeds=(0, 1, 2), heads=PROBE)
    numbers = Numbers(read_study(folder))
    pairs = numbers.pair_keys("lsvr", "ood")
    full = findings._correlate(numbers.study, pairs)
    (x, y), (x2, _) = pairs
    seed = (0, 0)
    numbers.study.table[x][1].pop(seed)  # one test lacks a spectrum, the other a score
    numbers.study.table[y._replace(split=x2.split)][3].pop(seed)
    found = findings._correlate(numbers.study, pairs)
    changes = []
    for a, b in pairs:
        for i in (1, 2, 3):
            of: list[Any] = [numbers.study.table[key][k].get(seed) for key in (a, b) for k in (i, 0)]
            if None not in of:
                changes.append((of[0] - of[1], of[2] - of[3]))
    assert len(changes) == 4
    rank: Any = stats.spearmanr(np.array(changes))
    assert found[seed] == pytest.approx(rank.statistic)
    assert found[1, 1] == full[1, 1]


def test_a_spectrum_is_paired_with_the_head_on_its_layer(tmp_path: Path) -> None:
    folder = small(tmp_path / "runs", seeds=(0, 1, 2), heads=PROBE)
    for run in folder.iterdir():
        rows = read_rows(run)
        rows += [dataclasses.replace(row, layer="stem") for row in rows if row.layer]
        (run / "rows.jsonl").write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))
    numbers = Numbers(read_study(folder))
    pairs = numbers.pair_keys("lsvr", "ood")
    assert len(pairs) == 2 * 2  # tests and layers
    assert all(measure.layer in score.setting for measure, score in pairs)
    claims = check_claims(recipes.RECIPES["spectra"], numbers)
    words = [finding.words for finding in claims]
    assert len({*words}) == len(words)
    assert "entropy SVE of in-domain features, 30 % noise against 0 %, stem" in words
    series = numbers.list_points(View("", "sve", "id"))["series"]
    assert {*series} == {"features", "stem"}


def test_spectra_of_several_tasks_are_named(tmp_path: Path) -> None:
    study = read_study(small(tmp_path / "runs", seeds=(0, 1, 2), heads=PROBE, tasks=("cifar10", "cifar100")))
    words = [finding.words for finding in check_claims(recipes.RECIPES["spectra"], Numbers(study))]
    assert "entropy SVE of in-domain features, 30 % noise against 0 %, cifar100" in words
    assert len({*words}) == len(words)


def test_a_worse_loss_is_a_worse_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_method, "has_rows", lambda *_: True)
    folder = small(tmp_path / "runs", seeds=(0, 1, 2), heads=PROBE)
    for run in folder.iterdir():
        config = json.loads((run / "config.json").read_text())
        config["tune"]["metric"] = "log_loss"
        (run / "config.json").write_text(json.dumps(config))
        rows = [dataclasses.replace(row, metric="log_loss", value=1 - row.value) if row.metric == "accuracy" else row
                for row in read_rows(run) if row.stage != "pretrain"]  # fmt: skip
        (run / "rows.jsonl").write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))
    *_, last = check_claims(recipes.RECIPES["noise_rates"], Numbers(read_study(folder)))
    assert last.found.difference > 0.1
    assert (last.verdict, last.published) == ("shown", "higher")
    assert "points" not in describe(last)
    seeds = {(i, i): d for i, d in enumerate([0.3, 0.31, 0.29])}
    loss = compare("", unit("log_loss"), dict.fromkeys(seeds, 0.0), seeds)
    assert judge(Claim("change", "", "score", "id", 0, ""), loss, -1) == "opposite"


def test_runs_that_are_several_studies_write_a_folder_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for epochs in (1.0, 2.0):
        for rate in (0.0, 0.3):
            for seed in (0, 1, 2):
                write_cell(tmp_path / "runs", rate=rate, seed=seed, override={"train.epochs": epochs},
                           axes=("train.epochs",), heads=PROBE, head_seeds=1)  # fmt: skip
    names = [run.name for run in (tmp_path / "runs").iterdir()]
    report.build([tmp_path / "runs"], tmp_path, study="noise_rates", runs=names)
    capsys.readouterr()
    texts = [(tmp_path / "studies" / name / "findings.md").read_text() for name in ("noise_rates", "noise_rates-2")]
    assert ["train.epochs = 1" in text for text in texts] == [True, False]
    assert ["train.epochs = 2" in text for text in texts] == [False, True]
    (tmp_path / "studies" / "noise_rates-2" / "mine.txt").touch()
    (tmp_path / "studies" / "noise_rates-talk").mkdir()
    report.build([tmp_path / "runs"], tmp_path, study="noise_rates", runs=[n for n in names if n.endswith("=1.0")])
    assert "removed noise_rates-2, of an earlier report" in capsys.readouterr().err
    left = [path.relative_to(tmp_path / "studies") for path in (tmp_path / "studies").glob("*-*/*")]
    assert left == [Path("noise_rates-2/mine.txt")]


def test_rates_that_differ_late_are_conditions_of_their_own(tmp_path: Path) -> None:
    folder = small(tmp_path / "runs", rates=(0.1, 0.2, 0.3), seeds=(0, 1, 2), heads=PROBE,
                   score=lambda rate, *_: 1 - rate)  # fmt: skip
    for path in (
        path for name in ("config.json", "noise.json", "rows.jsonl") for path in folder.glob(f"*=0.2,*/{name}")
    ):
        path.write_text(re.sub('(asked|"noise)": 0.2', r'\1": 0.100001', path.read_text()))
    study = read_study(folder)
    assert [condition.label for condition in study.conditions] == ["10 %", "10.0001 %", "30 %"]
    panel = publish.make_panel(View("", "score", "id"), Numbers(study), ())
    assert panel is not None
    assert r"90.0 $\pm$ 0.0 & 80.0 $\pm$ 0.0 & 70.0 $\pm$ 0.0" in latex.write_table([panel])


def test_shares_that_differ_late_stay_apart(tmp_path: Path) -> None:
    folder = small(tmp_path / "runs", rates=(0.0, 0.3), seeds=(0, 1, 2), heads=PROBE, score=lambda *_: 0.9)
    for run in folder.iterdir():
        rows = read_rows(run)
        few = [
            dataclasses.replace(row, train_share=0.999999, value=0.5) for row in rows if row.method and not row.output
        ]
        (run / "rows.jsonl").write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in (*rows, *few)))
    view = recipes.RECIPES["data_shares"].views[0]
    points = Numbers(read_study(folder)).list_points(view)
    assert dict(points.groupby("x_label")["y"].mean()) == {"100 %": pytest.approx(0.9), "99.9999 %": 0.5}


@pytest.mark.parametrize("files", [("a/mine.npy", "b/mine.npy"), ("a/mine.npy", "a/mine.csv")])
def test_label_files_of_one_name_stay_apart(tmp_path: Path, files: tuple[str, str]) -> None:
    for i, file in enumerate(files):
        for seed in (0, 1):
            more = {"noise_kind": "labels", "noise_file": file, "data.path": "x"}
            write_cell(tmp_path / "runs" / str(i), rate=0.2, seed=seed, override=more, heads=PROBE)
    (study,) = find_studies(read_finished([tmp_path / "runs" / "0", tmp_path / "runs" / "1"])[0])
    assert sorted(condition.label for condition in study.conditions) == sorted(f"20 % ({file})" for file in files)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """A folder of two studies: a person's labels against symmetric noise, and rates of noise."""
    named = (
        ("clean", (("noise", 0.0),)),
        ("symmetric", (("noise_kind", "matched"), ("noise_file", "a.npy"))),
        ("human", (("noise_kind", "labels"), ("noise_file", "a.npy"))),
    )
    lost = {"clean": 0.0, "symmetric": 0.1, "human": 0.2}
    for seed in (0, 1, 2):
        for name, keys in named:
            more = {"condition": name, "sweep.conditions": named, **dict(keys)}
            write_cell(tmp_path / "runs", rate=0.0, seed=seed, override=more, axes=("condition",), heads=PROBE,
                       score=lambda _, draw, *__, name=name: 0.9 - lost[name] + 0.001 * draw)  # fmt: skip
        for rate in (0.1, 0.3):
            write_cell(tmp_path / "runs", rate=rate, seed=seed, heads=PROBE)
    return tmp_path / "runs"


def test_human_noise_is_compared_with_symmetric_noise(people: Path) -> None:
    (study,) = find_studies([run for run in read_finished([people])[0] if run.value("condition")])
    first, *_ = check_claims(recipes.RECIPES["human_noise"], Numbers(study))
    assert first.words == "in-domain score of the probe, condition = human against symmetric"
    assert first.found.difference == pytest.approx(-0.1, abs=0.005)
    assert "; expected: lower; " in findings.describe(first), "the papers did not ask"
    assert "with what was expected" in publish.summarise([first])
    kinds = dict(zip(study.frame["condition"], study.frame["noise_kind"], strict=True))
    assert kinds == {"clean": "symmetric", "symmetric": "matched", "human": "labels"}


def test_runs_of_another_study_keep_their_rates_beside_named_conditions(people: Path) -> None:
    labels = [condition.label for condition in read_study(people).conditions]
    assert labels == ["clean", "symmetric", "human", "no condition, 10 %", "no condition, 30 %"]
