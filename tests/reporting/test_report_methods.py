"""The report of a study that compares methods on features from files."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import scipy.stats

from configs import features as experiment
from nml_jax import settings
from nml_jax.errors import UserError
from nml_jax.evals.metrics import Shares
from nml_jax.reporting import answers
from nml_jax.reporting.page import show
from nml_jax.reporting.statistics import choose_method, paired
from nml_jax.reporting.statistics.choose_method import Contest
from nml_jax.reporting.statistics.grouping import find_studies
from nml_jax.reporting.statistics.studies import Method, Study
from nml_jax.reporting.tables import methods
from nml_jax.runs.files import write_atomic, write_json
from nml_jax.runs.finished import read_finished
from nml_jax.runs.heads import correct_path, read_correct, write_correct
from nml_jax.runs.rows import Row, read_rows, write_rows
from nml_jax.stages import report
from nml_jax.tuning import diagnosis
from tests.reporting.test_report import read_text


def test_tests_that_are_redrawn_overlap():
    """Three seeds with differences 0, 1, 2: mean 1, sd 1; a third held out adds h/(1 − h) = 1/2 to 1/3."""
    a = {(seed, seed): 0.0 for seed in range(3)}
    b = {(seed, seed): float(seed) for seed in range(3)}
    plain, redrawn = (paired.compare("", paired.PERCENT, a, b, redrawn=h) for h in (0.0, 1 / 3))
    assert plain.error == pytest.approx(np.sqrt(1 / 3))
    assert redrawn.error == pytest.approx(np.sqrt(1 / 3 + 1 / 2))
    assert (redrawn.high - redrawn.low) / (plain.high - plain.low) == pytest.approx(np.sqrt((1 / 3 + 1 / 2) * 3))


def test_seeds_that_agree_by_chance_are_no_certainty():
    """Each holds out rows of its own: their spread is at least what the rows of one of them say."""
    a = {(seed, seed): 0.5 for seed in range(3)}
    b = {(seed, seed): 0.6 for seed in range(3)}
    pair = paired.compare("", paired.PERCENT, a, b, [paired.Part(0.01, 19)], redrawn=1 / 3)
    assert pair.error == pytest.approx(0.1 * np.sqrt(1 / 3 + 1 / 2))
    assert pair.sign == 0


PAPER = Method("nmtune", "paper")
METHODS = (("lbfgs", None), ("linear", None), ("mlp", None), ("nmtune", "paper"), ("nmtune", "code"))
TESTS = (("photo", "id", 501), ("art", "ood", 2048), ("sketch", "ood", 900))
GAINS = {("nmtune", "paper", "art"): 0.03, ("nmtune", "paper", "sketch"): 0.04, ("mlp", None, "photo"): -0.05}
Score = Callable[[str, str | None, str, float], float]


def score(method: str, preset: str | None, split: str, draw: float) -> float:
    """A world in which NMTune `paper` helps out of domain, the MLP hurts in it, and the rest is luck."""
    base = {"photo": 0.95, "holdout": 0.95, "art": 0.52, "sketch": 0.4}[split]
    return base + GAINS.get((method, preset, split), 0.0) + 0.002 * draw


def write_experiment(
    folder: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    methods: Sequence[tuple[str, str | None]] = METHODS,
    tests: Sequence[tuple[str, str, int]] = TESTS,
    score: Score = score,
    shares: Sequence[float] = (1.0,),
    verdicts: Sequence[str] = ("no difference shown between NMTune and the tuned linear probe on held-out rows",),
    diagnosed: bool = True,
    train: str = "photo.npz",
    samples: Mapping[str, int] = MappingProxyType({}),
    recorded: bool = True,
    values: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Finished runs as the stages features, tune and diagnose leave them, with made-up numbers.

    A head gets the easiest rows of a test right, as many as its score says. Args: samples: rows that a method was
    trained on, if not all. recorded: whether it is on record which rows those are. values: of the config.
    """
    for seed in seeds:
        config = experiment.get_config().unlock()
        config.update_from_flattened_dict({"tune.epochs": 30, "tune.steps": 300, "tune.batch": 64})
        config.seed = config.noise_seed = seed
        config.update_from_flattened_dict(dict(values))
        config.features.train, config.features.ood = train, "art.npz;sketch.npz"
        config.features.test = "" if tests[0][0] == "holdout" else "test.npz"
        cell = folder / f"seed={seed}"
        cell.mkdir(parents=True)
        rng = np.random.default_rng(seed)
        origin: dict[str, Any] = {
            "run": cell.name, "step": 0, "weights": "raw", "noise_kind": "unknown", "noise_asked": None,
            "noise_realised": None, "noise_seed": seed, "seed": seed, "objective": "unknown", "model": "black box",
            "task": "features",
        }  # fmt: skip
        rows: list[Row] = []
        spectra = []
        for split, domain, n in (("train", "id", 1169), *tests):
            for mode in ("paper", "code"):
                s = 50 * np.exp(-0.3 * np.arange(24) - 0.01 * rng.random())
                where: dict[str, Any] = {"split": split, "domain": domain, "layer": "features"}
                spectra.append({"task": "features", **where, "mode": mode, "s": s.tolist()})
                more: dict[str, Any] = {"stage": "features", "output": "features", "spectrum_mode": mode, "n_test": n}
                rows += [Row(**origin, **where, **more, metric=name, value=v) for name, v in measures(s).items()]
        for share in shares:
            for method, preset in methods:
                shared: dict[str, Any] = {
                    "stage": "tune", "n_train": samples.get(method, 1169), "train_share": share,
                    "downstream_noise": 0.0, "views": 1,
                    "method": method, "preset": preset, "head_seed": seed, "hyper": {"lr": 0.01},
                }  # fmt: skip
                correct = {}
                for split, domain, n in tests:
                    right = round(n * score(method, preset, split, rng.standard_normal()))
                    correct[split], value = easy(n) < right, right / n
                    where = {"split": split, "domain": domain, "n_test": n}
                    for metric, less in (("accuracy", 0), ("macro_f1", 0.01), ("mean_per_class", 0.02)):
                        rows.append(Row(**origin, **shared, **where, metric=metric, value=value - less))
                    where |= {"layer": "features", "output": "Z", "spectrum_mode": "paper"}
                    rows += [Row(**origin, **shared, **where, metric=name, value=v)
                             for name, v in measures(np.arange(1, 20)).items()]  # fmt: skip
                if recorded:
                    write_correct(correct_path(cell, shared | {"task": "features"}), correct)
        if diagnosed:
            found = {"sve": 5.5, "stable_rank": 3.25 + seed, "fisher_ratio": 0.4}
            where = {"split": "train", "domain": "id", "layer": "features", "output": "features", "stage": "diagnose"}
            rows += [Row(**origin, **where, metric=f"diagnosis/{k}", value=v) for k, v in found.items()]
            rows.append(Row(**origin, **where, metric="diagnosis/gain", value=0.01))
            entry = {"task": "features", "layer": "features", "verdict": verdicts[seed % len(verdicts)],
                     "measures": found, "probe": [0.9, 0.92], "nmtune": [0.92, 0.92], "interval": [-0.03, 0.05],
                     "n": 1169, "dim": 24, "num_classes": 7, "rows": 1000}  # fmt: skip
            write_json(cell / "diagnosis.json", [entry])
        write_json(cell / "config.json", settings.to_json(config))
        write_json(cell / "spectra.json", spectra)
        record = {"inputs": "a", "output": "b", "version": 1, "seconds": 3.25, "revision": "abc1234",
                  "finished": "2026-11-22T10:00:00+00:00"}  # fmt: skip
        done = dict.fromkeys(("features", "tune", "diagnose"), record)
        write_json(cell / "run.json", {"stages": done, "environment": {"device": "1 × cpu"}})
        write_atomic(cell / "rows.jsonl", "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))
    return folder


def easy(n: int) -> np.ndarray:
    """The rank of every row of a test by how easy it is."""
    return np.random.default_rng(n).permutation(n)


def measures(s: np.ndarray) -> dict[str, float]:
    p = s / s.sum()
    return {"sve": float(-(p * np.log(p)).sum()), "lsvr": -float(np.log(p.max())), "top_share": float(p.max())}


def study_of(folder: Path) -> Study:
    (study,) = find_studies(read_finished([folder])[0])
    return study


def contest(folder: Path, **fields: Any) -> Contest:
    (found,) = choose_method.find_contests(study_of(write_experiment(folder, **fields)))
    return found


def gaining(gains: Mapping[tuple[str, str], float], spread: float = 0.0005) -> Score:
    """A world with these gains (method, split), and else the same numbers for all."""

    def score(method: str, preset: str | None, split: str, draw: float) -> float:
        return 0.5 + gains.get((method, split), 0.0) + (spread * draw if method != "lbfgs" else 0.0)

    return score


def chosen(found: Contest) -> dict[str, str]:
    return {test.split: str(found.recommended(test)) for test in found.decided}


FEW = (("lbfgs", None), ("linear", None), ("mlp", None), ("skd", None))


# ---- statistics


def test_p_value_and_widened_interval_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 0.02, 6), rng.normal(0.52, 0.02, 6)
    first, second = ({(i, i): float(x) for i, x in enumerate(v)} for v in (a, b))
    pair = paired.compare("", paired.PERCENT, first, second)
    test = scipy.stats.ttest_rel(b, a)
    assert pair.p == pytest.approx(test.pvalue)
    plain, wide = (test.confidence_interval(level) for level in (0.95, 1 - 0.05 / 7))
    assert (pair.low, pair.high) == (pytest.approx(plain.low), pytest.approx(plain.high))
    widened = pair.corrected(7)
    assert (widened.low, widened.high) == (pytest.approx(wide.low), pytest.approx(wide.high))
    assert widened.p == pair.p
    assert pair.corrected(1).low == pytest.approx(pair.low)


