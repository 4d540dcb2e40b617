"""The report's tables as HTML: text in, escaped text out."""

import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from nml_jax.reporting import claims
from nml_jax.reporting.markup import Lines, folded, table
from nml_jax.reporting.statistics.paired import DASH, MINUS, Comparison, Stat, unit
from nml_jax.reporting.statistics.studies import MEAN, NOISE, REPLICATE, Key, Method, Study, method_of
from nml_jax.runs import goodput
from nml_jax.runs.files import QUARANTINE
from nml_jax.runs.finished import FinishedRun
from nml_jax.settings import NOT_IDENTITY

SCORES = {"accuracy": "accuracy", "top5": "top-5", "macro_f1": "macro-F1", "mean_per_class": "mean per class"}
WORDS = {
    "noisy_fit": "wrong labels reproduced",
    "noisy_nearer": "wrong caption nearer than its own (by chance 50 %)",
    **{f"{way}_recall@{k}": f"{name} recall@{k}"
       for way, name in (("i2t", "image→text"), ("t2i", "text→image")) for k in (1, 5, 10)},
}  # fmt: skip
SPECTRA = {"sve": "SVE ↑", "lsvr": "LSVR ↑", "top_share": "top share % ↓", "effective_rank": "effective rank ↑"}
MODES = {"paper": "raw mode", "code": "code mode"}


def shown(s: Stat, metric: str) -> str:
    """Mean ± sample sd in the metric's unit; the mean alone for one number, a dash for none."""
    u = unit(metric)
    if not s.n:
        return DASH
    return f"{u.number(s.mean)} ± {u.number(s.sd)}" if s.n > 1 else u.number(s.mean)


# ---- what the runs say


def summary(study: Study, task: str) -> dict[str, list[list[str]]]:
    """The summary: group -> lines of [measure, one text for each condition]."""
    counts = [len(condition.cells) for condition in study.conditions]
    groups: dict[str, list[list[str]]] = {"": [["runs (n)", *map(str, counts)]]}
    for measure in claims.measures(study, task):
        metric = measure.key.metric
        line = [f"{measure.label} {measure.flatter}".rstrip()]
        for i, n in enumerate(counts):
            s = study.stat(i, measure.key)
            line.append(shown(s, metric) + (f" (n = {s.n})" if s.n not in (0, n) else ""))
        groups.setdefault(measure.group, []).append(line)
    return groups


def evidence(study: Study, task: str, prefix: str) -> str:
    """The comparisons behind the sentences, and more of them."""
    out, changes, last = "", {}, len(study.conditions) - 1
    reference = claims.reference(study)
    for measure in claims.measures(study, task) if last else ():
        for i in range(1 if measure.key.method == reference else last, last + 1):
            c = claims.change(study, measure.key, i)
            label, *numbers = _line(measure.label, c, "falls", "rises")
            changes.setdefault(measure.group, []).append([label, c.where, *numbers])
    if changes:
        head = ["", study.axis, "from", "to", "difference", "95 % interval", "n", "verdict"]
        out += table(f"{prefix}What changes with {study.axis}, paired over seeds.", head, changes, (1, 7))
    whole: dict[str, list[list[str]]] = {}
    each: dict[str, list[list[str]]] = {}
    found = claims.heads(study, task)
    for pair, (over, *conditions) in found.items():
        name = f"{pair.head} {MINUS} {pair.base}"
        whole.setdefault(f"{pair.domain} accuracy %", []).append(_line(name, over, "worse", "better"))
        lines = [_line(c.where, c, "worse", "better") for c in conditions]
        each |= {f"{pair.domain} accuracy %, {name}": lines} if lines else {}
    if found:
        head = ["", "base", "head", "difference", "95 % interval", "n", "verdict"]
        where = claims.noisy(study)[1]
        out += table(f"{prefix}Heads compared on the same features, paired over seeds; {where}.", head, whole, (6,))
    if each:
        content = table(f"{prefix}Heads compared on the same features, paired over seeds.", head, each, (6,))
        out += folded(f"Heads compared for each value of {study.axis}", content)
    return out


def _line(name: str, c: Comparison, down: str, up: str) -> list[str]:
    numbers = [c.unit.number(c.a), c.unit.number(c.b), c.unit.signed(c.difference)] if c.n else [DASH] * 3
    return [name, *numbers, c.interval(), str(c.n), c.verdict(down, up)]


