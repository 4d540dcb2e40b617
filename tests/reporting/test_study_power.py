"""What a dry run says of a study whose runs are not finished: its comparisons are those of the whole study."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.studies import data_shares, nmtune, noise_rates, noisy_downstream, regularisers, spectra
from nml_jax.reporting.statistics.paired import compare, unit
from nml_jax.reporting.studies import power
from nml_jax.reporting.studies.findings import count_comparisons
from nml_jax.reporting.studies.numbers import Numbers
from nml_jax.reporting.studies.planned import list_heads, plan_study
from nml_jax.reporting.studies.recipes import RECIPES
from nml_jax.runs.finished import read_finished
from nml_jax.runs.rows import Row, read_rows
from nml_jax.settings import expand_sweep
from nml_jax.stages import report
from tests.reporting.test_report import small, write_cell
from tests.reporting.test_studies import plan

HEADS = (("lbfgs", None), ("mlp", None), ("nmtune", "paper"))
PROBE = HEADS[:1]


def change_rows(folder: Path, change: Callable[[Row], Iterable[Row]]) -> None:
    for run in folder.iterdir():
        rows = [new for row in read_rows(run) for new in change(row)]
        (run / "rows.jsonl").write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))


@pytest.fixture
def pilot(tmp_path: Path) -> Path:
    """The pilot of the guide: spectra with the first and the last rate."""
    return small(tmp_path / "runs", rates=(0.0, 0.3), seeds=(0, 1), heads=PROBE)


def change(config: ConfigDict, **keys: object) -> ConfigDict:
    with config.unlocked():
        config.update_from_flattened_dict({key.replace("__", "."): value for key, value in keys.items()})
    return config


def test_a_dry_run_takes_the_spread_of_a_pilot_and_the_comparisons_of_the_config(tmp_path: Path) -> None:
    pilot = small(tmp_path / "runs", rates=(0.0, 0.3), seeds=(0, 1), heads=HEADS)
    said = report.list_power(noise_rates.get_config("digits"), pilot)
    assert len(said) == 2
    assert all("10 seeds and these" in line and "(8 comparisons; spread of 2 " in line for line in said)
    (said,) = report.list_power(noise_rates.get_config("digits"), tmp_path / "none")
    assert said.startswith("known after a pilot")


@pytest.mark.parametrize(
    ("config", "comparisons", "lines", "missing"),
    [
        (data_shares.get_config(), 5 * 2 * 2, 2, 0), (nmtune.get_config(), 2 * 2 * 4 * 2 + 4, 1, 4),
        (regularisers.get_config(), 2 * (5 + 3), 0, 8), (spectra.get_config(), 4 + 4 + 1, 2, 1),
    ],
)  # fmt: skip
def test_a_pilot_of_another_study_tells_the_comparisons_of_this_one(
    pilot: Path, config: ConfigDict, comparisons: int, lines: int, missing: int
) -> None:
    *said, last = report.list_power(config, pilot)
    said += [] if missing else [last]
    assert len(said) == lines
    assert all(f"({comparisons} comparisons; spread of 2 finished seeds)" in line for line in said)
    if missing:
        words, _, told = last.partition(": ")
        assert told == "known after a pilot of this study, with two seeds of what is compared"
        claims = {claim.words for claim in RECIPES[config.study].claims}
        assert sum(claim in words for claim in claims) == missing


def test_the_comparisons_planned_are_those_of_the_finished_study(tmp_path: Path) -> None:
    config = change(noisy_downstream.get_config(), sweep__seed=(0, 1, 2), stages=("pretrain", "extract", "tune"))
    heads = sorted({(method, preset) for method, preset, *_ in list_heads(config)["tune"]}, key=str)
    rates, noises, seen = config.sweep.noise, config.tune.noises, {"keep", config.tune.suspects}

    def train(row: Row) -> Iterable[Row]:
        if not row.method:
            return [row]
        each = ((noise, suspects) for noise in noises for suspects in seen)
        return [dataclasses.replace(row, downstream_noise=noise, suspects=suspects) for noise, suspects in each]

    whole = small(tmp_path / "whole", rates=rates, seeds=(0, 1, 2), heads=heads, head_seeds=1)
    change_rows(whole, train)
    for folder in (whole, small(tmp_path / "pilot", rates=(rates[0], rates[-1]), seeds=(0, 1), heads=PROBE)):
        planned = plan_study(config, expand_sweep(config), read_finished([folder])[0])
        (study,) = planned.studies
        assert planned.exact
        assert len(study.cells) == len(rates) * 3
        found = count_comparisons(RECIPES["noisy_downstream"], Numbers(study))
        assert found == len(noises) * len(seen) * 2 * 2 * (len(rates) - 1)


def test_spectra_have_the_power_of_their_seeds_in_their_unit(tmp_path: Path) -> None:
    pilot = small(tmp_path / "runs", rates=(0.0, 0.05, 0.3), seeds=(0, 1), heads=PROBE)
    entropy, share, correlation = report.list_power(spectra.get_config(), pilot)
    start = (
        r"entropy SVE of in-domain features, 30 % noise against 0 %: 10 seeds show a true difference of 0\.\d{3} 80% "
    )
    assert re.fullmatch(start + r"of the time \(9 comparisons; spread of 2 finished seeds\)", entropy)
    assert re.search(r"10 seeds show a true difference of \d+\.\d points 80% of the time", share)
    assert re.search("1 point takes|of 1 point takes", share)
    assert "test rows" not in entropy + share + correlation
    assert correlation.startswith("rank correlation of LSVR and out-of-domain score, 2 tests: ")


def test_seeds_that_do_not_vary_have_no_power() -> None:
    seeds = {(0, 0): 0.1, (1, 1): 0.1}
    found = compare("here", unit("sve"), dict.fromkeys(seeds, 0.0), seeds)
    assert power._say(found, 5, 2, "2 comparisons", 1).startswith("here: the 2 finished seeds do not vary")
    wide = compare("here", unit("sve"), dict.fromkeys(seeds, 0.0), {(0, 0): -1.0, (1, 1): 1.0})
    assert "5 seeds show no difference that is possible" in power._say(wide, 5, 2, "2 comparisons", 1)


def test_a_pilot_without_heads_tells_at_least_how_many(tmp_path: Path) -> None:
    config = change(data_shares.get_config(), sweep__seed=(0, 1, 2))
    bare = {"stages": ("pretrain", "extract")}
    pilot = small(tmp_path / "runs", rates=(0.0, 0.3), seeds=(0, 1), stages=bare["stages"], override=bare)
    (study,), exact = plan_study(config, expand_sweep(config), read_finished([pilot])[0])
    assert not exact
    assert count_comparisons(RECIPES["data_shares"], Numbers(study)) == 20
    (said,) = report.list_power(config, pilot)
    assert "known after a pilot of this study" in said


def test_runs_of_another_sweep_are_called_as_in_this_one(tmp_path: Path) -> None:
    named = (("noisy", (("noise", 0.3),)), ("clean", (("noise", 0.0),)))
    for name, ((_, rate),) in named:
        for seed in (0, 1):
            more = {"condition": name, "sweep.conditions": named}
            write_cell(tmp_path / "runs", rate=rate, seed=seed, override=more, heads=PROBE)
    said = report.list_power(data_shares.get_config(), tmp_path / "runs")
    assert said
    assert all("30 % noise against 0 %" in line and "(20 comparisons" in line for line in said)


def test_runs_of_other_noise_are_left_out(tmp_path: Path) -> None:
    runs = small(tmp_path / "runs", rates=(0.0, 0.3), seeds=(0, 1), heads=PROBE)
    other = small(tmp_path / "other", rates=(0.0, 0.3), seeds=(0, 1), heads=PROBE, override={"noise_kind": "pair"})
    assert plan(read_finished([runs])[0], (0.0, 0.3), 2).studies
    assert not plan(read_finished([other])[0], (0.0, 0.3), 2).studies


def test_what_cannot_be_claimed_is_told_before_a_run(pilot: Path) -> None:
    said = report.list_power(change(nmtune.get_config(), sweep__noise=(0.0,)), pilot)
    assert any("no claim on out-of-domain score of the probe: the conditions do not differ in noise" in s for s in said)
    assert any("published for rates above 0 %, and the runs have 0 %" in line for line in said)
