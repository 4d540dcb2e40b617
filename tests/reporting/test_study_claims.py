"""Where the published findings are claimed, and where they are not, with the reason that is told."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from nml_jax.reporting.statistics.grouping import find_studies
from nml_jax.reporting.statistics.paired import PERCENT, Part, compare, unit
from nml_jax.reporting.statistics.studies import Study
from nml_jax.reporting.studies import findings, latex, publish, recipes
from nml_jax.reporting.studies.findings import CORRELATION, Finding, check_claims, describe, explain_gaps, judge
from nml_jax.reporting.studies.numbers import Numbers
from nml_jax.reporting.studies.recipes import RECIPES, Claim
from nml_jax.runs.finished import read_finished
from nml_jax.runs.rows import read_rows
from tests.reporting.test_report import small, write_cell

HEADS = (("lbfgs", None), ("mlp", None), ("nmtune", "paper"))
PROBE = HEADS[:1]
CLEAN, LITTLE, MUCH = (("clean", {"noise": 0.0}), ("little", {"noise": 0.05}), ("much", {"noise": 0.45}))
IMAGES = {"data.source": "directory", "data.path": "x"}
Named = tuple[str, Mapping[str, Any]]


def read_study(folder: Path) -> Study:
    (found,) = find_studies(read_finished([folder])[0])
    return found


def name_conditions(folder: Path, named: Sequence[Named], heads: Sequence[tuple[str, str | None]] = PROBE) -> Study:
    """Write three runs of each named condition, and read them as a study."""
    pairs = tuple((name, tuple(keys.items())) for name, keys in named)
    for name, keys in named:
        for seed in (0, 1, 2):
            more = {"condition": name, "sweep.conditions": pairs, **keys}
            write_cell(folder, rate=keys.get("noise", 0.1), seed=seed, override=more, axes=("condition",), heads=heads)
    return read_study(folder)


def check(name: str, study: Study) -> tuple[list[str], str]:
    """Return where a study's claims are checked, and what is said of the others."""
    recipe, numbers = RECIPES[name], Numbers(study)
    return [finding.words for finding in check_claims(recipe, numbers)], " ".join(explain_gaps(recipe, numbers))


def test_named_rates_are_claimed_by_their_rates(tmp_path: Path) -> None:
    wanted = [
        f"{domain}-domain score of the probe, condition = {name} against clean"
        for domain, name in (("in", "little"), ("in", "much"), ("out-of", "little"), ("out-of", "much"))
    ]
    for i, named in enumerate(((CLEAN, LITTLE, MUCH), (MUCH, LITTLE, CLEAN))):
        study = name_conditions(tmp_path / str(i), named)
        found = check_claims(RECIPES["data_shares"], Numbers(study))
        assert sorted(finding.words for finding in found) == sorted(wanted)
        assert [f.published for f in found if f.claim.domain == "id"] == ["not lower", "lower"]
        assert all(f.found.difference < 0 for f in found if "much" in f.at)
        assert check("data_shares", study)[1] == ""


def test_a_loss_is_that_from_the_lowest_to_the_highest_named_rate(tmp_path: Path) -> None:
    study = name_conditions(tmp_path, (MUCH, CLEAN, LITTLE), (*PROBE, ("lora", None), ("full", None)))
    at = {finding.at for finding in check_claims(RECIPES["tuning_methods"], Numbers(study)) if finding.claim.other}
    assert at == {"clean to condition = much"}


def test_named_gains_are_claimed_where_there_is_noise(tmp_path: Path) -> None:
    words, _ = check("nmtune", name_conditions(tmp_path, (MUCH, CLEAN), HEADS))
    gains = [text for text in words if " gain of " in text]
    assert len(gains) == 4
    assert all("condition = much, preset paper" in text for text in gains)


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ((("fast", {"optimizer.lr": 0.2}), ("slow", {"optimizer.lr": 0.1})), "do not differ in noise: all have 10 %"),
        ((LITTLE, MUCH), "no condition has 0 % noise, with which others are compared: the lowest rate is 5 %"),
        ((CLEAN, ("other", {"noise": 0.3, "optimizer.lr": 0.2})), "differ in more than noise: in optimizer.lr"),
    ],
)
def test_conditions_that_are_not_about_noise_make_no_claim_on_it(
    tmp_path: Path, named: Sequence[Named], why: str
) -> None:
    study = name_conditions(tmp_path / "runs", named)
    for name in ("data_shares", "spectra"):
        words, gaps = check(name, study)
        assert words == []
        assert why in gaps
        written = publish.publish(name, study, tmp_path)
        assert written
        assert why in (written.folder / "findings.md").read_text()
        assert any(why in gap for gap in written.gaps)


