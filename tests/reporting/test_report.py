import csv
import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from configs import common
from nml_jax import settings
from nml_jax.errors import UserError
from nml_jax.report import main
from nml_jax.reporting import claims, figures, plots
from nml_jax.reporting.statistics import paired
from nml_jax.reporting.statistics.grouping import find_studies
from nml_jax.reporting.statistics.studies import MEAN, Key, Method
from nml_jax.reporting.tables import conditions
from nml_jax.runs.files import write_atomic, write_json
from nml_jax.runs.finished import read_finished
from nml_jax.runs.heads import correct_path, write_correct
from nml_jax.runs.metrics import read_metrics
from nml_jax.runs.rows import Row, hash_rows, read_rows, write_rows
from nml_jax.stages import report

HEADS = (("linear", None), ("mlp", None), ("nmtune", "paper"), ("nmtune", "code"))
EASY = np.random.default_rng(0).permutation(360)  # the rank of a test row by how easy it is: those are right first
SPLITS = (("test", "id"), ("test/shift", "ood"), ("test/blur", "ood"))


def accuracy(rate: float, draw: float, split: str, method: str, preset: str | None) -> float:
    """A world in which noise hurts, more so out-of-domain, and NMTune's `paper` preset helps out-of-domain only."""
    base = 0.95 - 0.2 * rate if split == "test" else 0.8 - 0.7 * rate
    gain = {"mlp": 0.004}.get(method, 0.0) + (0.03 if preset == "paper" and split != "test" else 0.0)
    return base + gain + 0.004 * draw