def test_numbers_that_cannot_vary_show_nothing() -> None:
    """Two solved probes are the same in every seed: without test rows there is nothing to judge a difference by."""
    values = {(i, i): 0.5 for i in range(3)}
    pair = paired.compare("", paired.PERCENT, values, {k: v + 0.1 for k, v in values.items()})
    assert np.isnan(pair.p)
    assert pair.verdict("worse", "better") == "no difference shown"


def rows(d: np.ndarray) -> Shares:
    """The differences of an accuracy on every row."""
    return Shares(d, np.ones(1), np.full(1, len(d)))


def judged(d: np.ndarray) -> paired.Comparison:
    """The comparison of two heads by the differences d [seeds, rows]."""
    seeds = {(i, i): float(x) for i, x in enumerate(d.mean(1))}
    return paired.compare(
        "", paired.PERCENT, dict.fromkeys(seeds, 0.0), seeds, paired.add_rows([(1.0, rows(d.mean(0)))])
    )


def test_standard_error_is_that_of_crossed_seeds_and_rows() -> None:
    """By hand: rows differ by 1, 0, 0, 0 and 0, 1, 0, 0, so seeds by 1/4 each, and rows in the mean by ½, ½, 0, 0.

    With a row at 1 and one at −1 the six have the mean 1/6 and the sum of squares 2.5, so (2.5 − 1/6)/5 is s².
    """
    d = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0.0]])
    d[2] = d[:2].mean(0)
    pair = judged(d)
    assert [part.variance for part in pair.parts] == [0, pytest.approx((2.5 - 1 / 6) / 5 / 6)]
    assert pair.parts[1].df == 3
    half = scipy.stats.t.ppf(0.975, 3) * pair.error
    assert (pair.low, pair.high) == (pytest.approx(0.25 - half), pytest.approx(0.25 + half))
    mixed = judged(np.array([[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0.0]]))
    weights = np.array([part.variance for part in mixed.parts]) / mixed.error**2
    quantile = weights @ scipy.stats.t.ppf(0.975, [2, 3])
    assert mixed.high - mixed.low == pytest.approx(2 * quantile * mixed.error)
    at_p = weights @ scipy.stats.t.isf(mixed.p / 2, [2, 3])
    assert at_p * mixed.error == pytest.approx(mixed.difference, rel=1e-6)