def test_clean_runs_alone_show_no_gain_and_no_loss(tmp_path: Path) -> None:
    study = read_study(small(tmp_path, rates=(0.0,), seeds=(0, 1, 2), heads=HEADS))
    words, gaps = check("nmtune", study)
    assert words == []
    assert "published for rates above 0 %, and the runs have 0 %" in gaps
    assert "out-of-domain score of the probe: the conditions do not differ in noise: all have 0 %" in gaps


def test_a_gain_of_other_peoples_encoders_is_claimed_without_noise(tmp_path: Path) -> None:
    named = (("a", {"init_from": "w/a", "noise": 0.0}), ("b", {"init_from": "w/b", "noise": 0.0}))
    study = name_conditions(tmp_path, named, HEADS)
    assert len(check("practical_models", study)[0]) == 8
    assert check("nmtune", study)[0] == []


def test_rates_without_a_claim_are_told(tmp_path: Path) -> None:
    words, gaps = check("noise_rates", read_study(small(tmp_path, rates=(0.0, 0.3), seeds=(0, 1, 2), heads=PROBE)))
    assert len(words) == 2
    assert gaps == (
        "no claim on in-domain score of the probe at rates above 0 %, up to 10 %: the runs have 0 % and 30 %"
    )


def test_heads_that_were_not_trained_are_told(tmp_path: Path) -> None:
    study = read_study(small(tmp_path / "a", rates=(0.0, 0.3), seeds=(0, 1, 2), heads=PROBE))
    _, gaps = check("nmtune", study)
    assert "in-domain gain of NMTune over the MLP: the runs have no in-domain score of NMTune" in gaps
    study = read_study(small(tmp_path / "c", rates=(0.0, 0.3), seeds=(0, 1, 2), heads=(HEADS[0], HEADS[2])))
    assert (
        "out-of-domain gain of NMTune over the MLP: the runs have no out-of-domain score of the MLP"
        in (check("nmtune", study)[1])
    )
    bare = small(tmp_path / "b", rates=(0.0, 0.3), seeds=(0, 1, 2), stages=("pretrain", "extract"),
                 override={"stages": ("pretrain", "extract")})  # fmt: skip
    written = publish.publish("noise_rates", read_study(bare), tmp_path)
    assert written
    assert not written.sentences
    assert any("the runs have no out-of-domain score of the probe" in gap for gap in written.gaps)


@pytest.mark.parametrize(
    ("names", "kinds", "found"),
    [
        (("symmetric", "human"), ("matched", "labels"), True), (("random", "people"), ("matched", "labels"), True),
        (("random", "people"), ("symmetric", "labels"), False),
    ],
)  # fmt: skip
def test_human_noise_is_found_by_name_or_by_kind(
    tmp_path: Path, names: Sequence[str], kinds: Sequence[str], found: bool
) -> None:
    named = [("clean", {**IMAGES, "noise": 0.0})]
    named += [(n, {**IMAGES, "noise_kind": k, "noise_file": "a.npy"}) for n, k in zip(names, kinds, strict=True)]
    words, gaps = check("human_noise", name_conditions(tmp_path, named))
    first, second = names
    wanted = [f"{d}-domain score of the probe, condition = {second} against {first}" for d in ("in", "out-of")]
    assert words == (wanted if found else [])
    said = "symmetric (noise_kind=matched) and human (noise_kind=labels), of one noise_file"
    assert (said in gaps) is not found


def test_a_correlation_counts_each_test_once(tmp_path: Path) -> None:
    folder = small(tmp_path, rates=(0.0, 0.05, 0.3), seeds=(0, 1, 2), heads=PROBE)
    for run in folder.iterdir():
        rows = read_rows(run)
        few = [dataclasses.replace(row, train_share=0.1, value=1 - row.value) for row in rows if row.method == "lbfgs"]
        (run / "rows.jsonl").write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in (*rows, *few)))
    study = read_study(folder)
    last = check_claims(RECIPES["spectra"], Numbers(study))[-1]
    assert last.words == "rank correlation of LSVR and out-of-domain score, 2 tests"
    for seed in study.conditions[0].cells[0].seed, (1, 1):
        changes = []
        for test in ("test/shift", "test/blur"):
            (x,) = study.keys(metric="lsvr", split=test, mode="paper", method=None)
            (y,) = (k for k in study.keys(metric="accuracy", split=test) if k.setting.startswith("1 of"))
            for i in (1, 2):
                changes.append([study.table[k][i][seed] - study.table[k][0][seed] for k in (x, y)])
        rank: Any = stats.spearmanr(np.array(changes))
        pairs = Numbers(study).choose_whole(Numbers(study).pair_keys("lsvr", "ood"))
        assert findings._correlate(study, pairs)[seed] == pytest.approx(rank.statistic)


