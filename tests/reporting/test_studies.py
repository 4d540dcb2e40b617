"""Studies for papers: their figures, findings, tables and power, on runs whose truth is known."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from configs import common
from nml_jax import settings
from nml_jax.errors import UserError
from nml_jax.reporting.statistics.compare import Side, Term, compare_numbers, contrast
from nml_jax.reporting.statistics.grouping import find_studies
from nml_jax.reporting.statistics.paired import Comparison, Part, compare, unit
from nml_jax.reporting.statistics.studies import Study
from nml_jax.reporting.studies import latex, power, publish, published, recipes
from nml_jax.reporting.studies.findings import check_claims, describe, judge
from nml_jax.reporting.studies.numbers import Numbers
from nml_jax.reporting.studies.planned import Plan, plan_study
from nml_jax.reporting.studies.recipes import Claim
from nml_jax.runs.finished import FinishedRun, read_finished
from nml_jax.stages import report
from tests.reporting.test_report import small

HEADS = (("lbfgs", None), ("mlp", None), ("nmtune", "paper"), ("lora", None), ("full", None))
LOST = {"lbfgs": 1.0, "mlp": 1.0, "nmtune": 1.0, "lora": 0.5, "full": 0.1}


def score(rate: float, draw: float, split: str, method: str, preset: str | None) -> float:
    """Noise costs a third of its rate out of domain, less with more tuning; NMTune gains three points there."""
    far = split.startswith("test/")
    gain = 0.03 if method == "nmtune" and far else 0.0
    return 0.9 - (rate / 3 if far else 0.0) * LOST[method] + gain + 0.001 * draw


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = small(
        tmp_path_factory.mktemp("x"), rates=(0.0, 0.05, 0.3), seeds=tuple(range(5)), heads=HEADS, score=score
    )
    (found,) = find_studies(read_finished([folder])[0])
    return found


def test_a_contrast_of_two_numbers_is_their_comparison(study: Study) -> None:
    (key,) = Numbers(study).find_keys("score", "ood", ("lora",))
    plain = compare_numbers(study, "", Side(key), Side(key, (2,)))
    found = contrast(study, "", [Term(1, key, 2), Term(-1, key, 0)])
    assert (found.difference, found.n) == (pytest.approx(plain.difference), plain.n)


def test_findings_have_the_signs_of_the_world_they_are_made_in(study: Study) -> None:
    found = {f.words: f.verdict for f in check_claims(recipes.RECIPES["tuning_methods"], Numbers(study))}
    assert (
        found["in-domain score of the probe, 5 % noise against 0 %"] == "not shown"
    )  # 360 test rows leave more than a point
    assert found["in-domain score of the probe, 30 % noise against 0 %"] == "not shown"  # published: lower
    assert found["out-of-domain score of the probe, 30 % noise against 0 %"] == "shown"
    assert found["out-of-domain loss of the probe less that of LoRA, 0 % to 30 % noise"] == "shown"
    assert found["out-of-domain loss of LoRA less that of full fine-tuning, 0 % to 30 % noise"] == "shown"
    assert found["in-domain loss of the probe less that of LoRA, 0 % to 30 % noise"] == "not shown"
    gains = {f.words: f for f in check_claims(recipes.RECIPES["nmtune"], Numbers(study))}
    gain = gains["out-of-domain gain of NMTune over the MLP, 30 % noise, preset paper"]
    assert gain.verdict == "shown"
    assert gain.found.difference == pytest.approx(0.03, abs=0.005)
    assert re.fullmatch(
        r"Out-of-domain gain of NMTune over the MLP, 30 % noise, preset paper: \+[23]\.\d\d points "
        r"\(\+.* to \+.*\); published: higher; shown\.",
        describe(gain),
    )


def plan(
    finished: Sequence[FinishedRun], rates: Sequence[float], seeds: int, keys: Mapping[str, Any] = MappingProxyType({})
) -> Plan:
    """Plan the runs of a sweep over rates with the heads of HEADS, of which some are finished."""
    config = common.get_config()
    config.name = "digits"
    config.stages = ("pretrain", "extract", "tune", "finetune", "report")
    config.sweep.noise, config.sweep.seed = tuple(rates), tuple(range(seeds))
    config.tune.methods, config.tune.presets = ("lbfgs", "mlp", "nmtune"), ("paper",)
    config.finetune.methods, config.finetune.terms = ("lora", "full"), ("none",)
    config.update_from_flattened_dict(dict(keys))
    return plan_study(config, settings.expand_sweep(config), finished)


def describe_plan(name: str, planned: Plan) -> list[str]:
    (study,) = planned.studies
    return power.describe_power(name, study, exact=planned.exact)


def made(*differences: float) -> Comparison:
    seeds = {(i, i): d for i, d in enumerate(differences)}
    return compare("", unit("accuracy"), dict.fromkeys(seeds, 0.0), seeds)


@pytest.mark.parametrize(
    ("sign", "differences", "verdict"),
    [
        (-1, (-0.03, -0.031, -0.029), "shown"), (1, (-0.03, -0.031, -0.029), "opposite"),
        (0, (-0.03, -0.031, -0.029), "opposite"), (0, (-0.003, -0.0031, -0.0029), "shown"),
        (0, (-0.03, 0.03, 0.0), "not shown"), (-1, (-0.03, 0.03, 0.0), "not shown"), (-1, (-0.03, -0.03), "no claim"),
    ],
)  # fmt: skip
def test_verdicts(sign: int, differences: tuple[float, ...], verdict: str) -> None:
    assert judge(Claim("change", "", "score", "id", sign, ""), made(*differences)) == verdict


def test_intervals_are_widened_for_all_comparisons(study: Study) -> None:
    recipe = recipes.RECIPES["noise_rates"]
    found = check_claims(recipe, Numbers(study))
    alone = check_claims(recipe._replace(claims=recipe.claims[2:]), Numbers(study))
    assert (len(found), len(alone)) == (4, 2)
    assert found[-1].found.low < alone[-1].found.low


@pytest.mark.parametrize("name", ["spectra", "nmtune"])
def test_files_for_a_paper(study: Study, tmp_path: Path, name: str) -> None:
    written = publish.publish(name, study, tmp_path)
    assert written
    folder = tmp_path / "studies" / name
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    ET.fromstring(before["figure.svg"])
    assert b"<text" not in before["figure.svg"]  # glyphs are paths: no font is missing anywhere
    assert b"/FontFile2" in before["figure.pdf"]  # embedded
    points = pd.read_csv(folder / "figure.csv")
    assert list(points.columns) == ["panel", "x", "x_label", "series", "seed", "y"]
    assert set(points["seed"]) == set(range(5))
    assert before["table.tex"].count(rb"\begin{tabular}") == before["table.tex"].count(rb"\end{tabular}") >= 1
    findings = pd.read_csv(folder / "findings.csv")
    assert len(findings) == len(written.sentences) == before["findings.md"].count(b"\n- ")
    assert set(findings["verdict"]) <= {"shown", "not shown", "opposite", "no claim"}
    publish.publish(name, study, tmp_path)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_points_and_table_are_the_rows(study: Study, tmp_path: Path) -> None:
    publish.publish("noise_rates", study, tmp_path)
    points = pd.read_csv(tmp_path / "studies" / "noise_rates" / "figure.csv")
    own = points[(points["panel"] == "Out-of-domain accuracy") & (points["x"] == 0.3)]
    rows = [row for cell in study.conditions[2].cells for row in cell.rows
            if row.method == "lora" and row.metric == "accuracy" and row.domain == "ood"]  # fmt: skip
    lora = own[own["series"] == "LoRA"]["y"]
    assert lora.mean() == pytest.approx(np.mean([row.value for row in rows]))
    text = (tmp_path / "studies" / "noise_rates" / "table.tex").read_text()
    assert rf"{100 * lora.mean():.1f} $\pm$ {100 * lora.std(ddof=1):.1f} \\" in text
    assert r" & 0 \% & 5 \% & 30 \% \\" in text


def test_what_is_published_stands_beside_and_is_drawn_only_on_the_same_axes() -> None:
    for name in ("noise_rates", "practical_models", "detection"):
        for line in published.read_published(name):
            assert len(line.values) == (0 if line.sign is not None else len(line.x))
            assert line.source.startswith("arXiv")
    lines = published.read_published("noise_rates")
    assert [line.values[0] for line in published.find_agreeing(lines, "imagenet2012", "validation", "symmetric")] == [
        79.96
    ]
    assert not published.find_agreeing(lines, "", "validation", "symmetric")
    assert not published.find_agreeing(lines, "imagenet2012", "validation", "asymmetric")
    of_models = published.read_published("practical_models")
    assert not published.find_agreeing(of_models, "", "score", "symmetric")  # words, no rates
    assert not published.find_agreeing(lines, "yfcc15m", "zeroshot", "caption_swap", "cifar10")
    (clip,) = published.find_agreeing(lines, "yfcc15m", "zeroshot", "caption_swap", "imagenet2012")
    assert clip.values[0] == 32.64


RATES = {
    recipes.ANY: "rates above 0 %",
    recipes.LITTLE: "rates above 0 %, up to 10 %",
    recipes.MUCH: "rates above 10 %",
}


@pytest.mark.parametrize("name", [name for name in recipes.RECIPES if name != "human_noise"])
def test_every_claim_has_its_sign_and_place_in_the_file(name: str) -> None:
    lines = [line for line in published.read_published(name) if line.sign is not None]
    found = {}
    for line in lines:
        assert not line.values
        assert line.place in ("abstract", "table or figure unconfirmed") or "unconfirmed)" in line.place
        assert not (line.sure and "unconfirmed" in line.source)
        found[line.what, line.y, line.domain, line.sign, line.source, line.x[0]] = line
    assert len(found) == len(lines)
    claims = recipes.RECIPES[name].claims
    wanted = set()
    for claim in claims:
        at = RATES[claim.band]
        at = "from the first to the last rate" if claim.kind == "shrink" else at
        at = "each encoder" if name == "practical_models" else at
        wanted.add((claim.words, claim.y, claim.domain, claim.sign, claim.source, at))
    assert {*found} == wanted


def test_what_is_published_is_a_line_for_each_value() -> None:
    table: Any = published.tabulate(published.read_published("noise_rates"))
    assert list(table.columns) == published.COLUMNS
    own = table[table["data"] == "imagenet2012"]
    assert list(zip(own["at"], own["value"], strict=True))[::4] == [(0, 79.96), (0.3, 73.11)]
    assert set(own["sure"]) == {"sure"}
    signs = table[table["value"].isna()]
    assert list(zip(signs["domain"], signs["at"], signs["sign"], strict=True)) == [
        ("id", "rates above 0 %, up to 10 %", 0), ("id", "rates above 10 %", -1), ("ood", "rates above 0 %", -1),
    ]  # fmt: skip
    assert set(signs["place"]) == {"figure 2 (number unconfirmed)"}


def test_latex_is_escaped() -> None:
    assert latex.escape("a_b & 5 % ± 1 \\") == r"a\_b \& 5 \% $\pm$ 1 \textbackslash{}"


def test_power_by_hand(study: Study) -> None:
    # differences of n seeds with sd 0.02: a half-width of t(0.975) · sd / √n, and t(0.8) more for 80 % of the cases
    seeds = {(i, i): 0.02 * d for i, d in enumerate((-1, -1, 0, 1, 1))}
    found = compare("", unit("accuracy"), dict.fromkeys(seeds, 0.0), seeds)
    assert power.find_smallest(found.parts, 1) == pytest.approx((2.7764 + 0.9410) * 0.02 / np.sqrt(5), rel=1e-3)
    (part,) = power.expect_parts(found, 20)
    assert part == (pytest.approx(0.02**2 / 20), 19)
    assert 33 <= power.count_seeds(found, 1) <= 35  # (1.96 + 0.84)² · 2² = 31.4, and a little for the t quantiles
    with_rows = found._replace(parts=(*found.parts, Part(0.01**2, 700)))
    assert power.count_seeds(with_rows, 1) == 0  # test rows alone leave ±2 points
    again = compare("", unit("accuracy"), dict.fromkeys(seeds, 0.0), seeds, redrawn=0.3)
    assert power.count_seeds(again, 1) == 0  # overlapping test rows leave sd²·0.3/0.7, however many seeds
    said = describe_plan("noise_rates", plan(study.cells, (0.0, 0.05, 0.3), 9))
    assert len(said) == 2  # of the probe, in-domain and out-of-domain
    assert "30 % noise against 0 %: 9 seeds and" in said[0]
    assert "(4 comparisons; spread of 5 finished seeds)" in said[0]


def test_power_of_a_pilot_is_that_of_the_whole_study(tmp_path: Path) -> None:
    pilot = small(tmp_path / "x", rates=(0.0, 0.3), seeds=(0, 1), heads=HEADS, score=score)
    finished = read_finished([pilot])[0]
    whole = plan(finished, (0.0, 0.05, 0.1, 0.2, 0.3), 5)
    for name, comparisons in (("noise_rates", 2 + 2 + 4), ("nmtune", 4 * 4 + 4)):
        said = describe_plan(name, whole)
        assert all("5 seeds and" in line and f"({comparisons} comparisons; spread of 2 " in line for line in said)
    assert any(line.startswith("out-of-domain gain of NMTune over the MLP, 30 % noise") for line in said)
    assert "2 seed(s) show nothing" in describe_plan("nmtune", plan(finished, (0.0, 0.3), 2))[0]


def test_a_study_heads_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small(tmp_path / "x", rates=(0.0, 0.3), seeds=(0, 1, 2), heads=HEADS, score=score)
    names = [path.name for path in folder.iterdir()]
    report.build([folder], folder, study="noise_rates", runs=names)
    page = (folder / "report.html").read_text("utf-8")
    assert page.index("How does transfer change with the rate") < page.index("What this shows")
    assert "published: lower; shown." in page
    assert "out-of-domain score of the probe" in capsys.readouterr().out.lower()
    report.build([folder], folder, study="noise_rates", runs=[])
    assert "none of the finished runs has its numbers" in capsys.readouterr().err


def test_an_unknown_study_is_named() -> None:
    with pytest.raises(UserError, match="study='figure_2'"):
        recipes.check_name("figure_2")