@pytest.mark.parametrize(
    ("n", "own", "luck", "seeds"),
    [
        (200, 3.0, 0.0, 5),
        (200, 0.1, 0.0, 5),
        (30, 0.5, 0.0, 3),
        (500, 0.05, 0.2, 3),
        (200, 0.2, 0.5, 5),
        (500, 1.0, 0.5, 3),
    ],
)
@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_claims_keep_their_level_and_intervals_cover(n: int, own: float, luck: float, seeds: int, gain: float) -> None:
    """Two heads of 80 % that share what is easy, are each good at rows of their own, and have luck in training or none.

    For heads without luck an interval over seeds alone would have no length, and claim every difference.
    """
    rng = np.random.default_rng(0)
    claims, covered, trials = 0, 0, 400
    scale = np.sqrt(1 + own**2 + 1.09 * luck**2)
    truth = scipy.stats.norm.cdf(0.84 + gain / scale) - scipy.stats.norm.cdf(0.84)
    for _ in range(trials):
        shared = 0.84 * scale + rng.normal(size=n)
        right = [
            shared + better + own * rng.normal(size=n) + luck * rng.normal(size=(seeds, n))
            + 0.3 * luck * rng.normal(size=(seeds, 1)) > 0
            for better in (0.0, gain)
        ]  # fmt: skip
        pair = judged(right[1].astype(float) - right[0])
        claims += pair.sign != 0
        covered += pair.low <= truth <= pair.high
    if not gain:
        assert claims <= 0.05 * trials + 2 * np.sqrt(0.05 * 0.95 * trials)
    assert covered >= 0.9 * trials


def test_tests_of_equal_length_count_as_the_same_rows() -> None:
    """75 corruptions of one set of images are no 75 independent tests; nor does it harm tests that are."""
    rng = np.random.default_rng(0)
    d = rng.choice([-1.0, 0, 0, 0, 1], 5000)
    (once,), (often,) = paired.add_rows([(1.0, rows(d))]), paired.add_rows([(1 / 75, rows(d))] * 75)
    assert often.variance == pytest.approx(once.variance)
    (apart,) = paired.add_rows((1 / 75, rows(rng.permutation(d))) for _ in range(75))
    assert apart.variance == pytest.approx(once.variance / 75, rel=0.1)
    assert len(paired.add_rows([(0.5, rows(d)), (0.5, rows(d[1:]))])) == 2


def test_shares_alone_bound_what_rows_add() -> None:
    """Heads right on 80 and 90 of 100 rows: √(0.8·0.2 + 0.9·0.1)/10 = 0.05, less two rows; above what rows say."""
    (part,) = paired.bound_rows([(1.0, 0.8, 0.9, 100)])
    assert np.sqrt(part.variance) == pytest.approx(0.05, rel=0.02)
    rank = np.arange(100)
    (exact,) = paired.add_rows([(1.0, rows((rank < 90).astype(float) - (rank < 80)))])
    assert exact.variance < part.variance
    assert paired.bound_rows([]) == []


@pytest.mark.parametrize(("hits", "n"), [(475, 501), (0, 10), (7, 7), (1, 3)])
def test_wilson_interval_is_that_of_scipy(hits: int, n: int) -> None:
    expected = scipy.stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert paired.find_wilson_interval(hits / n, n) == (
        pytest.approx(expected.low, abs=1e-12),
        pytest.approx(expected.high, abs=1e-12),
    )


# ---- which rows were right