def scores(study: Study, task: str, prefix: str) -> str:
    """Every score of every head in every condition, then the accuracy on each test split by itself."""
    heads = list(
        dict.fromkeys((key.method, key.setting) for key in study.keys(metric="accuracy", task=task, split=MEAN))
    )
    columns = [
        (Key(metric, task, MEAN, domain), f"{domain.upper()} {label} %")
        for domain in ("id", "ood")
        for metric, label in SCORES.items()
        if study.keys(metric=metric, task=task, split=MEAN, domain=domain)
    ]
    caption = (
        f"{prefix}Scores of every head, mean ± sample sd over n runs. OOD is the mean over the out-of-domain splits."
    )
    out = _by_head(study, caption, heads, columns) if columns else ""
    known = [key for key in study.keys(metric="accuracy", task=task) if key.method and key.split != MEAN]
    splits = dict.fromkeys(key._replace(method=None, setting="") for key in known)
    if len(splits) > 1:
        rows = [row for cell in study.cells for row in cell.rows if row.task == task and row.method]
        sizes = {row.split: row.n_test for row in rows if row.n_test}
        tested = ", ".join(f"{key.split} {sizes[key.split]:,}" for key in splits if key.split in sizes)
        caption = f"{prefix}Accuracy % on every test split, mean ± sample sd over n runs. Examples: {tested or DASH}."
        out += _by_head(study, caption, heads, [(key, f"{key.domain.upper()} {key.split}") for key in splits])
    return out


def _by_head(
    study: Study, caption: str, heads: Sequence[tuple[Method | None, str]], columns: Sequence[tuple[Key, str]]
) -> str:
    groups: dict[str, Lines] = {}
    for method, setting in heads:
        keys = [key._replace(method=method, setting=setting) for key, _ in columns]
        groups[keys[0].head] = _conditions(study, keys)
    return table(caption, [study.axis, "n", *(label for _, label in columns)], groups)


def _conditions(study: Study, keys: Sequence[Key]) -> Lines:
    """A line for each condition: its name, n, and the numbers of the keys."""
    for i, condition in enumerate(study.conditions):
        stats = [study.stat(i, key) for key in keys]
        numbers = [shown(s, key.metric) for s, key in zip(stats, keys, strict=True)]
        yield [condition.label, str(max(s.n for s in stats)), *numbers]


def spectra(study: Study, task: str, prefix: str) -> str:
    """Every spectrum in every mode: the in-domain features open, other splits and the heads' outputs Z folded."""
    metrics = [metric for metric in SPECTRA if study.keys(metric=metric, task=task)]
    first: dict[str, Lines] = {}
    rest: dict[str, Lines] = {}
    for key in study.keys(metric="sve", task=task):
        name = f"{f'Z of {key.head}' if key.method else key.layer}, {key.domain.upper()} {key.split}"
        name += f", {MODES.get(key.mode, key.mode)}"
        into = first if key.split == study.id_split(task) and not key.method else rest
        into[name] = _conditions(study, [key._replace(metric=metric) for metric in metrics])
    head = [study.axis, "n", *(SPECTRA[metric] for metric in metrics)]
    caption = (
        f"{prefix}Spectra, mean ± sample sd over n runs; arrows point to the flatter spectrum. Raw mode takes the "
        "features as they are; code mode, that of the released code, normalises every row and subtracts its mean."
    )
    out = table(caption, head, first) if first else ""
    if rest:
        more = table(f"{prefix}Spectra of the other splits, and of what heads make of the features (Z).", head, rest)
        out += folded(f"{len(rest)} more spectra: other splits, and what heads make of the features (Z)", more)
    return out


def pretraining(study: Study) -> str:
    keys = study.keys(task="pretrain")
    names = [f"{key.place}: {WORDS.get(key.metric, SCORES.get(key.metric, key.metric))} %" for key in keys]
    caption = "Scores of pre-training, mean ± sample sd over n runs. Validation labels and captions are clean."
    return table(caption, [study.axis, "n", *names], {"": _conditions(study, keys)}) if keys else ""


# ---- what was run


