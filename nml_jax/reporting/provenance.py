"""What was run, and what it cannot show: the end of every page."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nml_jax.console import shorten
from nml_jax.data.class_names import describe_split
from nml_jax.evals.metrics import REGRESSION
from nml_jax.reporting.blocks import Block, fold, table
from nml_jax.reporting.sentences import add_article, say
from nml_jax.reporting.statistics.compare import uses_files
from nml_jax.reporting.statistics.paired import DASH
from nml_jax.reporting.statistics.studies import FILES, NOISE, REPLICATE, Study, method_of
from nml_jax.runs import goodput
from nml_jax.runs.classes import read_counts
from nml_jax.runs.files import QUARANTINE
from nml_jax.runs.finished import FinishedRun
from nml_jax.runs.rows import UNVALIDATED
from nml_jax.settings import NOT_IDENTITY
from nml_jax.stored import read_lines
from nml_jax.tuning.holdout import find_further

ALWAYS = ("accuracy", REGRESSION)  # one of them is reported of every head
# A stage and a value that it chose -> the key of the grid.
GRIDS = {
    ("tune", "lr"): "tune.lrs", ("tune", "weight_decay"): "tune.weight_decays", ("tune", "C"): "tune.cs",
    ("tune", "alpha"): "tune.alphas", ("tune", "k"): "tune.ks", ("finetune", "lr"): "finetune.lrs",
}  # fmt: skip


def describe_runs(studies: Sequence[Study], left_out: Mapping[str, str]) -> list[Block]:
    """Return what was run: runs, seeds, files, environments, noise, times, chosen settings and configs."""
    cells = [cell for study in studies for cell in study.cells]
    seeds, noisy = sorted({cell.seed for cell in cells}), any(cell.ledger for cell in cells)
    facts = {
        "runs": f"{len(cells)} finished{f', {len(left_out)} not counted' if left_out else ''}",
        "seeds": ", ".join(f"{s} (noise {noise})" if noisy and noise != s else str(s) for s, noise in seeds),
    }
    for key in (f"{FILES}train", f"{FILES}test", f"{FILES}ood"):
        files = dict.fromkeys(str(cell.value(key) or "") for cell in cells)
        facts |= {key: ", ".join(filter(None, files))} if any(files) else {}
    facts |= _describe_features(cells)
    environments = [cell.run["environment"] for cell in cells]
    for key in dict.fromkeys(key for environment in environments for key in environment):
        counts = Counter(str(environment.get(key) or "not recorded") for environment in environments)
        facts[key] = "; ".join(value if len(counts) == 1 else f"{value} ({n} runs)" for value, n in counts.items())
    old = sum("files" not in of for cell in cells for of in cell.run["stages"].values())
    facts["files"] = f"{old} stage(s) are of versions that recorded no SHA-256" if old else "as written (SHA-256)"
    out: list[Block] = [Block("facts", facts)]
    out += [Block("heading", "Not counted"), Block("items", left_out.items())] if left_out else []
    out += [Block("heading", "Noise ledger"), _list_ledgers(cells)] if noisy else []
    out += _list_classes(cells)
    out += [_list_times(cells), *_list_goodput(cells)]
    return out + [block for study in studies for block in (*_list_chosen(study), _list_config(study))]


def _describe_features(cells: Sequence[FinishedRun]) -> dict[str, str]:
    """Return what was read of feature files: the columns used, the views, and how many test rows training had."""
    facts: dict[str, dict[str, None]] = {}  # without repetitions, in order
    for cell in cells:
        for spec, columns in cell.features.get("columns", {}).items():
            ids = cell.features.get("ids", {}).get(spec, {})
            left_out = [f"{name!r} ({ids[name]})" if name in ids else repr(name) for name in columns["left_out"]]
            parts = {"label": [repr(columns["label"])], "features": map(repr, columns["taken"]), "left out": left_out}
            line = "; ".join(f"{what} {shorten(names)}" for what, names in parts.items())
            facts.setdefault(f"columns of {spec}", {})[line] = None
        splits = cell.features.get("splits", ())
        for split in splits:
            if split["views"] > 1:
                line = f"{split['split']}: {split['views']} of each row, and only the first is scored"
                facts.setdefault("views", {})[line] = None
        for line in cell.features.get("groups", ()):
            facts.setdefault("groups", {})[line] = None
        seen, rows = cell.features.get("seen_in_training", {}), {split["split"]: split["rows"] for split in splits}
        for name, count in seen.items():
            line = f"{name}: {count:,} of {rows[name]:,}"
            facts.setdefault("test rows bit-equal to training rows", {})[line] = None
    return {key: "; ".join(lines) for key, lines in facts.items()}


def list_limits(studies: Sequence[Study], shared: bool) -> Block:
    """Return the limits of the numbers, and the rules behind the sentences.

    Args:
        shared: whether seeds share their settings.
    """
    cells = [cell for study in studies for cell in study.cells]
    runs = [len(condition.cells) for study in studies for condition in study.conditions]
    together = all(seed == noise for seed, noise in (cell.seed for cell in cells))
    kinds = list(dict.fromkeys(cell.noise_kind for cell in cells if cell.ledger))
    revisions = len({cell.run["environment"].get("revision") for cell in cells})
    text = say("limits", runs, all(map(uses_files, studies)), shared, together, kinds, revisions)
    return Block("items", [("", point.strip()) for point in text.split("|")])


def _list_ledgers(cells: Sequence[FinishedRun]) -> Block:
    hashes = list(dict.fromkeys(key for cell in cells for key, value in cell.ledger.items() if _is_hash(value)))
    lines = []
    for cell in cells:
        ledger = cell.ledger
        rates = [DASH if ledger.get(key) is None else f"{100 * ledger[key]:.4g} %" for key in ("asked", "realised")]
        count = f"{ledger['count']:,} of {ledger['n']:,}" if {"count", "n"} <= ledger.keys() else DASH
        words = [str(ledger.get(key, DASH)) for key in ("kind", "seed")]
        lines.append([cell.name, *words, *rates, count, *(str(ledger.get(key, DASH))[:12] for key in hashes)])
    head = ["run", "noise", "noise seed", "asked", "realised", "records changed", *hashes]
    caption = "The noise of every run. SHA-256 sums are cut to 12 digits; the whole ledger is the run's noise.json."
    return table(caption, head, {"": lines}, (1, *range(6, len(head))))


def _list_classes(cells: Sequence[FinishedRun]) -> list[Block]:
    """Return the classes of every split and their counts; nothing for runs that did not record them."""
    found: dict[str, Counter[str]] = {}
    for cell in cells:
        for split, counts in read_counts(cell.folder).items():
            found.setdefault(split, Counter())[describe_split("", counts).removeprefix(": ")] += 1
    lines = [[split, text, str(n)] for split, texts in found.items() for text, n in texts.items()]
    caption = "Classes and their records, without noise. Splits that are drawn by the seed differ between runs."
    own = table(caption, ["split", "records of each class", "runs"], {"": lines}, (1,))
    return [fold(f"Classes of {len(found)} splits", own)] if lines else []


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _list_times(cells: Sequence[FinishedRun]) -> Block:
    names, done = [cell.name for cell in cells], [cell.run["stages"] for cell in cells]
    seconds = pd.DataFrame([{stage: of.get("seconds", np.nan) for stage, of in stages.items()} for stages in done])
    finished = [max((of["finished"] for of in stages.values() if "finished" in of), default=DASH) for stages in done]
    texts = seconds.map(lambda x: DASH if pd.isna(x) else f"{x:,.1f}")
    lines = [[name, *line, end] for name, line, end in zip(names, texts.values, finished, strict=True)]
    head, caption = ["run", *(f"{stage} (s)" for stage in seconds), "finished"], "Seconds of each stage, and when"
    total = ", ".join(f"{stage} {x:,.1f} s" for stage, x in seconds.sum().items())
    return fold(f"Time of all runs together: {total}", table(f"{caption} the run was finished.", head, {"": lines}))


def _list_goodput(cells: Sequence[FinishedRun]) -> list[Block]:
    """Return where the wall time of pre-training went; nothing for runs that did not record it."""
    lines, total = [], Counter[str]()
    for cell in cells:
        if (of := goodput.read(cell.folder)) is not None:
            total.update(of.seconds)
            undecodable = cell.folder / QUARANTINE
            cure = f"put it back, or train the run {cell.name} again"
            left_out = len(read_lines(undecodable, cure)) if undecodable.exists() else 0
            parts = [f"{seconds:,.1f}" for seconds in of.seconds.values()]
            lines.append([cell.name, f"{100 * of.share:.0f} %", *parts, *map(str, (of.sessions, of.skipped, left_out))])
    if not lines:
        return []
    caption = (
        "Wall time of pre-training in seconds by what it went to, over all sessions of a run; lost is what an "
        "interruption made a later session do again. Skipped steps had a loss or gradient that was not finite; for "
        "quarantined records, which cannot be decoded, others stood in."
    )
    head = ["run", "goodput", *(f"{part} (s)" for part in total), "sessions", "skipped steps", "quarantined records"]
    share = total["step"] / max(total.total(), 1e-9)
    return [fold(f"Goodput of pre-training, all runs together: {share:.0%}", table(caption, head, {"": lines}))]


def _list_chosen(study: Study) -> list[Block]:
    """Return how often each setting was chosen, by head and task."""
    counts: dict[str, Counter[str]] = {}
    for row in (row for cell in study.cells for row in cell.rows):
        if row.hyper and row.metric in ALWAYS and row.wise_alpha is None:
            setting = ", ".join(f"{key} {value:.4g}" for key, value in row.hyper.items() if key != "temperature")
            counts.setdefault(f"{method_of(row)}, {row.task}", Counter())[setting] += 1
    groups = {name: [[setting, f"{100 * n / of.total():.0f} %"] for setting, n in of.most_common()]
              for name, of in counts.items()}  # fmt: skip
    caption = "Settings of the heads, chosen on a validation part of the training split, and how often each was."
    own = table(caption, ["setting", "chosen"], groups)
    edges = [Block("note", text)] if (text := _say_edges(study)) else []
    return [*edges, fold(f"Chosen hyper-parameters: {study.title}", own)] if groups else []


def _say_edges(study: Study) -> str:
    """Return which settings are the outermost that were tried, so that better ones may lie beyond; "" if none is."""
    found: dict[str, Counter[str]] = {}
    for cell in study.cells:
        for row in cell.rows:
            if row.metric in ALWAYS and row.hyper and row.wise_alpha is None and UNVALIDATED not in row.hyper:
                found_edges = (_find_edge(cell, row.stage, name, value) for name, value in row.hyper.items())
                for edge in filter(None, found_edges):
                    found.setdefault(edge, Counter())[f"{add_article(method_of(row))}"] += 1
    return say("edges", {edge: list(of) for edge, of in found.items()}) if found else ""


def _find_edge(cell: FinishedRun, stage: str, name: str, value: float) -> str:
    """Return a value in words if it is the outermost of its grid, and what lies beyond was not tried; "" if it is not.

    A weight decay of 0 and one neighbour have nothing beyond them.
    """
    key = GRIDS.get((stage, name), "")
    grid = sorted(cell.value(key) or ()) if key else []
    if len(grid) < 2 or grid[0] < value < grid[-1] or (name, value) in (("weight_decay", 0), ("k", 1)):
        return ""
    if value in grid and stage == "tune" and cell.value("tune.widen") and find_further(grid, value) is not None:
        return ""  # what lies beyond was tried, and was no better
    end = "lowest" if value <= grid[0] else "highest"
    return f"{name} {value:.4g}, the {end} of {key}{', which was widened once' * (value not in grid)}"


def _list_config(study: Study) -> Block:
    """Return the config keys that all runs of a study share."""
    several = len(study.conditions) > 1
    varied = {*REPLICATE, *((NOISE if study.axis == "noise" else (study.axis,)) if several else ())}
    shared = {key: value for key, value in study.cells[0].config.items() if key.split(".")[0] not in NOT_IDENTITY}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in shared.items() if key not in varied]
    title = f"Config of all runs: {study.title} (without {', '.join(sorted(varied))})"
    return fold(title, Block("code", "\n".join(lines)))