def test_which_rows_were_right_is_kept_bit_by_bit(tmp_path: Path) -> None:
    correct = {"a/b": np.random.default_rng(0).random(77) < 0.7, "far": np.ones(8, bool)}
    row = Row(run="r", stage="tune", step=0, weights="raw", noise_kind="none", noise_asked=0.0, noise_realised=0.0,
                  noise_seed=0, seed=0, objective="o", model="m", metric="accuracy", value=0.5, task="t", split="a/b",
                  domain="id", n_test=77, layer="deep", train_share=0.5, method="nmtune", preset="paper",
                  head_seed=3)  # fmt: skip
    assert read_correct(tmp_path, row) is None
    path = correct_path(tmp_path, vars(row))
    assert path == tmp_path / "correct/tune/t/deep/nmtune,paper,share=0.5,seed=3.safetensors"
    write_correct(path, correct)
    np.testing.assert_array_equal(read_correct(tmp_path, row), correct["a/b"])
    before = path.read_bytes()
    write_correct(path, dict(reversed(correct.items())))
    assert path.read_bytes() == before
    assert read_correct(tmp_path, dataclasses.replace(row, metric="macro_f1")) is None
    for damage in (before[:20], before[:-4]):
        path.write_bytes(damage)
        with pytest.raises(UserError, match="is damaged"):
            read_correct(tmp_path, row)
    write_correct(path, {"a/b": np.ones(80, bool)})
    assert read_correct(tmp_path, row) is not None
    write_correct(path, {"a/b": np.ones(81, bool)})
    with pytest.raises(UserError, match="11 bytes for 77 rows"):
        read_correct(tmp_path, row)


def test_deterministic_heads_differ_by_what_their_rows_allow(tmp_path: Path) -> None:
    """Three rows of 501 are a difference of nobody knows what, though every seed says the same."""
    few, many = (
        contest(tmp_path / f"{gain}", methods=FEW[:2], tests=TESTS[:1], score=gaining({("linear", "photo"): gain}, 0))
        for gain in (0.006, 0.04)
    )
    for found, verdict in ((few, "no difference shown"), (many, "better")):
        (versus,) = found.versus.values()
        assert versus.plain.parts[0].variance == 0
        assert versus.verdict == verdict
    assert 0.001 < few.versus[Method("linear"), few.tests[0]].plain.p < 0.999


def test_without_the_rows_on_record_intervals_are_wider_and_that_is_said(tmp_path: Path) -> None:
    """As runs of an earlier version: 20 of 501 rows are no gain if heads erred independently."""
    how: dict[str, Any] = {"methods": FEW[:2], "tests": TESTS[:1], "score": gaining({("linear", "photo"): 0.04}, 0)}
    known, old = (contest(tmp_path / f"{on}", recorded=on, **how) for on in (True, False))
    (of_rows,), (bound,) = known.versus.values(), old.versus.values()
    assert (of_rows.sign, bound.sign) == (1, 0)
    assert bound.plain.high - bound.plain.low > 2 * (of_rows.plain.high - of_rows.plain.low)
    assert "not on record" in answers.write_caution(old)
    assert "not on record" not in answers.write_caution(known)


# ---- the rule


def test_a_method_is_recommended_where_it_is_shown_to_be_better(tmp_path: Path) -> None:
    found = contest(tmp_path / "x")
    assert tuple(map(str, found.methods)) == (
        "L-BFGS probe",
        "linear probe",
        "MLP",
        "NMTune (paper)",
        "NMTune (code/1view)",
    )
    assert [(test.split, test.domain) for test in found.tests] == [("photo", "id"), ("art", "ood"), ("sketch", "ood")]
    assert [(test.split, test.domain) for test in found.decided] == [("photo", "id"), ("mean", "ood")]
    assert chosen(found) == {"photo": "L-BFGS probe", "mean": "NMTune (paper)"}
    pattern = (
        r"Use the L-BFGS probe in-domain \(photo\), where no other method can be recommended; NMTune \(paper\) "
        r"out-of-domain \(mean over 2 tests\), \+3\.\d\d points \(\+[12]\.\d\d to \+[45]\.\d\d\) over the L-BFGS "
        r"probe\. In brackets: 95 % intervals over 5 seeds and other test rows, widened for 4 methods × 2 domains\."
    )
    assert re.fullmatch(pattern, answers.write_answer(found))
    signs = {(str(m), test.split): found.versus[m, test].sign for m in found.methods[1:] for test in found.decided}
    assert {of: sign for of, sign in signs.items() if sign} == {("NMTune (paper)", "mean"): 1, ("MLP", "photo"): -1}


def test_a_method_that_is_worse_elsewhere_is_not_recommended(tmp_path: Path) -> None:
    gains = {("skd", "art"): 0.05, ("skd", "sketch"): 0.05, ("skd", "photo"): -0.03}
    found = contest(tmp_path / "x", methods=FEW, score=gaining(gains))
    assert found.versus[Method("skd"), found.decided[1]].sign == 1
    assert set(chosen(found).values()) == {"L-BFGS probe"}