def ledgers(cells: Sequence[FinishedRun]) -> str:
    hashes = list(dict.fromkeys(key for cell in cells for key, value in cell.ledger.items() if _is_hash(value)))
    lines = []
    for cell in cells:
        ledger = cell.ledger
        rates = [DASH if ledger.get(key) is None else f"{100 * ledger[key]:.4g} %" for key in ("asked", "realised")]
        count = f"{ledger['count']:,} of {ledger['n']:,}" if {"count", "n"} <= ledger.keys() else DASH
        words = [str(ledger.get(key, DASH)) for key in ("kind", "seed")]
        lines.append([cell.name, *words, *rates, count, *(str(ledger.get(key, DASH))[:12] for key in hashes)])
    head = ["run", "noise", "noise seed", "asked", "realised", "records changed", *hashes]
    caption = "The noise of every run. Of SHA-256 sums the first 12 digits; the whole ledger is the run's noise.json."
    return table(caption, head, {"": lines}, (1, *range(6, len(head))))


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def times(cells: Sequence[FinishedRun]) -> str:
    stages = list(dict.fromkeys(stage for cell in cells for stage in cell.run["stages"]))
    lines, total = [], Counter[str]()
    for cell in cells:
        done = cell.run["stages"]
        total.update({stage: done[stage]["seconds"] for stage in done})
        seconds = [f"{done[stage]['seconds']:,.1f}" if stage in done else DASH for stage in stages]
        lines.append([cell.name, *seconds, max((done[stage]["finished"] for stage in done), default=DASH)])
    caption = "Seconds of each stage, and when the run was finished."
    shown_total = ", ".join(f"{stage} {total[stage]:,.1f} s" for stage in stages)
    content = table(caption, ["run", *(f"{stage} (s)" for stage in stages), "finished"], {"": lines})
    return folded(f"Time of all runs together: {shown_total}", content)


def goodput_of(cells: Sequence[FinishedRun]) -> str:
    """Where the wall time of pre-training went, and what was left out; nothing for runs that did not record it."""
    lines, total = [], Counter[str]()
    for cell in cells:
        if (of := goodput.read(cell.folder)) is not None:
            total.update(of.seconds)
            undecodable = cell.folder / QUARANTINE
            left_out = len(undecodable.read_text("utf-8").splitlines()) if undecodable.exists() else 0
            parts = [f"{of.seconds[part]:,.1f}" for part in of.seconds]
            counts = [f"{of.sessions}", f"{of.skipped}", f"{left_out}"]
            lines.append([cell.name, f"{100 * of.share:.0f} %", *parts, *counts])
    if not lines:
        return ""
    caption = (
        "Wall time of pre-training in seconds by what it went to, over all sessions of a run; lost is what an "
        "interruption made a later session do again. Skipped steps had a loss or gradient that was not finite; for "
        "quarantined records, which cannot be decoded, others stood in."
    )
    head = ["run", "goodput", *(f"{part} (s)" for part in total), "sessions", "skipped steps", "quarantined records"]
    share = total["step"] / max(total.total(), 1e-9)
    return folded(f"Goodput of pre-training, all runs together: {share:.0%}", table(caption, head, {"": lines}))


def chosen(study: Study) -> str:
    """How often each setting was chosen, by head and task."""
    counts: dict[str, Counter[str]] = {}
    for row in (
        row
        for cell in study.cells
        for row in cell.rows
        if row.hyper and row.metric == "accuracy" and row.wise_alpha is None
    ):
        setting = ", ".join(f"{key} {value:.4g}" for key, value in (row.hyper or {}).items())
        counts.setdefault(f"{method_of(row)}, {row.task}", Counter())[setting] += 1
    groups = {name: [[setting, f"{100 * n / of.total():.0f} %"] for setting, n in of.most_common()]
              for name, of in counts.items()}  # fmt: skip
    caption = "Settings of the heads, chosen on a validation part of the training split, and how often each was."
    content = table(caption, ["setting", "chosen"], groups)
    return folded(f"Chosen hyper-parameters: {study.title}", content) if groups else ""


def config(study: Study) -> str:
    """What all runs of a study share."""
    several = len(study.conditions) > 1
    varied = {*REPLICATE, *((NOISE if study.axis == "noise" else (study.axis,)) if several else ())}
    shared = {key: value for key, value in study.cells[0].config.items() if key.split(".")[0] not in NOT_IDENTITY}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in shared.items() if key not in varied]
    title = f"Config of all runs: {study.title} (without {', '.join(sorted(varied))})"
    return folded(title, f"<pre>{escape(chr(10).join(lines))}</pre>")
