"""The tables of a study of several conditions."""

from collections.abc import Hashable, Sequence
from typing import Any

from nml_jax.reporting import claims
from nml_jax.reporting.blocks import Block, Lines, fold, table
from nml_jax.reporting.statistics.paired import DASH, MINUS, Comparison, format_mean, unit
from nml_jax.reporting.statistics.studies import MEAN, Study

SCORES = {"accuracy": "accuracy", "top5": "top-5", "macro_f1": "macro-F1", "mean_per_class": "mean per class"}
WORDS = {
    **SCORES,
    "loss": "loss (nats)",
    "noisy_fit": "wrong labels reproduced",
    "noisy_nearer": "wrong caption nearer than its own (by chance 50 %)",
    **{f"{way}_recall@{k}": f"{name} recall@{k}"
       for way, name in (("i2t", "image→text"), ("t2i", "text→image")) for k in (1, 5, 10)},
}  # fmt: skip
SPECTRA = {"sve": "SVE ↑", "lsvr": "LSVR ↑", "top_share": "top share % ↓", "effective_rank": "effective rank ↑"}
MODES = {"paper": "raw mode", "code": "code mode"}


Frame = Any  # pandas.DataFrame, whose expressions no checker of types can follow


def select(study: Study, **where: Any) -> Frame:
    """Return the lines of `study.frame` with these values, of a list one of them."""
    frame: Frame = study.frame
    for column, value in where.items():
        frame = frame[frame[column].isin(value if isinstance(value, list | dict) else [value])]
    return frame.copy()


def list_summary(study: Study, task: str) -> dict[str, list[list[str]]]:
    """Return the summary: group -> lines of [measure, one text for each condition]."""
    counts = [len(condition.cells) for condition in study.conditions]
    groups: dict[str, list[list[str]]] = {"": [["runs (n)", *map(str, counts)]]}
    for measure in claims.list_measures(study, task):
        line = [f"{measure.label} {measure.flatter}".rstrip()]
        for i, n in enumerate(counts):
            s = study.stat(i, measure.key)
            line.append(format_mean(s, measure.key.metric) + (f" (n = {s.n})" if s.n not in (0, n) else ""))
        groups.setdefault(measure.group, []).append(line)
    return groups


def write_text(study: Study) -> list[list[str]]:
    """Return the summaries of every task as lines of plain text."""
    blocks = []
    for task in [MEAN, *study.tasks] if len(study.tasks) > 1 else study.tasks or [""]:
        lines = [[study.axis, *(condition.label for condition in study.conditions)]]
        for group, of_group in list_summary(study, task).items():
            lines += [[group], *([f"  {label}", *rest] for label, *rest in of_group)] if group else of_group
        first = max(len(line[0]) for line in lines if len(line) > 1)
        lines = [[cell.replace(" ± ", "±") for cell in line] for line in lines]
        width = max(len(cell) for line in lines for cell in line[1:]) + 2
        title = f"{': '.join(filter(None, (study.title, task)))}, mean ± sd over n runs"
        blocks.append([title, *(line[0].ljust(first) + "".join(x.rjust(width) for x in line[1:]) for line in lines)])
    return blocks


def list_evidence(study: Study, task: str, prefix: str) -> list[Block]:
    """Return the comparisons behind the sentences, and more of them."""
    out: list[Block] = []
    changes, last, reference = {}, len(study.conditions) - 1, claims.find_reference(study)
    for measure in claims.list_measures(study, task) if last else ():
        for i in range(1 if measure.key.method == reference else last, last + 1):
            c = claims.compare_condition(study, measure.key, i)
            label, *numbers = _make_line(measure.label, c, "falls", "rises")
            changes.setdefault(measure.group, []).append([label, c.where, *numbers])
    if changes:
        head = ["", study.axis, "from", "to", "difference", "95 % interval", "n", "verdict"]
        out.append(table(f"{prefix}What changes with {study.axis}, paired over seeds.", head, changes, (1, 7)))
    whole: dict[str, list[list[str]]] = {}
    each: dict[str, list[list[str]]] = {}
    for pair, (over, *conditions) in claims.compare_heads(study, task).items():
        name, group = f"{pair.key.head} {MINUS} {pair.base}", claims.name_group(pair.domain, pair.key.metric)
        whole.setdefault(group, []).append(_make_line(name, over, *pair.verdicts))
        if conditions:
            each[f"{group}, {name}"] = [_make_line(c.where, c, *pair.verdicts) for c in conditions]
    head, caption = (
        ["", "base", "head", "difference", "95 % interval", "n", "verdict"],
        "Heads compared on the same features",
    )
    if whole:
        where = claims.find_noisy(study)[1]
        out.append(table(f"{prefix}{caption}, paired over seeds; {where}.", head, whole, (6,)))
    if each:
        own = table(f"{prefix}{caption}, paired over seeds.", head, each, (6,))
        out.append(fold(f"Heads compared for each value of {study.axis}", own))
    return out