def test_one_of_many_tests_decides_nothing(tmp_path: Path) -> None:
    """A method is worse on one of 20 tests and better in their mean; nor does one good test make a claim."""
    tests = (TESTS[0], *((f"t{i}", "ood", 400 + i) for i in range(20)))
    gains = {("skd", f"t{i}"): 0.04 for i in range(1, 20)} | {
        ("skd", "t0"): -0.05,
        ("mlp", "t3"): 0.06,
        ("mlp", "t4"): -0.06,
    }
    found = contest(tmp_path / "x", methods=FEW, tests=tests, score=gaining(gains, 0.002), seeds=(0, 1, 2))
    assert chosen(found) == {"photo": "L-BFGS probe", "mean": "SKD"}
    assert answers.write_answer(found).count("use ") + answers.write_answer(found).count("Use ") == 1
    text = "\n".join(methods.write_text(found))
    assert "out-of-domain mean" in text
    assert "t3" not in text
    page = show(methods.list_differences(found))
    assert "Differences on each of 20 tests" in page
    titles = [str(method) for method in found.methods]
    verdicts = [line[-1] for line in lines(page) if line[0] in titles and len(line) == 7]
    assert verdicts.count("better") == 1  # SKD in the mean
    assert len([line for line in lines(page) if line[0] in titles and len(line) == 4]) == 3 * 20  # no verdict


def test_doubt_counts_against_a_change() -> None:
    """Differences of 1, 2, 3, 4 and 5 points: t = 4.24, so p = 0.013, enough for 1 method and not for 5."""
    base = {(i, i): 0.5 for i in range(5)}
    for sign, verdict in ((1, "no difference shown"), (-1, "worse")):
        plain = paired.compare("", paired.PERCENT, base, {(i, i): 0.5 + sign * 0.01 * (i + 1) for i in range(5)})
        versus = choose_method.Versus(plain, plain.corrected(5))
        assert plain.p == pytest.approx(0.0132, abs=1e-4)
        assert (plain.sign, versus.wide.sign, versus.verdict) == (sign, 0, verdict)


def test_of_several_better_methods_the_simpler_one_unless_the_gain_is_shown(tmp_path: Path) -> None:
    gains = {("linear", "photo"): 0.0599, ("skd", "photo"): 0.06, ("linear", "art"): 0.02, ("skd", "art"): 0.04}
    found = contest(tmp_path / "x", methods=FEW, tests=TESTS[:2], score=gaining(gains))
    assert chosen(found) == {"photo": "linear probe", "art": "SKD"}


def test_a_winner_over_a_reference_of_fewer_rows_says_so(tmp_path: Path) -> None:
    """What is solved sees one shard of a file that is read in shards."""
    how: dict[str, Any] = {"methods": FEW, "tests": TESTS[:2], "score": gaining({("skd", "art"): 0.04})}
    found = contest(tmp_path / "x", samples={"lbfgs": 300}, **how)
    assert "over the L-BFGS probe (which saw 300 of the 1,169 training rows)" in answers.write_answer(found)
    assert "some methods saw a stratified sample only: the L-BFGS probe 300." in answers.write_rule(found)
    table = show([methods.list_scores(found)])
    assert "trained on" in table
    assert ">300<" in table
    same = contest(tmp_path / "y", **how)
    assert "which saw" not in answers.write_answer(same)
    assert "sample" not in answers.write_rule(same)
    assert "trained on" not in show([methods.list_scores(same)])


def test_no_gain_is_said_plainly(tmp_path: Path) -> None:
    found = contest(tmp_path / "x", score=gaining({}, 0.01), tests=TESTS[:2])
    assert answers.write_answer(found).startswith(
        "Use the L-BFGS probe, in-domain (photo) and out-of-domain (art): none of the 4 other methods is shown to be "
        "better, at best "
    )
    assert " on photo and " in answers.write_answer(found)


def test_what_the_cap_on_steps_leaves_is_said(tmp_path: Path) -> None:
    """Batches of 64: 1,169 rows make 19 steps an epoch, 5,000 rows 79."""
    some = contest(tmp_path / "a")
    assert "at most 30 epochs and 300 steps: 15 epochs of these 1,169 rows." in answers.write_rule(some)
    assert answers.warn_of_few_epochs(some) == ""
    many = contest(tmp_path / "b", samples=dict.fromkeys((method for method, _ in METHODS), 5000))
    assert "300 steps: 3 epochs of these 5,000 rows." in answers.write_rule(many)
    said = (
        "What is trained by gradient saw these 5,000 rows 3 times only, and may gain from more: 10 epochs are "
        "--config.tune.steps=790."
    )
    assert answers.warn_of_few_epochs(many) == said
    assert said in methods.write_text(many)
    report.build([tmp_path / "b"], tmp_path / "b")
    assert said in (tmp_path / "b" / "report.html").read_text()
    for cell in many.study.cells:  # validation was best before the third
        cell.rows[:] = [dataclasses.replace(row, hyper={"epochs": 2.0}) for row in cell.rows]
    assert answers.warn_of_few_epochs(many) == ""
    none = contest(tmp_path / "c", samples=dict.fromkeys((method for method, _ in METHODS), 600))
    assert "at most 30 epochs and 300 steps." in answers.write_rule(none)
    assert answers.warn_of_few_epochs(none) == ""


