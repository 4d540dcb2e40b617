"""Studies whose panels are about wrong downstream labels, detectors or named encoders, on runs whose truth is known."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from configs.studies import asymmetric
from nml_jax.errors import UserError
from nml_jax.reporting import plots
from nml_jax.reporting.statistics import choose_method
from nml_jax.reporting.statistics.grouping import find_studies
from nml_jax.reporting.statistics.studies import Study
from nml_jax.reporting.studies import findings, publish, recipes
from nml_jax.reporting.studies.findings import check_claims
from nml_jax.reporting.studies.numbers import Numbers
from nml_jax.runs.classes import PRETRAINING, TASKS, write_counts
from nml_jax.runs.finished import read_finished
from nml_jax.runs.rows import Row, read_rows
from nml_jax.stages import report
from tests.reporting.test_report import small, write_cell
from tests.reporting.test_studies import describe_plan, plan

SEEDS = (0, 1, 2, 3, 4)
LOST = {"retina": 0.03, "solo": 0.0}  # AP at 30 % noise


def read_study(folder: Path) -> Study:
    (found,) = find_studies(read_finished([folder])[0])
    return found


def replace_rows(folder: Path, change: Callable[[Row], Iterable[Row]]) -> None:
    """Put others in place of every row of every run."""
    for run in folder.iterdir():
        rows = [new for row in read_rows(run) for new in change(row)]
        (run / "rows.jsonl").write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))


def count_classes(folder: Path, split: str, n: int) -> None:
    """Write into every run how many classes a split has, with a record of each."""
    for run in folder.iterdir() if n else ():
        write_counts(run / (TASKS if "/" in split else PRETRAINING), {split: {f"class {i}": 1 for i in range(n)}})


def read_lines(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / "studies" / name / "figure.csv")


def check_latex(text: str) -> None:
    """Check that every line of every table has a cell for each column, and no sign that LaTeX takes for a command."""
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") > 0
    for columns, body in re.findall(r"\\begin\{tabular\}\{(l\w*)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        for line in (line for line in body.splitlines() if line.endswith(r"\\")):
            if r"\multicolumn" in line:
                assert rf"\multicolumn{{{len(columns)}}}" in line
            else:
                assert line.count(" & ") == len(columns) - 1
            assert not re.search(r"(?<!\\)[%_#]", line)


@pytest.fixture(scope="module")
def wrong_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads lose half the share of wrong labels, a tenth with GCE, and nothing without suspects; LoRA a fifth."""

    def score(rate: float, draw: float, split: str, method: str, preset: str | None) -> float:
        return 0.8 + 0.001 * draw

    def change(row: Row) -> Iterator[Row]:
        if row.method is None:
            yield row
            return
        for noise in (0.0, 0.4):
            lost = 0.2 if row.method == "lora" else 0.1 if row.method.endswith("gce") else 0.5
            kept = dataclasses.replace(row, downstream_noise=noise, value=row.value - lost * noise)
            if row.method == "lora":
                yield dataclasses.replace(kept, stage="finetune")
                continue
            yield dataclasses.replace(kept, suspects="keep")
            yield dataclasses.replace(row, downstream_noise=noise, suspects="drop")

    heads = (("lbfgs", None), ("nmtune", "paper"), ("linear_gce", None), ("nmtune_gce", "paper"), ("lora", None))
    folder = small(tmp_path_factory.mktemp("x"), rates=(0.0, 0.3), seeds=SEEDS, heads=heads, score=score)
    replace_rows(folder, change)
    return folder


def test_every_way_to_meet_wrong_labels_has_lines_of_its_own(wrong_labels: Path, tmp_path: Path) -> None:
    publish.publish("noisy_downstream", read_study(wrong_labels), tmp_path)
    points = read_lines(tmp_path, "noisy_downstream")
    mean = points[points["panel"].str.startswith("In-domain")].groupby(["panel", "series", "x"])["y"].mean()
    series = "L-BFGS probe, 30 % noise"
    for panel, name, value in (
        ("In-domain accuracy, all rows", series, 0.6),
        ("In-domain accuracy, all rows", "NMTune (paper), 0 % noise", 0.6),
        ("In-domain accuracy, all rows, with GCE", "linear probe with GCE, 0 % noise", 0.76),
        ("In-domain accuracy, without the suspects", series, 0.8),
        ("In-domain accuracy, encoder tuned, too", "LoRA, 0 % noise", 0.72),
    ):
        assert mean[panel, name, 0.4] == pytest.approx(value, abs=0.005)
        assert mean[panel, name, 0.0] == pytest.approx(0.8, abs=0.005)
    assert (points.groupby(["panel", "series", "x"])["seed"].nunique() == len(SEEDS)).all()
    check_latex((tmp_path / "studies" / "noisy_downstream" / "table.tex").read_text())