def write_cell(
    folder: Path,
    *,
    rate: float = 0.1,
    seed: int = 0,
    name: str = "digits",
    override: Mapping[str, Any] = MappingProxyType({}),
    tasks: Sequence[str] = ("digits",),
    splits: Sequence[tuple[str, str]] = SPLITS,
    heads: Sequence[tuple[str, str | None]] = HEADS,
    head_seeds: int = 2,
    score: Callable[..., float] = accuracy,
    width: int = 24,
    stages: Sequence[str] = ("pretrain", "extract", "tune"),
    axes: Sequence[str] = (),
    hyper: Mapping[str, float] = MappingProxyType({"lr": 0.01, "weight_decay": 0.0}),
) -> Path:
    """A finished run as the stages leave it, with made-up numbers."""
    config = common.get_config()
    config.name, config.noise, config.seed, config.noise_seed = name, rate, seed, seed
    config.downstream.tasks = tuple(tasks)
    config.update_from_flattened_dict(dict(override))
    cell = folder / ",".join([f"noise={rate:g}", f"seed={seed}", *(f"{key}={override[key]}" for key in axes)])
    cell.mkdir(parents=True)
    rng = np.random.default_rng([seed, round(1e4 * rate), len(tasks)])
    origin = {"run": cell.name, "step": 900, "weights": "raw", "noise_kind": config.noise_kind, "noise_asked": rate,
              "noise_realised": rate, "noise_seed": seed, "seed": seed, "objective": "supervised",
              "model": "resnet18"}  # fmt: skip
    rows: list[Row] = []

    def add(**fields: Any) -> None:
        rows.append(Row(**origin, **fields))

    for metric, value in (("accuracy", 0.99 - 0.3 * rate), ("macro_f1", 0.98 - 0.3 * rate)):
        value += 0.003 * rng.standard_normal()
        add(stage="pretrain", metric=metric, value=value, task="pretrain", split="validation", domain="id", n_test=180)
    if rate:
        add(stage="pretrain", metric="noisy_fit", value=0.3, task="pretrain", split="train", domain="id", n_test=50)
    spectra = []
    for task in tasks:
        for split, domain in (("train", "id"), *splits):
            for mode in ("paper", "code"):
                decay = (0.35 if mode == "paper" else 0.25) * (1 - rate) + 0.01 * rng.standard_normal()
                s = 50 * np.exp(-decay * np.arange(width))
                spectra.append({"task": task, "split": split, "domain": domain, "layer": "features", "mode": mode,
                                "s": [float(f"{x:.6g}") for x in s]})  # fmt: skip
                for metric, value in measures(s).items():
                    add(stage="extract", metric=metric, value=value, task=task, split=split, domain=domain,
                        layer="features", output="features", spectrum_mode=mode, n_test=400)  # fmt: skip
    for task in tasks if "tune" in stages else ():
        draws = rng.standard_normal(len(splits))
        for method, preset in heads:
            for head_seed in range(seed, seed + head_seeds):
                shared = {"stage": "tune", "task": task, "n_train": 700, "train_share": 1.0, "downstream_noise": 0.0,
                          "method": method, "preset": preset, "head_seed": head_seed, "views": 1,
                          "hyper": dict(hyper)}  # fmt: skip
                correct = {}
                for (split, domain), draw in zip(splits, draws, strict=True):
                    value = score(rate, draw + 0.3 * rng.standard_normal(), split, method, preset)
                    correct[split] = 360 * value > EASY
                    where = {"split": split, "domain": domain, "n_test": 360}
                    for metric, less in (("accuracy", 0.0), ("macro_f1", 0.01), ("mean_per_class", 0.005)):
                        add(**shared, **where, metric=metric, value=value - less, layer="features")
                    for metric, value in measures(50 * np.exp(-0.3 * np.arange(width))).items():
                        add(
                            **shared,
                            **where,
                            metric=metric,
                            value=value,
                            layer="features",
                            output="Z",
                            spectrum_mode="paper",
                        )
                write_correct(correct_path(cell, shared), correct)
    write_json(cell / "config.json", settings.to_json(config))
    sha = hashlib.sha256(f"{rate} {seed}".encode()).hexdigest()
    write_json(cell / "noise.json", {"kind": config.noise_kind, "seed": seed, "asked": rate, "realised": rate,
                   "n": 720, "count": round(720 * rate), "noisy_sha256": sha, "clean_sha256": sha[::-1],
                   "transitions": None})  # fmt: skip
    done = {stage: {"inputs": sha, "output": sha, "version": 1, "seconds": 3.25, "revision": "abc1234",
                    "finished": f"2026-11-21T10:0{seed}:00+00:00"} for stage in stages}  # fmt: skip
    environment = {"device": "1 × cpu (cpu, 2 cores)", "python": "3.11.2", "jax": "0.10.2", "revision": "abc1234"}
    write_json(cell / "run.json", {"stages": done, "environment": environment})
    write_atomic(cell / "rows.jsonl", "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))
    lines = []
    for step in range(20, 601, 20):
        loss = (1.5 - rate) * np.exp(-step / 150) + rate + 0.02 * rng.standard_normal()
        lines.append(
            {"step": step, "time": 1.0, "epoch": step / 20, "train/loss": loss, "train/accuracy": 1 - loss / 2}
        )
        if step % 60 == 0:
            value = (1 - np.exp(-step / 100)) * (0.99 - 0.3 * rate) + 0.004 * rng.standard_normal()
            lines.append({"step": step, "time": 1.0, "validation/accuracy": value})
    write_atomic(cell / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_json(cell / "spectra.json", spectra)
    return cell


def measures(s: np.ndarray) -> dict[str, float]:
    p = s / s.sum()
    return {"sve": float(-(p * np.log(p)).sum()), "lsvr": -float(np.log(p[0])), "top_share": float(p[0])}


def write_experiment(
    folder: Path,
    *,
    rates: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.3),
    seeds: Sequence[int] = (0, 1, 2),
    **fields: Any,
) -> Path:
    for rate in rates:
        for seed in seeds:
            write_cell(folder, rate=rate, seed=seed, **fields)
    return folder


class Checker(HTMLParser):
    """Collects what the tests ask of the page, and fails on a tag that is not closed."""

    VOID = ("meta",)

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole sweep with one more run that is not finished; its report is in it."""
    folder = write_experiment(tmp_path_factory.mktemp("runs") / "digits")
    write_cell(folder, rate=0.4, stages=("pretrain", "extract"))
    report.build([folder], folder)
    return folder


def read(folder: Path) -> str:
    return (folder / "report.html").read_text("utf-8")


def read_csv(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "summary.csv").read_text("utf-8").splitlines()))


def read_text(page: str) -> str:
    """The text of a page outside figures, styles and code, with blanks as they are in print."""
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<pre.*?</pre>|<title>.*?</title>", " ", page, flags=re.S)
    text = re.sub(r"<[^>]*>", " ", re.sub(r"</(p|li|td|th|dd|dt|summary|h\d)>|<br>", "\n", page))
    return re.sub(r"[ \N{NO-BREAK SPACE}]+", " ", unescape(text))


def lead(*folders: Path) -> str:
    """The leading text of the only study."""
    (study,) = find_studies(read_finished(folders)[0])
    return " ".join(claims.write_lead(study))


def small(folder: Path, **fields: Any) -> Path:
    return write_experiment(folder, **{"rates": (0.0, 0.3), "heads": HEADS[:1], "head_seeds": 1} | fields)


# ---- the page


def test_page_is_whole_offline_and_small(sweep: Path) -> None:
    text = read(sweep)
    page = Checker(text)
    assert len(text.encode()) < 2_000_000
    assert "<script" not in text
    assert "http" not in text
    assert "url(" not in text.replace("url(#", "")
    assert not [attrs for _, attrs in page.tags if "src" in attrs or (attrs.get("href") or "#")[0] != "#"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert len(page.all("table")) == len(page.all("caption")) > 5
    plots = [attrs for attrs in page.all("div") if attrs["class"] == "plot"]
    assert len(plots) == len(page.all("svg")) == 10
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 40 for attrs in plots)


def test_ids_are_unique_and_every_reference_has_its_target(sweep: Path) -> None:
    text = read(sweep)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert references
    assert set(references) <= set(ids)


def test_same_rows_give_the_same_bytes(sweep: Path, tmp_path: Path) -> None:
    path = report.build([sweep], tmp_path / "again")
    assert path == tmp_path / "again" / "report.html"
    assert path.read_bytes() == (sweep / "report.html").read_bytes()
    assert (tmp_path / "again" / "summary.csv").read_bytes() == (sweep / "summary.csv").read_bytes()


def test_names_are_escaped(tmp_path: Path) -> None:
    name = 'a<b onload="x">&$x_1$'
    folder = small(tmp_path / "e", name=name, tasks=(name,), splits=(("te<st", "id"), ("o&d", "ood")), seeds=(0,),
                   override={"noise_kind": "<i>"})  # fmt: skip
    report.build([folder], folder)
    assert not re.search("<b |<i>", read(folder))
    assert '<td class="text">&lt;i&gt;</td>' in read(folder)
    assert "a&lt;b onload=&#34;x&#34;&gt;&amp;$x_1$" in read(folder)
    Checker(read(folder))


def test_says_what_was_run(sweep: Path) -> None:
    text = read(sweep)
    lines = Checker(text).cells
    ledger = json.loads((sweep / "noise=0.3,seed=1" / "noise.json").read_text())
    (line,) = [c for c in lines if c[0] == "digits/noise=0.3,seed=1" and "symmetric" in c]
    assert line[1:7] == ["symmetric", "1", "30 %", "30 %", "216 of 720", ledger["noisy_sha256"][:12]]
    assert "abc1234" in text
    assert "1 × cpu (cpu, 2 cores)" in text
    assert "3.11.2" in text
    assert "pretrain 48.8 s" in text  # 15 × 3.25
    assert "augment.crop = &#34;random_resized&#34;" in text


def test_unfinished_runs_are_listed_and_not_counted(sweep: Path) -> None:
    found, left_out = read_finished([sweep])
    assert len(found) == 15
    assert left_out == {"digits/noise=0.4,seed=0": "unfinished, tune to do"}
    assert "<code>digits/noise=0.4,seed=0</code>: unfinished, tune to do" in read(sweep)


def test_figures_are_left_out_before_the_page_grows_too_large(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nml_jax.reporting import page

    found, left_out = read_finished([sweep])
    full = read(sweep)
    monkeypatch.setattr(page, "LIMIT", len(full.encode()) - 40_000)
    less = page.build_page(find_studies(found), left_out)
    assert len(less.encode()) < page.LIMIT + 1000
    assert "Further figures are left out" in less
    assert "Further figures" not in full
    assert "Limits" in less
    assert "Noise ledger" in less


# ---- the numbers


def test_summary_csv_equals_numpy_on_the_rows(sweep: Path) -> None:
    words = {"linear": "linear probe", "mlp": "MLP", "nmtune": "NMTune", None: ""}
    presets = {"paper": " (paper)", "code": " (code/1view)", None: ""}
    fields = ("metric", "task", "split", "domain", "layer", "mode", "method", "setting")
    found: dict[tuple, dict[int, list[float]]] = {}
    for row in (row for cell in sweep.glob("noise=*") for row in read_rows(cell)):
        method = words[row.method] + presets[row.preset]
        layer = "Z" if row.output == "Z" else "" if row.method else row.layer or ""
        key = (row.metric, row.task, row.split, row.domain, layer, row.spectrum_mode or "", method, "",
               row.noise_asked)  # fmt: skip
        found.setdefault(key, {}).setdefault(row.seed, []).append(row.value)
    checked = 0
    for line in read_csv(sweep):
        if line["split"] != "mean":
            by_seed = found[(*(line[field] for field in fields), float(line["x"]))]
            values = np.array([np.mean(of_heads) for of_heads in by_seed.values()])
            assert float(line["mean"]) == pytest.approx(values.mean(), abs=1e-14)
            assert float(line["sd"]) == pytest.approx(values.std(ddof=1), abs=1e-14)
            assert (int(line["n"]), line["seeds"]) == (3, "0 1 2")
            checked += 1
    assert checked > 200


def test_means_over_splits_and_tables_by_hand(tmp_path: Path) -> None:
    """Two seeds, two OOD splits, two heads per seed: the heads are averaged first, n stays 2."""

    def score(rate: float, draw: float, split: str, method: str, preset: str | None) -> float:
        return {"test": 0.9, "a": 0.5, "b": 0.7}[split] - rate

    folder = small(tmp_path / "x", seeds=(0, 1), score=score, splits=(("test", "id"), ("a", "ood"), ("b", "ood")),
                   head_seeds=2)  # fmt: skip
    for cell, shift in ((folder / "noise=0,seed=0", 0.02), (folder / "noise=0,seed=1", -0.02)):
        rows = [dataclasses.replace(row, value=row.value + shift) if row.split == "a" and row.head_seed == 1 else row
                for row in read_rows(cell)]  # fmt: skip
        write_rows(cell, "tune", [row for row in rows if row.stage == "tune"])
    (study,) = find_studies(read_finished([folder])[0])
    key = Key("accuracy", "digits", MEAN, "ood", method=Method("linear"))
    # Seed 0: split a has (0.5 + 0.52) / 2 = 0.51, with b 0.605. Seed 1: its head seeds are 1 and 2; 0.49, with b 0.595.
    assert study.table[key][0] == {(0, 0): pytest.approx(0.605), (1, 1): pytest.approx(0.595)}
    assert study.stat(0, key) == (pytest.approx(0.6), pytest.approx(0.01 / np.sqrt(2)), 2)
    report.build([folder], folder)
    lines = Checker(read(folder)).cells
    assert ["linear probe", "60.0 ± 0.7", "30.0 ± 0.0"] in lines
    assert ["0 %", "2", "90.0 ± 0.0", "50.0 ± 1.4", "70.0 ± 0.0"] in lines


def test_text_summary_has_every_measure(sweep: Path) -> None:
    lines = report.summarise(sweep).splitlines()
    assert lines[1].split() == ["noise", "0", "%", "5", "%", "10", "%", "20", "%", "30", "%"]
    assert lines[2].split() == ["runs", "(n)", "3", "3", "3", "3", "3"]
    assert max(map(len, lines)) <= 80
    values = [read_rows(sweep / f"noise=0.3,seed={seed}") for seed in (0, 1, 2)]
    sve = [r.value for rows in values for r in rows
           if (r.metric, r.split, r.spectrum_mode, r.method) == ("sve", "test", "paper", None)]  # fmt: skip
    (line,) = [line for line in lines if line.startswith("  SVE")]
    assert line.split()[-1] == f"{np.mean(sve):.2f}±{np.std(sve, ddof=1):.2f}"
    for label in ("clean validation", "linear probe", "MLP", "NMTune (paper)", "NMTune (code/1view)", "top share % ↓"):
        assert any(line.strip().startswith(label) for line in lines)


# ---- claims


def compared(*differences: float) -> paired.Comparison:
    a = {(i, i): 0.5 for i in range(len(differences))}
    return paired.compare("", paired.PERCENT, a, {seed: 0.5 + differences[seed[0]] for seed in a})


def test_interval_by_hand() -> None:
    """Mean 2, sd 1, n 3: 2 ± 4.302653 / √3, Student's t at 2 degrees of freedom."""
    c = compared(0.1, 0.2, 0.3)
    assert (c.difference, c.low, c.high) == (pytest.approx(0.2), pytest.approx(-0.0484138), pytest.approx(0.4484138))
    assert (c.n, c.sign, c.verdict("falls", "rises")) == (3, 0, "no difference shown")


@pytest.mark.parametrize(
    ("differences", "sign"),
    [((0.1, 0.11, 0.12), 1), ((-0.1, -0.11, -0.12), -1), ((0.1, -0.1, 0.1), 0), ((0.0, 0.0, 0.0), 0),
     ((0.1, 0.1, 0.1), 0), ((1.2e-16, 1.2e-16, 1.2e-16), 0), ((0.1, 0.11), 0), ((0.1,), 0), ((), 0)],
)  # fmt: skip
def test_a_difference_is_claimed_only_where_the_seeds_support_it(differences: tuple[float, ...], sign: int) -> None:
    c = compared(*differences)
    assert c.sign == sign
    if len(differences) < 3:
        assert c.verdict("falls", "rises") == f"no claim, n = {len(differences)}"


def test_only_shared_seeds_are_paired() -> None:
    c = paired.compare(
        "", paired.PERCENT, {(0, 0): 0.1, (1, 1): 0.2, (2, 2): 0.9}, {(1, 1): 0.3, (0, 0): 0.1, (5, 5): 0.0}
    )
    assert (c.n, c.a, c.b, c.difference) == (2, pytest.approx(0.15), pytest.approx(0.2), pytest.approx(0.05))


def test_supported_claims(sweep: Path) -> None:
    text = lead(sweep)
    assert text.startswith("15 runs: 5 rates of symmetric noise, 3 seeds each. From 0 % to 30 % noise, ")
    assert "clean validation accuracy falls from 98.9 % to 90.1 %." in text
    assert re.search(
        r"SVE rises from 2\.0\d to 2\.3\d, LSVR rises .* largest singular value falls .*: .* flatter", text
    )
    assert re.search(r"In-domain \(ID\) accuracy of the tuned linear probe falls from 95\.\d % to 8\d\.\d %", text)
    assert re.search(
        r"Out-of-domain \(OOD\) accuracy of the tuned linear probe falls .* \(lower at 5 % to 20 %\)", text
    )
    assert re.search(
        r"NMTune \(paper\) \S+ points on ID .*no difference shown\) and \+2\.9\d points on OOD .*better\)", text
    )
    assert re.search(r"NMTune helps here \(intervals widened for \d comparisons\): NMTune \(paper\) on OOD\.$", text)


def test_reversed_claims(tmp_path: Path) -> None:
    """Noise that helps, and an NMTune that hurts, are said as plainly."""

    def score(rate: float, draw: float, split: str, method: str, preset: str | None) -> float:
        return 0.6 + 0.5 * rate - (0.05 if method == "nmtune" else 0) + 0.001 * draw

    text = lead(small(tmp_path / "x", score=score, heads=(("linear", None), ("nmtune", "paper"))))
    assert "In-domain (ID) accuracy of the tuned linear probe rises from 60." in text
    assert text.endswith(
        "No gain from NMTune is shown here (intervals widened for 2 comparisons); "
        "it hurts: NMTune (paper) on ID and NMTune (paper) on OOD."
    )


def test_heads_that_could_choose_no_setting_are_not_compared(tmp_path: Path) -> None:
    def score(rate: float, draw: float, split: str, method: str, preset: str | None) -> float:
        return 0.8 + (0.1 if method == "nmtune" else 0) + 0.001 * draw - 0.2 * rate

    heads = (("linear", None), ("nmtune", "paper"))
    said = lead(small(tmp_path / "tuned", score=score, heads=heads))
    assert "better)" in said
    assert "NMTune helps here" in said
    said = lead(small(tmp_path / "blind", score=score, heads=heads, hyper={"lr": 0.01, "unvalidated": 1.0}))
    assert "no claim, no validation)" in said
    assert said.endswith("No claim: with one training row of each class none was left to choose settings by.")
    assert "NMTune is shown" not in said
    assert "tuned" not in said
    assert "accuracy of the linear probe falls" in said, "what noise does to one head needs no choice"


def test_heads_of_few_rows_do_not_silence_the_others(tmp_path: Path) -> None:
    """Heads on all rows could choose their settings, those on a hundredth of them could not."""

    def score(rate: float, draw: float, split: str, method: str, preset: str | None) -> float:
        return 0.8 + (0.1 if method == "nmtune" else 0) + 0.001 * draw - 0.2 * rate

    folder = small(tmp_path / "x", score=score, heads=(("linear", None), ("nmtune", "paper")))
    for cell in read_finished([folder])[0]:
        rows = [row for row in cell.rows if row.stage == "tune"]
        few = {"train_share": 0.01, "hyper": {"lr": 0.01, "unvalidated": 1.0}}
        write_rows(cell.folder, "tune", [*rows, *(dataclasses.replace(row, **few) for row in rows)])
    said = lead(folder)
    assert "against the tuned linear probe" in said
    assert "no claim, no validation)" in said
    assert "NMTune helps here" in said
    assert "0.01 of the training data" not in said.partition("NMTune helps here")[2]


def test_no_difference_is_not_claimed(tmp_path: Path) -> None:
    def score(rate: float, draw: float, split: str, method: str, preset: str | None) -> float:
        return 0.6 + 0.05 * draw

    text = lead(small(tmp_path / "x", score=score, heads=(("linear", None), ("nmtune", "paper"))))
    assert re.search(r"In-domain \(ID\) accuracy of the tuned linear probe shows no difference \(", text)
    assert text.endswith("No gain from NMTune is shown here (intervals widened for 2 comparisons).")
    assert "hurts" not in text
    assert "helps" not in text


def test_two_seeds_support_no_claim(tmp_path: Path) -> None:
    text = lead(small(tmp_path / "x", seeds=(0, 1), heads=HEADS))
    assert "0 % and 30 % noise share 2 seeds, and a claim needs 3: none is made." in text
    assert text.endswith("With fewer than 3 seeds these are numbers, no claim.")
    assert not re.search(r"falls|rises|helps|hurts", text)


def test_one_run_is_a_report_without_claims(tmp_path: Path) -> None:
    cell = write_cell(tmp_path / "x", rate=0.05)
    report.build([cell], cell)
    text = read(cell)
    assert "1 run with 5\N{NO-BREAK SPACE}% symmetric noise: one condition alone says nothing" in text
    assert not re.search(r"falls from|rises from|helps here|±\N{NO-BREAK SPACE}?\s*\d", text)
    line = read_csv(cell)[0]
    assert (line["sd"], line["n"]) == ("", "1")


# ---- which runs belong together


def grouped(*folders: Path) -> list[tuple[str, str, list[str], list[int]]]:
    studies = find_studies(read_finished(folders)[0])
    return [(s.title, s.axis, [c.label for c in s.conditions], [len(c.cells) for c in s.conditions]) for s in studies]


def test_runs_of_one_config_in_several_folders_form_one_study(tmp_path: Path) -> None:
    folders = [small(tmp_path / str(rate), rates=(rate,), seeds=(0, 1)) for rate in (0.3, 0.0, 0.1)]
    assert grouped(*folders) == [("digits", "noise", ["0 %", "10 %", "30 %"], [2, 2, 2])]


def test_a_second_axis_makes_studies_and_an_axis_alone_takes_the_place_of_noise(tmp_path: Path) -> None:
    for lr in (0.1, 0.01, 0.001):
        more = {"override": {"optimizer.lr": lr}, "axes": ("optimizer.lr",), "seeds": (0,)}
        small(tmp_path / "both", **more)
        small(tmp_path / "lr", rates=(0.1,), **more)
    assert grouped(tmp_path / "both") == [
        (f"digits, optimizer.lr = {lr}", "noise", ["0 %", "30 %"], [1, 1]) for lr in (0.001, 0.01, 0.1)
    ]
    assert grouped(tmp_path / "lr") == [("digits", "optimizer.lr", ["0.001", "0.01", "0.1"], [1, 1, 1])]
    report.build([tmp_path / "lr"], tmp_path / "lr")
    assert "3 values of optimizer.lr with 10\N{NO-BREAK SPACE}% symmetric noise" in read(tmp_path / "lr")
    assert "What noise in pre-training does" not in read(tmp_path / "lr")


def test_several_experiments_tasks_and_what_is_missing(tmp_path: Path) -> None:
    """No heads; no spectra, metrics or ledger; many tasks: each is left out without a word of claim."""
    small(tmp_path / "flowers", name="flowers", seeds=(0,), stages=("pretrain", "extract"),
          override={"stages": ("pretrain", "extract")})  # fmt: skip
    cell = write_cell(tmp_path / "from elsewhere", name="elsewhere", heads=HEADS[:1])
    for name in ("noise.json", "metrics.jsonl", "spectra.json"):
        (cell / name).unlink()
    small(tmp_path / "many", name="many", tasks=("cifar10", "dtd"), seeds=(0, 1, 2), splits=SPLITS[:2])
    report.build([tmp_path / name for name in ("flowers", "from elsewhere", "many")], tmp_path)
    text = read(tmp_path)
    Checker(text)
    assert text.count("<h2") == 3 + 4  # studies; what was run, limits, rules, words
    assert "1 run with unknown noise" in text
    assert "Task by task (2 of them), ID accuracy of the linear probe rises in 0 and falls in 2" in text
    assert "Transfer of each head: mean over 2 tasks" in text
    (many,) = list(find_studies(read_finished([tmp_path / "many"])[0]))
    parts = [Key("accuracy", task, "test", "id", method=Method("linear")) for task in ("cifar10", "dtd")]
    mean = parts[0]._replace(task=MEAN, split=MEAN)
    for seed, value in many.table[mean][1].items():
        assert value == pytest.approx(np.mean([many.table[part][1][seed] for part in parts]))


def test_a_run_is_counted_once(tmp_path: Path) -> None:
    folder = small(tmp_path / "x", seeds=(0,))
    small(tmp_path / "copy", seeds=(0,))
    assert len(read_finished([folder, folder / "noise=0,seed=0"])[0]) == 2
    found, left_out = read_finished([folder, tmp_path / "copy"])
    assert len(found) == 2
    assert left_out["copy/noise=0,seed=0"] == "the same config as x/noise=0,seed=0, counted once"


def test_every_method_has_its_title_and_the_tuned_probe_is_the_reference(tmp_path: Path) -> None:
    """Also of the stage finetune, with its presets; a head's output in another layer is still a Z."""
    heads = (("linear", None), ("lbfgs", None), ("nmtune", "paper"), ("lora", None), ("full", "paper"))
    folder = small(tmp_path / "x", heads=heads)
    for cell in folder.iterdir():
        rows = [row for row in read_rows(cell) if row.stage == "tune"]
        more = [dataclasses.replace(row, layer="block3") for row in rows if row.output == "Z"]
        write_rows(cell, "tune", [*rows, *more])
    (study,) = find_studies(read_finished([folder])[0])
    titles = ["linear probe", "L-BFGS probe", "NMTune (paper)", "LoRA", "full fine-tuning (paper)"]
    assert [str(method) for method in study.names("method") if method] == titles
    assert {pair.base for pair in claims.compare_heads(study, "digits")} == {Method("lbfgs")}
    text = " ".join(claims.write_lead(study))
    assert "Accuracy against the tuned L-BFGS probe on the same features" in text
    assert "In-domain (ID) accuracy of the tuned L-BFGS probe, layer features falls" in text
    assert study.names("output", metric="sve", method=Method("lora")) == ["Z"]
    assert "layer block3" in " ".join(study.names("setting", metric="sve", method=Method("lora")))


def test_one_condition_of_several_tasks_compares_methods_on_their_mean_and_on_each(tmp_path: Path) -> None:
    heads = (("lbfgs", None), ("nmtune", "paper"))
    folder = small(tmp_path / "x", rates=(0.1,), tasks=("a", "b", "c", "d"), heads=heads)
    report.build([folder], folder)
    text = read(folder).replace("\N{NO-BREAK SPACE}", " ")
    Checker(text)
    assert "<h1>Report: digits</h1>" in text
    assert re.search("mean over 4 tasks: use the L-BFGS probe in-domain and NMTune .paper. out-of-domain ", text)
    assert re.search(
        "mean over 4 tasks, in detail. In-domain: no other method .* NMTune .paper. gains .[0-9.]+ points ", text
    )
    assert "<summary>The same for a and 3 more</summary>" in text
    assert "d: use the L-BFGS probe in-domain (test), " in text
    assert "A seed redraws pre-training, the training rows on which settings are chosen" in text
    assert "3 runs with 10 % symmetric noise: one condition alone says nothing about what noise does." in text
    assert "<h3>Pre-training scores</h3>" in text
    assert "<h3>Noise ledger</h3>" in text
    assert len(re.findall("<h3>Differences at a glance: ", text)) == 5
    assert report.summarise(folder).count("\nin-domain mean\n") == 1


def test_settings_of_heads_are_told_apart(tmp_path: Path) -> None:
    cell = write_cell(tmp_path / "x", heads=HEADS[:1], head_seeds=1)
    rows = [row for row in read_rows(cell) if row.stage == "tune"]
    write_rows(cell, "tune", [*rows, *(dataclasses.replace(row, train_share=0.1, value=0.25) for row in rows)])
    (study,) = find_studies(read_finished([cell])[0])
    key = Key("accuracy", "digits", "test", "id", method=Method("linear"), setting="0.1 of the training data")
    assert study.stat(0, key) == (0.25, pytest.approx(np.nan, nan_ok=True), 1)
    assert study.names("setting", method=Method("linear")) == ["1 of the training data", "0.1 of the training data"]


# ---- figures


def test_text_takes_the_font_of_the_page_and_tick_labels_keep_their_digits(sweep: Path) -> None:
    axis = figures.Axis([0.0, 1.0], ["0.125", "0.1337"], "x & <y>")
    svg = figures.draw_response("p", "$t_1$", axis, {"a": [[0.1, 0.2], [0.3]], "b": [[], [0.4]]}).svg
    assert ">0.125</text>" in svg
    assert ">0.1337</text>" in svg
    assert ">$t_1$</text>" in svg
    assert "xmlns" not in svg
    assert figures.HEADS[0] in svg
    assert figures.HEADS[1] in svg
    assert "x &amp; &lt;y&gt;" in svg
    assert ".plot text { font-family: inherit !important; fill: currentColor !important; }" in read(sweep)


def test_colours_read_on_white_and_on_the_dark_page() -> None:
    def luminance(colour: str) -> float:
        c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return float(np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    for colour in (*figures.HEADS, *(figures.choose_colour(i, 12) for i in range(12)), figures.GREY):
        light, dark, own = (luminance(x) + 0.05 for x in ("#ffffff", "#14171a", colour))
        assert min(light / own, own / dark) > 3, colour


def test_the_last_evaluation_is_in_the_validation_curve(tmp_path: Path) -> None:
    """A curve of many points is thinned to means of blocks; what the trained model scores is no such mean."""
    cell = write_cell(tmp_path / "x", stages=("pretrain",), override={"stages": ("pretrain",)})
    lines = [{"step": i, "epoch": i / 10, "validation/accuracy": i / 1000} for i in range(1, 501)]
    write_atomic(cell / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    (found,) = read_finished([cell])[0]
    ((x, y),) = plots._list_curves(found, "validation/accuracy", 100)
    assert len(x) == 121
    assert (x[-1], y[-1]) == (50.0, 50.0)
    ((x, y),) = plots._list_curves(dataclasses.replace(found, metrics=found.metrics[:100]), "validation/accuracy", 100)
    assert (len(x), x[-1], y[-1]) == (100, 10.0, 10.0)


@pytest.mark.parametrize("heads", [1, 2, 4, 9])
def test_markers_of_heads_stay_nearer_to_their_tick_than_to_the_next(heads: int) -> None:
    x = np.array([0.0, 4.0, 10.0, 100.0])  # the least distance that is drawn to scale
    at = np.array([figures.place_series(x, j, heads) for j in range(heads)])
    assert (np.abs(at - x) < np.diff(x).min() / 2).all()
    assert at[:, 0].max() < at[:, 1].min()
    assert (np.diff(at, axis=0) > 0).all()


def test_no_statement_stands_twice_and_no_bracket_within_another(sweep: Path) -> None:
    text = read_text(read(sweep))
    assert not re.search(r"\([^()]*\(", text)
    sentences = [s.strip() for s in re.split(r"(?<=[.:])\s", text) if len(s.split()) > 5]
    assert [s for s in set(sentences) if sentences.count(s) > 1] == []
    assert text.count("from 95.1 % to 88.9 %") + text.count("95.1 % to 88.9 %") == 1
    assert text.count("gets flatter") == 1
    assert text.count("NMTune (paper) on OOD") == 1


def test_words_are_explained_where_they_stand(sweep: Path) -> None:
    text = read(sweep)
    words = text[text.index('id="words"') :]
    for word in ("ID, in-domain", "OOD, out-of-domain", "SVE", "LSVR", "NMTune (code/1view)", "raw mode", "noise"):
        assert f"<dt>{word}</dt>" in words
    assert "<dt>WiSE-FT</dt>" not in words
    assert "<dt>suspects</dt>" not in words


def test_settings_at_the_edge_of_their_grid_are_named(tmp_path: Path) -> None:
    for name, hyper, said in (
        ("inside", {"lr": 0.01, "weight_decay": 0.0}, ""),
        ("edge", {"lr": 0.001, "weight_decay": 0.0}, "lr 0.001, the lowest of tune.lrs, of the linear probe."),
        ("no ratio", {"lr": 0.01, "weight_decay": 1e-4}, "weight_decay 0.0001, the highest of tune.weight_decays, of"),
        ("beyond", {"lr": 1.0, "weight_decay": 0.0}, "lr 1, the highest of tune.lrs, which was widened once, of"),
    ):
        for widen in (False, True):
            override = {"tune.widen": widen}
            cell = write_cell(tmp_path / f"{name} {widen}", heads=HEADS[:1], hyper=hyper, override=override)
            report.build([cell], cell)
            text = read_text(read(cell))
            tried = widen and name == "edge"  # what lies beyond was no better
            assert ("at the edge of what was tried" in text) == bool(said and not tried)
            assert tried or said in text


def test_rates_of_fine_tuning_at_the_edge_are_named_by_their_own_grid(tmp_path: Path) -> None:
    for rate, said in ((1e-3, "lr 0.001, the highest of finetune.lrs, of LoRA."), (3e-4, "")):
        override = {"tune.widen": True, "finetune.lrs": (1e-4, 3e-4, 1e-3)}
        cell = write_cell(tmp_path / f"{rate}", heads=(("lora", None),), hyper={"lr": rate}, override=override)
        rows = [dataclasses.replace(row, stage="finetune") for row in read_rows(cell) if row.stage == "tune"]
        write_rows(cell, "tune", rows)
        report.build([cell], cell)
        text = read_text(read(cell))
        assert said in text
        assert ("at the edge of what was tried" in text) == bool(said)


def test_settings_of_a_regression_are_listed_and_named_at_the_edge(tmp_path: Path) -> None:
    cell = write_cell(tmp_path / "x", heads=HEADS[:1], hyper={"lr": 0.001, "weight_decay": 0.0})
    rows = [row for row in read_rows(cell) if row.stage == "tune"]
    write_rows(cell, "tune", [dataclasses.replace(row, metric="r2") for row in rows if row.metric == "accuracy"])
    report.build([cell], cell)
    text = read_text(read(cell))
    assert "lr 0.001, the lowest of tune.lrs, of the linear probe." in text
    assert "Chosen hyper-parameters" in text


def test_thinned_curve_keeps_its_level() -> None:
    x, y = figures.thin(range(10), [0, 2] * 5, points=5)
    np.testing.assert_array_equal(x, [0.5, 2.5, 4.5, 6.5, 8.5])
    np.testing.assert_array_equal(y, [1, 1, 1, 1, 1])
    x, y = figures.thin([3, 4], [1, 2])
    np.testing.assert_array_equal(y, [1, 2])


# ---- the command line


def test_command_line(tmp_path: Path) -> None:
    folder = small(tmp_path / "x", seeds=(0,))
    command = [sys.executable, "-m", "nml_jax.report", str(folder), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == str(tmp_path / "out" / "report.html")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "summary.csv"}


def test_default_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [small(tmp_path / name, name=name, seeds=(0,), rates=(0.1,)) for name in "ab"]
    monkeypatch.chdir(tmp_path)
    assert main([str(folders[0])]) == 0
    assert main([str(folder) for folder in folders]) == 0
    assert (folders[0] / "report.html").exists()
    assert (tmp_path / "report.html").exists()
    assert not (folders[1] / "report.html").exists()


def test_bad_folders_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "model").mkdir(parents=True)
    (tmp_path / "other" / "model" / "config.json").write_text('{"hidden_size": 768}')
    write_cell(tmp_path / "unfinished", stages=("pretrain",))
    for name, cause in {
        "missing": "missing is not a folder",
        "empty": "no finished run in",
        "other": "not a run of nml_jax",
        "unfinished": "unfinished/noise=0.1,seed=0 is unfinished, extract and tune to do",
    }.items():
        assert main([str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert cause in error
        assert "\n  cure: " in error
        assert "Traceback" not in error
        assert not (tmp_path / name / "report.html").exists()


@pytest.mark.parametrize("name", ["config.json", "run.json", "noise.json", "spectra.json", "rows.jsonl"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    cell = write_cell(tmp_path / "x", heads=HEADS[:1])
    (cell / name).write_text((cell / name).read_text()[:-20])
    with pytest.raises(UserError, match=name) as e:
        report.build([tmp_path / "x"], tmp_path)
    assert e.value.cure


@pytest.mark.parametrize(
    ("name", "content"),
    [("run.json", '{"stages": []}'), ("run.json", '{"stages": {"tune": "x"}}'), ("noise.json", "{}")],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, content: str) -> None:
    cell = write_cell(tmp_path / "x", heads=HEADS[:1])
    (cell / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} is damaged") as e:
        report.build([tmp_path / "x"], tmp_path)
    assert "delete it" in e.value.cure


def test_the_half_line_of_a_killed_writer_is_left_out_of_the_curves(tmp_path: Path) -> None:
    cell = write_cell(tmp_path / "x", heads=HEADS[:1])
    whole = read_metrics(cell)
    (cell / "metrics.jsonl").write_text((cell / "metrics.jsonl").read_text()[:-20])
    assert read_metrics(cell) == whole[:-1] != []
    report.build([tmp_path / "x"], tmp_path)


def test_rows_that_are_not_those_that_a_stage_wrote_make_no_report(tmp_path: Path) -> None:
    cell = write_cell(tmp_path / "x", heads=HEADS[:1])
    record, rows = json.loads((cell / "run.json").read_text()), (cell / "rows.jsonl").read_text().splitlines(True)
    for stage, done in record["stages"].items():
        done["rows"] = hash_rows(cell, [stage])[stage]
    (cell / "run.json").write_text(json.dumps(record))
    report.build([tmp_path / "x"], tmp_path)
    for changed in (rows[:-1], [*rows[:-1], rows[-1].replace('"value": 0.', '"value": 0.9')]):
        assert changed != rows
        (cell / "rows.jsonl").write_text("".join(changed))
        with pytest.raises(UserError, match=r"rows\.jsonl: rows of the stage tune were changed or lost") as e:
            report.build([tmp_path / "x"], tmp_path)
        assert "again" in e.value.cure


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    folder = small(tmp_path / "x", seeds=(0,), rates=(0.0,))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        report.build([folder], tmp_path / "file")


def test_a_loss_is_in_nats_and_a_share_in_percent():
    assert [conditions._name_score(metric) for metric in ("loss", "accuracy")] == ["loss (nats)", "accuracy %"]
    assert [paired.unit(metric).number(0.6931) for metric in ("loss", "accuracy", "diagnosis/stable_rank")] == [
        "0.693", "69.3", "0.7",
    ]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [("seed", 7), ("noise_seed", 7), ("noise", 0.25)])
def test_a_config_that_was_edited_is_named(tmp_path: Path, key: str, value: float) -> None:
    cell = write_cell(tmp_path / "x", heads=HEADS[:1])
    config = json.loads((cell / "config.json").read_text("utf-8"))
    write_json(cell / "config.json", config | {key: value})
    with pytest.raises(UserError, match=rf"config\.json has changed: {key} is {value}, and {config[key]} in the rows"):
        read_finished([tmp_path / "x"])