def test_the_cap_on_steps_is_said_of_what_takes_steps_alone(tmp_path: Path) -> None:
    solved = (("lbfgs", None), ("ridge", None))
    found = contest(tmp_path / "a", methods=solved, samples=dict.fromkeys(("lbfgs", "ridge"), 50_000))
    assert "gradient" not in answers.write_rule(found)
    assert answers.warn_of_few_epochs(found) == ""
    one = {"tune.lrs": (0.01,), "tune.cs": (0.1,)}
    found = contest(tmp_path / "b", samples=dict.fromkeys((method for method, _ in METHODS), 50_000), values=one)
    assert (
        "every method has one setting; what is trained by gradient has at most 30 epochs and 300 steps: 1 epoch of "
        in (answers.write_rule(found))
    )


def test_two_seeds_support_no_claim(tmp_path: Path) -> None:
    found = contest(tmp_path / "x", seeds=(0, 1))
    assert answers.write_answer(found) == "Use the L-BFGS probe: with 2 seeds no difference can be shown, that takes 3."
    assert {versus.verdict for versus in found.versus.values()} == {"no claim, n = 2"}
    report.build([tmp_path / "x"], tmp_path / "x")


def test_the_reference_is_the_tuned_probe_that_is_there(tmp_path: Path) -> None:
    methods = [("nmtune", "paper"), ("ridge", None), ("linear", None)]
    assert tuple(map(str, contest(tmp_path / "a", methods=methods).methods)) == (
        "linear probe",
        "ridge probe",
        "NMTune (paper)",
    )
    assert contest(tmp_path / "b", methods=[methods[0], ("mlp", None)]).reference == Method("mlp")


def test_settings_are_contests_of_their_own(tmp_path: Path) -> None:
    found = choose_method.find_contests(study_of(write_experiment(tmp_path / "x", shares=(0.1, 1.0), seeds=(0, 1, 2))))
    assert [c.name for c in found] == ["0.1 of the training data", "1 of the training data"]
    assert answers.write_answer(found[0]).startswith("0.1 of the training data: use ")


def test_only_a_method_better_than_every_other_is_marked(tmp_path: Path) -> None:
    score = gaining({("skd", "art"): 0.08, ("mlp", "art"): 0.04})
    found = contest(tmp_path / "x", methods=FEW, tests=TESTS[:2], score=score)
    photo, art = found.tests
    assert found.best(art) == Method("skd")
    assert found.best(photo) is None
    bold = re.findall("<strong>(.*?)</strong>", show([methods.list_scores(found)]))
    assert len(bold) == 1  # accuracy: macro-F1 and the mean per class have no interval


def test_says_what_seeds_share(tmp_path: Path) -> None:
    fixed = answers.write_caution(contest(tmp_path / "x", seeds=(0, 1, 2)))
    assert "The test sets are the same for every seed" in fixed
    tests = (("holdout", "id", 501), *TESTS[1:])
    drawn = answers.write_caution(contest(tmp_path / "y", seeds=(0, 1, 2), tests=tests))
    assert "A seed redraws which rows are held out, " in drawn
    assert "The test sets that come from files of their own are the same" in drawn


# ---- the page and the other files


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_experiment(tmp_path_factory.mktemp("runs") / "features")
    report.build([folder], folder)
    return folder


def lines(text: str) -> list[list[str]]:
    """The cells of every row of every table."""
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.S)
    return [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)] for row in rows]


def test_page_answers_first_and_has_no_empty_part(built: Path) -> None:
    text = (built / "report.html").read_text("utf-8")
    found = choose_method.find_contests(study_of(built))[0]
    assert "<title>Which head for these features: features</title>" in text
    order = ['id="study-0"', '<section class="verdict"', answers.write_verdict(found)[:40], "<h3>Differences at",
             answers.write_reasons(found)[:40], "<h3>Scores", "<h3>Differences to", "<h3>Spectra", "<h3>Diagnosis",
             'id="run"', 'id="limits"', 'id="rules"', "The rule.", 'id="words"']  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    shown = re.sub(r"<pre>.*?</pre>|<style>.*?</style>|Config of all runs.*?<", "", text, flags=re.S)
    assert not re.search(r"[Nn]oise|[Pp]re-training|unknown|nan\b|None", shown)
    assert "<tbody></tbody>" not in text
    assert "WiSE-FT" not in text
    assert "features.ood</dt><dd>art.npz;sketch.npz" in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_tables_hold_the_numbers(built: Path) -> None:
    found, text = choose_method.find_contests(study_of(built))[0], (built / "report.html").read_text("utf-8")
    rows = lines(text)
    art = found.tests[1]
    values = [np.array(list(found.values(method, art).values())) for method in (PAPER, Method("lbfgs"))]
    (scores,) = [row for row in rows if row[0] == "NMTune (paper)" and len(row) == 13]
    assert scores[7] == f"{100 * values[0].mean():.1f} ± {100 * values[0].std(ddof=1):.1f}"
    assert scores[8] == f"{100 * values[0].mean() - 1:.1f} ± {100 * values[0].std(ddof=1):.1f}"
    assert f"<strong>{scores[4]}</strong>" in text  # the mean over art and sketch
    assert f"<strong>{scores[7]}</strong>" not in text
    gain = np.mean(list(found.values(PAPER, found.decided[1]).values()))
    gain -= np.mean(list(found.values(Method("lbfgs"), found.decided[1]).values()))
    differences = [row for row in rows if row[0] == "NMTune (paper)" and len(row) == 7]
    assert differences[1][1] == f"{100 * gain:+.2f}"
    each = [row for row in rows if row[0] == "NMTune (paper)" and len(row) == 4]
    assert each[0][1] == f"{100 * (values[0] - values[1]).mean():+.2f}"
    assert differences[1][4:] == ["5", "&lt; 0.001", "better"]
    low, high = paired.find_wilson_interval(float(values[0].mean()), 2048)
    assert ["OOD art", "2,048", "NMTune (paper)", f"{100 * values[0].mean():.1f}",
            f"{100 * low:.1f} to {100 * high:.1f}"] in rows  # fmt: skip
    assert "an optimistic one" in text
    spectra = [row[0] for row in rows if len(row) == 4]
    assert spectra.count("F, raw mode") == spectra.count("F, code mode") == 4
    assert spectra.count("Z of NMTune (paper), raw mode") == 3
    assert next(row for row in rows if row[0] == "stable rank")[:2] == ["stable rank", "5.250 ± 1.581"]
    assert ["features/seed=3", "91.0", "92.0", "+1.00", "−3.00 to +5.00", "no difference shown"] in rows