def _make_line(name: str, c: Comparison, down: str, up: str) -> list[str]:
    numbers = [c.unit.number(c.a), c.unit.number(c.b)] if c.n else [DASH] * 2
    return [name, *numbers, c.gain, c.interval(), str(c.n), c.verdict(down, up)]


def _list_by_condition(
    study: Study, frame: Frame, group: str, column: str, order: Sequence[str]
) -> dict[Hashable, Lines]:
    """Return group -> a line for each condition: its name, n, and the texts of the columns."""
    out: dict[Hashable, Lines] = {}
    for name, part in frame.groupby(group, sort=False):
        texts = part.pivot(index="i", columns=column, values="text").reindex(columns=order).fillna(DASH)
        n = part.groupby("i")["n"].max()
        out[name] = [[c.label, str(n[i]), *texts.loc[i]] for i, c in enumerate(study.conditions)]
    return out


def list_scores(study: Study, task: str, prefix: str) -> list[Block]:
    """Return every score of every head in every condition, then the accuracy on each test split by itself."""
    out: list[Block] = []
    frame = select(study, task=task, metric=SCORES, output="")
    frame = frame[frame["method"] != ""]
    frame["column"] = frame["domain"].str.upper() + " " + frame["metric"].map(SCORES) + " %"
    means = frame[frame["split"] == MEAN]
    if len(means):
        names = [f"{domain} {label} %" for domain in ("ID", "OOD") for label in SCORES.values()]
        columns = [name for name in names if (means["column"] == name).any()]
        caption = "Scores of every head, mean ± sample sd over n runs. OOD is the mean over the out-of-domain splits."
        groups = _list_by_condition(study, means, "head", "column", columns)
        out.append(table(prefix + caption, [study.axis, "n", *columns], groups))
    parts = frame[(frame["metric"] == "accuracy") & (frame["split"] != MEAN)].copy()
    parts["column"] = parts["domain"].str.upper() + " " + parts["split"]
    if parts["column"].nunique() > 1:
        rows = [row for cell in study.cells for row in cell.rows if row.task == task and row.method]
        sizes = {row.split: row.n_test for row in rows if row.n_test}
        tested = ", ".join(f"{split} {sizes[split]:,}" for split in parts["split"].unique() if split in sizes)
        caption = f"Accuracy % on every test split, mean ± sample sd over n runs. Examples: {tested or DASH}."
        columns = list(parts["column"].unique())
        groups = _list_by_condition(study, parts, "head", "column", columns)
        out.append(table(prefix + caption, [study.axis, "n", *columns], groups))
    return out


def list_spectra(study: Study, task: str, prefix: str) -> list[Block]:
    """Return every spectrum in every mode; only the in-domain features are unfolded."""
    frame, out = select(study, task=task, metric=SPECTRA), []
    metrics = [metric for metric in SPECTRA if (frame["metric"] == metric).any()]
    frame["name"] = frame["layer"].where(frame["method"] == "", "Z of " + frame["head"])
    frame["name"] += ", " + frame["domain"].str.upper() + " " + frame["split"] + ", " + frame["mode"].map(name_mode)
    first = (frame["split"] == study.id_split(task)) & (frame["method"] == "")
    head = [study.axis, "n", *(SPECTRA[metric] for metric in metrics)]
    if first.any():
        caption = f"{prefix}Spectra, mean ± sample sd over n runs; arrows point to the flatter spectrum."
        out.append(table(caption, head, _list_by_condition(study, frame[first], "name", "metric", metrics)))
    if len(rest := _list_by_condition(study, frame[~first], "name", "metric", metrics)):
        caption = f"{prefix}Spectra of the other splits, and of what heads make of the features (Z)."
        title = f"{len(rest)} more spectra: other splits, and what heads make of the features (Z)"
        out.append(fold(title, table(caption, head, rest)))
    return out


def name_mode(mode: str) -> str:
    return MODES.get(mode, mode)


def _name_score(metric: str) -> str:
    return WORDS.get(metric, metric) + unit(metric).suffix


def list_pretraining(study: Study) -> list[Block]:
    """Return the scores of pre-training."""
    frame = select(study, task="pretrain")
    if not len(frame):
        return []
    frame["column"] = frame["split"] + ": " + frame["metric"].map(_name_score)
    columns = list(frame["column"].unique())
    caption = "Scores of pre-training, mean ± sample sd over n runs. Validation labels and captions are clean."
    groups = _list_by_condition(study, frame.assign(group=""), "group", "column", columns)
    return [table(caption, [study.axis, "n", *columns], groups)]