def test_seeds_that_do_not_vary_make_no_claim() -> None:
    seeds = {(i, i): 0.5 for i in range(3)}
    found = compare("", CORRELATION, dict.fromkeys(seeds, 0.0), seeds)
    claim = RECIPES["spectra"].claims[-1]
    assert judge(claim, found) == judge(Claim("change", "", "sve", "id", 0, ""), found) == "no claim"
    said = describe(Finding(claim, "3 tests", found, judge(claim, found), 1, 3))
    assert "+0.500 (the 3 seeds do not vary, which leaves no interval); published: lower; no claim." in said


def test_intervals_end_where_their_measure_does(tmp_path: Path) -> None:
    wild = small(tmp_path, seeds=(0, 1, 2), heads=(*PROBE, ("lora", None)),
                 score=lambda rate, draw, *_: 0.5 + 0.3 * np.sign(draw) * (1 if rate else -1))  # fmt: skip
    numbers = Numbers(read_study(wild))
    found = check_claims(RECIPES["tuning_methods"], numbers)
    size = {f.claim.kind: max(-f.found.low, f.found.high) for f in found}
    assert size["change"] == 1
    assert size["shrink"] <= 2
    assert findings.find_range(RECIPES["spectra"].claims[0], numbers) == np.inf  # an entropy
    assert findings.find_range(RECIPES["spectra"].claims[-1], numbers) == 1
    wide = compare("", CORRELATION, dict.fromkeys([(0, 0), (1, 1)], 0.0), {(0, 0): -1.0, (1, 1): 0.5})
    assert (wide.cut(1).low, wide.cut(1).high) == (-1, 1)


def make_finding(words: str, rows: bool) -> Finding:
    seeds = {(i, i): 0.1 + 0.01 * i for i in range(3)}
    parts = [Part(1e-4, 300)] if rows else []
    found = compare("", unit("accuracy"), dict.fromkeys(seeds, 0.0), seeds, parts)
    return Finding(Claim("change", words, "score", "id", -1, ""), "", found, "shown", 1, 3)


def test_intervals_are_described_as_what_they_are(tmp_path: Path) -> None:
    numbers = Numbers(read_study(small(tmp_path, seeds=(0, 1, 2), heads=PROBE)))
    a, b = make_finding("the score", rows=True), make_finding("the entropy", rows=False)
    for made, said in (
        ([a], "intervals are for other seeds and other test rows, and hold at 95 % for all 1 comparisons together."),
        ([b, b], "intervals are for other seeds, and hold at 95 % for all 2 comparisons together."),
        ([a, b], "other test rows, those of the entropy for other seeds alone; they hold at 95 % for all 2"),
    ):
        assert said in publish.explain(numbers, made, RECIPES["spectra"])
    about = publish.explain(numbers, check_claims(RECIPES["spectra"], numbers), RECIPES["spectra"])
    assert "test rows" not in about
    assert "The probe is the L-BFGS probe." in about


def test_a_mean_over_fewer_seeds_has_their_number(tmp_path: Path) -> None:
    folder = small(tmp_path / "runs", seeds=(0, 1, 2, 3), heads=PROBE)
    gone = folder / "noise=0.3,seed=3"
    for path in sorted(gone.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    gone.rmdir()
    written = publish.publish("noise_rates", read_study(folder), tmp_path)
    assert written
    assert "Some seeds are missing: a finding is over the seeds that all its numbers have" in written.about
    cells = re.findall(r"L-BFGS probe & (.*?) & (.*?) \\", (written.folder / "table.tex").read_text())
    assert [("(n = 3)" in first, "(n = 3)" in second) for first, second in cells] == [(False, True)] * 2
    assert all("3 of 4 seeds" in text for text in written.sentences)
    whole = publish.publish("noise_rates", read_study(small(tmp_path / "whole", seeds=(0, 1), heads=PROBE)), tmp_path)
    assert whole
    assert "Some seeds" not in whole.about
    assert "(n = " not in (whole.folder / "table.tex").read_text()


def test_every_sign_of_latex_is_escaped() -> None:
    assert latex.escape(r"a\b{c}$d^e~f#") == (r"a\textbackslash{}b\{c\}\$d\textasciicircum{}e\textasciitilde{}f\#")
    assert latex.escape("γ ≥ 3 − 2 ↑") == r"$\gamma$ $\ge$ 3 $-$ 2 $\uparrow$"
    words = [panel.title for recipe in recipes.RECIPES.values() for panel in recipe.views]
    assert all(latex.escape(text).isascii() for text in words)
    assert PERCENT.number(-0.01) == "−1.0"