def test_measures_that_decide_nothing_have_intervals_over_seeds(tmp_path: Path) -> None:
    found = contest(tmp_path / "a")
    text = show(methods.list_differences(found))
    test = found.decided[0]
    for method in found.methods:
        values = list(found.values(method, test, "macro_f1").values())
        low, high = scipy.stats.t.interval(0.95, 4, np.mean(values), scipy.stats.sem(values))
        assert f"{100 * low:.1f} to {100 * high:.1f}" in text
    a, b = (found.values(m, test, "macro_f1") for m in (found.reference, Method("mlp")))
    d = np.array([b[seed] - a[seed] for seed in a])
    low, high = scipy.stats.t.interval(0.95, 4, d.mean(), scipy.stats.sem(d))
    assert f"{100 * low:+.2f} to {100 * high:+.2f}".replace("-", "\N{MINUS SIGN}") in text
    assert "paired t-test" not in text
    held = contest(tmp_path / "b", tests=(("holdout", "id", 501),))
    s = held.stat(Method("mlp"), held.decided[0], "macro_f1")
    low, high = paired.find_seed_interval(s, redrawn=0.3)
    assert (high - low) / (2 * 2.7764451051977987 * s.sd) == pytest.approx(np.sqrt(1 / 5 + 3 / 7))
    assert f"{100 * low:.1f} to {100 * high:.1f}" in show(methods.list_differences(held))


def test_the_customary_measure_comes_first(tmp_path: Path) -> None:
    found = contest(tmp_path / "a")
    flowers = dataclasses.replace(found, task="flowers102")
    flowers.study.table.update({key._replace(task="flowers102"): value for key, value in
                                list(flowers.study.table.items()) if key.task == "features"})  # fmt: skip
    plain, customary = (show([methods.list_scores(c)]) for c in (found, flowers))
    assert plain.index("accuracy") < plain.index("mean per class</th>")
    assert customary.index("mean per class</th>") < customary.index("accuracy")
    assert "For this task the mean per class is customary" in customary
    assert "customary" not in plain


def test_diagnosis_says_whether_runs_agree(tmp_path: Path) -> None:
    verdicts = ("NMTune is better than the tuned linear probe on held-out rows", "no difference shown between them")
    for name, given, said in (
        (
            "a",
            verdicts[1:],
            "By cross-validation on the training features: no difference shown between them, in all 3 runs.",
        ),
        (
            "b",
            verdicts,
            "the runs do not agree, so no difference is shown: in 2 of 3 runs, NMTune is better than the tuned",
        ),
    ):
        folder = write_experiment(tmp_path / name, seeds=(0, 1, 2), verdicts=given, methods=FEW[:2], tests=TESTS[:1])
        report.build([folder], folder)
        assert said in (folder / "report.html").read_text("utf-8")
    folder = write_experiment(tmp_path / "c", seeds=(0,), diagnosed=False, methods=FEW[:2], tests=TESTS[:1])
    report.build([folder], folder)
    assert "Diagnosis" not in (folder / "report.html").read_text("utf-8")


def test_every_measure_of_the_diagnosis_has_its_meaning() -> None:
    assert set(methods.MEANINGS) == set(diagnosis.NAMES)


def test_no_statement_stands_twice_and_no_bracket_within_another(built: Path) -> None:
    text = read_text((built / "report.html").read_text("utf-8"))
    assert not re.search(r"\([^()]*\(", text)
    sentences = [s.strip() for s in re.split(r"(?<=[.:])\s", text) if len(s.split()) > 5]
    assert [s for s in set(sentences) if sentences.count(s) > 1] == []