def test_encoders_tuned_on_all_rows_are_compared_with_such_heads(wrong_labels: Path) -> None:
    study = read_study(wrong_labels)
    for noise in ("0", "0.4"):
        setting = f"{noise} downstream noise, tune.suspects = keep"
        methods = {key.method.name for key in study.keys(metric="accuracy", setting=setting) if key.method}
        assert {"lora", "lbfgs"} <= methods


def test_gains_are_checked_with_and_without_gce(wrong_labels: Path) -> None:
    found = check_claims(recipes.RECIPES["noisy_downstream"], Numbers(read_study(wrong_labels)))
    assert len(found) == 2 * 2 * (2 + 2)  # downstream rates, treatments; both claims in both domains, at 30 %
    assert sum("NMTune with GCE over the probe with GCE" in finding.words for finding in found) == 8


def test_tasks_with_metrics_of_their_own_have_their_mean(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(choose_method, "has_rows", lambda *_: True)  # as where predictions are on record
    heads, tasks = (("lbfgs", None),), ("cifar10", "flowers102")  # accuracy, and the mean over classes
    study = read_study(small(tmp_path / "runs", rates=(0.0, 0.3), seeds=(0, 1, 2), heads=heads, tasks=tasks))
    publish.publish("spectra", study, tmp_path)
    points = read_lines(tmp_path, "spectra")
    own = points[points["panel"] == "In-domain mean of each task's own metric against entropy SVE"]
    assert set(own["x_label"]) == {"cifar10, test", "flowers102, test"}


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    coco = {"detect.data.num_classes": 80}
    folder = small(
        tmp_path_factory.mktemp("x"), rates=(0.0, 0.05, 0.3), seeds=SEEDS, heads=(("lbfgs", None),), override=coco
    )

    def change(row: Row) -> Iterator[Row]:
        if (row.metric, row.split, row.head_seed) != ("accuracy", "test", row.seed):
            return
        for system, metric in (("retina", "box_AP"), ("solo", "mask_AP")):
            for start in ("encoder", "random"):
                lost = LOST[system] * (1 + 0.05 * (row.seed - 2)) if row.noise_asked == 0.3 else 0.0
                lost += 0.0005 * (row.seed - 2) if row.noise_asked else 0.0  # seeds that do not vary show nothing
                value = 0.385 - lost if start == "encoder" else 0.2
                how = {"method": system, "preset": start, "metric": metric, "value": value, "task": "coco"}
                yield dataclasses.replace(
                    row, stage="detect", layer=None, train_share=None, downstream_noise=None, views=None, hyper=None,
                    head_seed=None, split="val", **how,
                )  # fmt: skip

    replace_rows(folder, change)
    return folder


def test_a_detector_has_one_mark_in_all_panels(detectors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The panels have one legend: SOLOv2, alone among masks here, must not be drawn as RetinaNet."""
    drawn, draw_response = [], plots.figures.draw_response
    monkeypatch.setattr(plots.figures, "draw_response", lambda *a, **how: drawn.append(a) or draw_response(*a, **how))
    figure = plots._draw_detection(read_study(detectors), "x")
    assert [title for _, title, *_ in drawn] == ["AP of boxes (%)", "AP of masks (%)"]
    names = [mark.name for mark in figure.legend]
    assert [list(series) for *_, series in drawn] == [names, names]
    boxes, masks = (series for *_, series in drawn)
    assert sorted(name for name in names if any(masks[name])) == ["SOLOv2 (encoder)", "SOLOv2 (random)"]
    assert sorted(name for name in names if any(boxes[name])) == ["RetinaNet (encoder)", "RetinaNet (random)"]
    assert "nan" not in figure.panels[1].alt


def test_detectors_have_findings_and_the_published_lines(
    detectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(detectors)
    found = {f.words: f for f in check_claims(recipes.RECIPES["detection"], Numbers(study))}
    assert {words: f.verdict for words, f in found.items()} == {
        "box AP of RetinaNet, 5 % noise against 0 %": "shown", "box AP of RetinaNet, 30 % noise against 0 %": "shown",
        "mask AP of SOLOv2, 5 % noise against 0 %": "shown", "mask AP of SOLOv2, 30 % noise against 0 %": "not shown",
    }  # fmt: skip
    assert found["box AP of RetinaNet, 30 % noise against 0 %"].found.difference == pytest.approx(-0.03)
    assert publish.publish("detection", study, tmp_path)
    points = read_lines(tmp_path, "detection")
    assert set(zip(points["panel"], points["series"], strict=True)) == {("Box AP", "RetinaNet"), ("Mask AP", "SOLOv2")}
    check_latex((tmp_path / "studies" / "detection" / "table.tex").read_text())
    view = recipes.RECIPES["detection"].views[0]
    panel = publish.make_panel(view, Numbers(study), publish.published.read_published("detection"))
    assert panel is not None
    assert {line.what for line in panel.published} == {"Faster R-CNN, box AP on COCO", "RetinaNet, box AP on COCO"}
    for key, value in (("detect.data.num_classes", 5), ("detect.data.train", "train[:10%]")):
        for run in study.cells:
            monkeypatch.setitem(run.config, key, value)
        panel = publish.make_panel(view, Numbers(study), publish.published.read_published("detection"))
        assert panel is not None
        assert not panel.published
        monkeypatch.undo()
    keys = {"stages": ("pretrain", "detect", "report"), "detect.systems": ("retina", "solo")}
    said = describe_plan("detection", plan(study.cells, (0.0, 0.05, 0.3), 5, keys))
    assert [line.partition(",")[0] for line in said] == ["box AP of RetinaNet", "mask AP of SOLOv2"]


def test_a_dry_run_counts_comparisons_and_makes_none(wrong_labels: Path, detectors: Path, monkeypatch) -> None:
    wanted = {}
    for name, folder in (("noisy_downstream", wrong_labels), ("detection", detectors)):
        wanted[name] = len(check_claims(recipes.RECIPES[name], Numbers(read_study(folder))))
    for name in ("contrast", "compare"):
        monkeypatch.setattr(findings, name, lambda *_: pytest.fail("a comparison is made"))
    for name, folder in (("noisy_downstream", wrong_labels), ("detection", detectors)):
        assert findings.count_comparisons(recipes.RECIPES[name], Numbers(read_study(folder))) == wanted[name]


def test_named_encoders_are_the_columns_of_a_table(tmp_path: Path) -> None:
    def score(rate: float, draw: float, split: str, method: str, preset: str | None) -> float:
        return {"lbfgs": 0.7, "mlp": 0.72, "nmtune": 0.75}[method] + 0.001 * draw

    names = ("Swin_Large_patch4_window7_224.ms_in22k", "vit_b&w")
    conditions = tuple((name, (("init_from", f"weights/{name}"),)) for name in names)
    for name in names:
        for seed in SEEDS:
            more = {"condition": name, "init_from": f"weights/{name}", "sweep.conditions": conditions}
            heads = (("lbfgs", None), ("mlp", None), ("nmtune", "paper"))
            write_cell(
                tmp_path / "runs", rate=0.0, seed=seed, override=more, heads=heads, score=score, axes=("condition",)
            )
    study = read_study(tmp_path / "runs")
    written = publish.publish("practical_models", study, tmp_path)
    assert written
    folder = tmp_path / "studies" / "practical_models"
    assert "/FontFile2" in (folder / "figure.pdf").read_bytes().decode("latin-1")
    points = read_lines(tmp_path, "practical_models")
    assert set(points["x_label"]) == set(names)
    text = (folder / "table.tex").read_text()
    check_latex(text)
    assert r" & Swin\_Large\_patch4\_window7\_224.ms\_in22k & vit\_b\&w \\" in text
    recipe, lines = recipes.RECIPES["practical_models"], publish.published.read_published("practical_models")
    for view, values in zip(recipe.views, ([81.91, 82.51, 84.16], [50.88, 51.21, 52.35]), strict=True):
        panel = publish.make_panel(view, Numbers(study), lines)
        assert panel is not None
        assert [(*line.x, *line.values) for line in panel.published] == [(names[0], value) for value in values]
        svg, _ = publish.draw_figure("x", [panel])
        plain, _ = publish.draw_figure("x", [publish.make_panel(view, Numbers(study), ())])  # type: ignore[list-item]
        assert svg != plain
    nmtune = points[(points["panel"] == "In-domain accuracy") & (points["series"] == "NMTune (paper)")]
    mean, sd = (100 * x for x in (nmtune.groupby("x_label")["y"].mean(), nmtune.groupby("x_label")["y"].std(ddof=1)))
    cells = " & ".join(rf"{mean[name]:.1f} $\pm$ {sd[name]:.1f}" for name in names)
    assert rf"NMTune (paper) & {cells} \\" in text
    assert "Swin-L (ImageNet-21k), in-domain mean" in (folder / "published.csv").read_text()
    gains = pd.read_csv(folder / "findings.csv")
    own = gains[gains["claim"] == "in-domain gain of NMTune over the probe"]
    assert list(own["at"]) == [f"condition = {name}, preset paper" for name in names]
    assert own["difference"].to_numpy() == pytest.approx([0.05, 0.05], abs=0.004)


def test_zero_shot_scores_have_the_published_line(tmp_path: Path) -> None:
    def change(row: Row) -> Iterator[Row]:
        yield row
        if (row.metric, row.split, row.method) == ("accuracy", "test", "lbfgs"):
            yield dataclasses.replace(row, stage="zeroshot", method="zero-shot", train_share=None, layer=None,
                                      downstream_noise=None, hyper=None, head_seed=None, value=0.3)  # fmt: skip

    about = {"noise_kind": "caption_swap", "data.path": "prepared/yfcc15m/1.0.0"}
    view = recipes.RECIPES["noise_rates"].views[-1]
    own, part = {"downstream.path": "prepared/imagenet2012"}, {"data.train": "train[:10%]"}
    for i, (task, more, classes, drawn) in enumerate((
        ("imagenet2012", {}, 0, 1), ("cifar10", {}, 10, 0), ("imagenet2012", {"data.mixture": ("a", "b")}, 0, 0),
        ("directory", own, 1000, 1), ("directory", {}, 1000, 0), ("directory", own, 5, 0), ("directory", own, 0, 0),
        ("imagenet2012", part, 0, 0), ("directory", {**own, "downstream.test": ("val[:50%]",)}, 1000, 0),
    )):  # fmt: skip
        folder = tmp_path / str(i)
        how = {"heads": (("lbfgs", None),), "tasks": (task,)}
        small(folder, rates=(0.0, 0.3), seeds=(0, 1), override={**about, **more}, **how)
        replace_rows(folder, change)
        count_classes(folder, f"{task}/test", classes)
        panel = publish.make_panel(view, Numbers(read_study(folder)), publish.published.read_published("noise_rates"))
        assert panel is not None
        assert set(panel.points["y"]) == {0.3}
        assert set(panel.points["series"]) == {"zero-shot"}
        assert len(panel.published) == drawn


def test_a_published_line_is_drawn_over_the_same_data_alone(tmp_path: Path) -> None:
    view = recipes.RECIPES["noise_rates"].views[2]
    for i, (more, classes, drawn) in enumerate((
        ({}, 1000, 1), ({}, 5, 0), ({}, 0, 0), ({"data.num_classes": 1000, "data.size": 1_281_167}, 0, 1),
        ({"data.num_classes": 1000, "data.size": 5000}, 0, 0), ({"data.train": "train[:10%]"}, 1000, 0),
    )):  # fmt: skip
        folder, about = tmp_path / str(i), {"data.path": "prepared/imagenet2012", "data.source": "directory", **more}
        small(folder, rates=(0.0, 0.3), seeds=(0, 1), override=about)
        count_classes(folder, "train", classes)
        panel = publish.make_panel(view, Numbers(read_study(folder)), publish.published.read_published("noise_rates"))
        assert panel is not None
        assert [line.what for line in panel.published] == ["ResNet-50, supervised: top-1 on ImageNet"] * drawn


def test_tasks_that_are_related_to_the_noise_are_drawn_and_checked_apart(tmp_path: Path) -> None:
    """Noise costs related tasks half its rate in-domain, the others nothing, and a third of it out of domain."""
    tasks, related = ("cifar10", "cifar100", "dtd", "svhn"), ("cifar100", "svhn")

    def change(row: Row) -> Iterator[Row]:
        if row.task in related and row.domain == "ood" and row.method:
            return  # they have an in-domain test alone
        lost = (0.5 if row.task in related else 0.0) if row.domain == "id" else 1 / 3
        is_score = row.method and row.metric == "accuracy" and not row.output
        yield dataclasses.replace(row, value=row.value - lost * row.noise_asked) if is_score else row

    how = {"heads": (("lbfgs", None),), "score": lambda rate, draw, *_: 0.8 + 0.001 * draw, "tasks": tasks}
    folder = small(tmp_path / "runs", rates=(0.0, 0.1), seeds=SEEDS, override={"noise_related": related}, **how)
    replace_rows(folder, change)
    study = read_study(folder)
    written = publish.publish("asymmetric", study, tmp_path)
    assert written
    mean = read_lines(tmp_path, "asymmetric").groupby(["panel", "x"])["y"].mean()
    lost = {panel: mean[panel, 0.0] - mean[panel, 0.1] for panel, _ in mean.index}
    assert lost == {
        "Noise-related in-domain accuracy": pytest.approx(0.05, abs=0.005),
        "Unrelated in-domain accuracy": pytest.approx(0.0, abs=0.005),
        "Out-of-domain accuracy": pytest.approx(0.1 / 3, abs=0.005),
    }
    verdicts = {
        f.claim.words: (f.found.difference, f.published)
        for f in check_claims(recipes.RECIPES["asymmetric"], Numbers(study))
    }
    assert verdicts == {
        "noise-related in-domain score of the probe": (pytest.approx(-0.05, abs=0.005), "lower"),
        "unrelated in-domain score of the probe": (pytest.approx(0.0, abs=0.005), "not lower"),
        "out-of-domain score of the probe": (pytest.approx(-0.1 / 3, abs=0.005), "lower"),
    }
    for domain, named in (
        ("Noise-related in-domain", "cifar100 (accuracy on test) and svhn (accuracy on test)"),
        ("Unrelated in-domain", "cifar10 (accuracy on test) and dtd (accuracy on test)"),
    ):
        assert f"{domain} score: the mean over {named}, over a task's tests first." in written.about
    table: Any = pd.read_csv(written.folder / "summary.csv")
    own = table[(table["metric"] == "accuracy") & (table["split"] == "mean") & np.isclose(table["x"], 0.1)]
    own = own[(own["domain"] == "id") & (own["method_key"] == "lbfgs")].set_index("task")["mean"]
    for name, tasks in (("related", ["cifar100", "svhn"]), ("unrelated", ["cifar10", "dtd"])):
        assert own[f"mean over {name} tasks"] == pytest.approx(own[tasks].mean())


def test_where_no_task_is_related_to_the_noise_that_is_said(tmp_path: Path) -> None:
    study = read_study(small(tmp_path / "runs", rates=(0.0, 0.1), seeds=SEEDS))
    written = publish.publish("asymmetric", study, tmp_path)
    assert written
    assert "No task is named in noise_related: all count as unrelated to the noise." in written.about
    panels = set(read_lines(tmp_path, "asymmetric")["panel"])
    assert panels == {"Unrelated in-domain accuracy", "Out-of-domain accuracy"}


def test_the_asymmetric_digits_have_one_task_of_each_kind() -> None:
    config = asymmetric.get_config("digits")
    report.check(config)
    assert {*config.noise_related} < {*config.downstream.tasks}
    with config.unlocked():
        config.noise_related = ("digits",)
    with pytest.raises(UserError, match="noise_related='digits' is no downstream task"):
        report.check(config)


def test_a_method_without_a_mean_is_named(tmp_path: Path) -> None:
    heads = (("lbfgs", None), ("nmtune", "paper"))
    folder = small(tmp_path / "runs", rates=(0.0, 0.3), seeds=(0, 1, 2), heads=heads, tasks=("cifar10", "cifar100"))
    replace_rows(folder, lambda row: [] if row.method == "nmtune" and row.task == "cifar100" else [row])
    written = publish.publish("nmtune", read_study(folder), tmp_path)
    assert written
    assert written.missing == [
        "NMTune (paper) has no in-domain score, and no claim on it: it lacks cifar100 (test)",
        "NMTune (paper) has no out-of-domain score, and no claim on it: it lacks cifar100 (test/shift) and "
        "cifar100 (test/blur)",
    ]
    assert all(sentence in written.about for sentence in written.missing)
    assert not any("NMTune" in sentence for sentence in written.sentences)