def test_intervals_that_say_nothing_are_replaced_by_what_is_true(tmp_path: Path) -> None:
    """Two seeds that differ by 10 points have a t-interval of 127 points; three rows one of Wilson of 60."""
    values = {(0, 0): 0.6, (1, 1): 0.7}
    for shift, said in ((0.0, "0.00 to 0.00"), (0.2, "two seeds are too few to tell")):
        other = {seed: value + shift * seed[0] for seed, value in values.items()}
        found = paired.compare("", paired.PERCENT, values, other)
        assert found.interval() == said
        assert found.bounds == (said if shift else f"95 % interval {said}")
    rows = paired.compare("", paired.PERCENT, values, values, [paired.Part(0.04, 30)])
    assert rows.interval() == "the test rows are too few to tell"
    wide = paired.compare("", paired.RATIO, values, {seed: 9 * seed[0] for seed in values})
    assert "to" in wide.interval()  # a spectrum has no bounds
    assert "few" not in wide.interval()
    s = paired.Stat(0.97, 0.03, 3)
    assert paired.find_seed_interval(s)[1] > 1
    assert paired.format_interval(paired.find_seed_interval(s), 3) == "three seeds are too few to tell"
    assert paired.format_interval(paired.find_wilson_interval(2 / 3, 3), 3, "row") == "three rows are too few to tell"
    assert paired.format_interval(paired.find_wilson_interval(0.5, 100), 100, "row") == "40.4 to 59.6"
    assert paired.format_interval((np.nan, np.nan), 1) == "–"
    assert paired.format_difference((-0.3, 0.25), 12) == "12 folds are too few to tell"

    def unlike(method: str, preset: str | None, split: str, draw: float) -> float:
        return min(0.98, 0.75 + 0.15 * draw * (method == "mlp"))

    folder = write_experiment(tmp_path / "x", seeds=(0, 1, 2), methods=FEW, tests=TESTS[:2], score=unlike)
    report.build([folder], folder)
    text = (folder / "report.html").read_text("utf-8")
    assert "three seeds are too few to tell" in text
    for low, high in re.findall(r">(\d+\.\d) to (\d+\.\d)<", text):
        assert float(low) >= 0
        assert float(high) <= 100
        assert float(high) - float(low) <= 40


def test_figure_tells_verdicts_apart(built: Path) -> None:
    text = (built / "report.html").read_text("utf-8")
    labels = [label for label in re.findall(r'aria-label="([^"]*)"', text) if "points of accuracy over" in label]
    assert len(labels) == 2
    assert re.search(r"NMTune \(paper\) \+3\.\d*, better; NMTune \(code/1view\) \S+ no difference shown$", labels[1])
    assert re.search(r"MLP -\d\.\d*, worse", labels[0])


def test_one_method_or_none_is_a_report_without_comparisons(tmp_path: Path) -> None:
    for name, some in (("one", METHODS[1:2]), ("none", ())):
        folder = write_experiment(tmp_path / name, methods=some, seeds=(0, 1, 2))
        report.build([folder], folder)
        text = (folder / "report.html").read_text("utf-8")
        assert ("Use the linear probe: no other method was run." in text) == bool(some)
        assert report.summarise(folder).endswith("no other method was run." if some else "")
        shown = re.sub(r"<pre>.*?</pre>|<style>.*?</style>|Config of all runs.*?<", "", text, flags=re.S)
        assert not re.search(r"[Nn]oise|[Bb]onferroni|unknown|nan\b|[Bb]old", shown)
        assert "<h3>Spectra" in text
        assert "<h3>Diagnosis" in text


def test_wise_ft_is_a_curve(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "x", seeds=(0, 1), methods=(("lbfgs", None), ("lora", None)), diagnosed=False)
    for cell in folder.iterdir():
        rows = [row for row in read_rows(cell) if row.stage == "tune"]
        lora = [row for row in rows if (row.method, row.metric) == ("lora", "accuracy")]
        more = [dataclasses.replace(row, wise_alpha=share, value=0.2 + share / 2 + row.seed / 100)
                for row in lora for share in (0, 0.5, 1)]  # fmt: skip
        write_rows(cell, "tune", [*rows, *more])
    report.build([folder], folder)
    text = (folder / "report.html").read_text("utf-8")
    assert "<h3>WiSE-FT</h3>" in text
    for domain in ("in-domain", "out-of-domain"):
        assert f"Accuracy, {domain} (%), by share of the tuned weights: LoRA 20.5 to 70.5 (means, 0 to 1)" in text


def test_text_summary_ends_with_the_answer(built: Path) -> None:
    found = choose_method.find_contests(study_of(built))[0]
    text = report.summarise(built).splitlines()
    assert text[-1] == answers.write_answer(found)
    assert "art (out-of-domain), 2,048 rows" in text
    (line,) = [line for line in text if line.endswith("worse")]
    assert line.split()[0] == "MLP"
    assert max(map(len, text[:-1])) <= 100


def test_summary_csv_carries_everything(built: Path) -> None:
    text = (built / "summary.csv").read_text("utf-8")
    for part in ("diagnosis/fisher_ratio,features,train", "macro_f1,features,sketch,ood,,,NMTune (code/1view)",
                 "sve,features,art,ood,Z,paper,MLP", "lsvr,features,train,id,features,code"):  # fmt: skip
        assert part in text


def test_other_files_are_another_study(tmp_path: Path) -> None:
    folders = [write_experiment(tmp_path / name, seeds=(0, 1, 2), methods=FEW[:2], tests=TESTS[:1],
                                train=f"{name}.npz") for name in "ab"]  # fmt: skip
    found = find_studies(read_finished(folders)[0])
    assert [study.title for study in found] == ["features, features.train = a.npz", "features, features.train = b.npz"]
    assert [len(study.conditions) for study in found] == [1, 1]
