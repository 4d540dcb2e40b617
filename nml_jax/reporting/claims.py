"""What a study of several conditions supports: what is compared (by the rule of paired.py), and the sentences."""

import itertools
import math
from typing import NamedTuple

from nml_jax.reporting.statistics.compare import Side, compared, unvalidated
from nml_jax.reporting.statistics.paired import BLIND, SEEDS, Comparison, listed
from nml_jax.reporting.statistics.studies import MEAN, REFERENCES, ZERO_SHOT, Key, Method, Study

RETRIEVAL = {"i2t_recall@1": "image→text", "t2i_recall@1": "text→image"}

# ---- which numbers are compared


class Measure(NamedTuple):
    """A line of the summary: what it is called there, and which number it is."""

    group: str
    label: str
    key: Key
    flatter: str = ""  # the way a measure of a spectrum goes where the spectrum is flatter


def measures(study: Study, task: str) -> list[Measure]:
    """The summary's measures, as far as the study has them: validation, retrieval, transfer, spectrum of features."""
    validation = study.keys(metric="accuracy", task="pretrain", split="validation", weights="")
    found = [Measure("Pre-training, accuracy %", "clean validation", key) for key in validation]
    for metric, way in RETRIEVAL.items():
        keys = study.keys(metric=metric, task="pretrain", weights="")
        found += [Measure("Retrieval, recall@1 %", f"{split_name(key)}, {way}", key) for key in keys]
    for domain in ("id", "ood"):
        keys = study.keys(metric="accuracy", task=task, split=MEAN, domain=domain)
        found += [Measure(f"{domain.upper()} accuracy %", key.head, key) for key in keys]
    for metric, name, flatter in (("sve", "SVE", "↑"), ("lsvr", "LSVR", "↑"), ("top_share", "top share %", "↓")):
        keys = raw_spectrum(study, task, metric)
        found += [Measure("Spectrum, ID features, raw mode", name, key, flatter) for key in keys]
    return found


def raw_spectrum(study: Study, task: str, metric: str) -> list[Key]:
    """The key of a spectrum's measure in raw mode on the ID features, of the first layer; none where it is missing."""
    return study.keys(metric=metric, task=task, split=study.id_split(task), domain="id", mode="paper", method=None)[:1]


def change(study: Study, key: Key, i: int = -1) -> Comparison:
    """Condition i against the first."""
    labels = [condition.label for condition in study.conditions]
    return compared(study, f"{labels[0]} → {labels[i]}", Side(key), Side(key, (i,)))


def reference(study: Study) -> Method:
    """Return the method that others are compared with."""
    known = [Method(name) for name in REFERENCES]
    return next((method for method in known if study.keys(metric="accuracy", method=method)), known[-1])


def the_reference(study: Study) -> str:
    config, method = study.cells[0].config, reference(study)
    settings = len(config["tune.lrs"]) * len(config["tune.weight_decays"])
    if method.name == "lbfgs":
        settings = len(config["tune.cs"])
    keys, conditions = study.keys(metric="accuracy", method=method), range(len(study.conditions))
    tuned = settings > 1 and not all(unvalidated(study, key, conditions) for key in keys)
    return f"the tuned {method}" if tuned else f"the {method}"


class Pair(NamedTuple):
    """A head, by the key of its accuracy, and the method that it is compared with."""

    key: Key
    base: Method

    @property
    def head(self) -> str:
        return self.key.head

    @property
    def domain(self) -> str:
        return self.key.domain.upper()


def heads(study: Study, task: str) -> dict[Pair, list[Comparison]]:
    """Every head against the reference, and NMTune against the MLP, on the same features.

    Returns:
        pair -> [over the noisy conditions, then in every condition].
    """
    over, where = noisy(study)
    base = reference(study)
    out = {}
    for domain in ("id", "ood"):
        keys = study.keys(metric="accuracy", task=task, split=MEAN, domain=domain)
        pairs = [(key, base) for key in keys if key.method not in (None, base, Method(ZERO_SHOT))]  # which is no head
        pairs += [(key, Method("mlp")) for key in keys if _is_nmtune(key)]
        for key, other in pairs:
            if key._replace(method=other) in study.table:
                a = key._replace(method=other)
                whole = compared(study, where, Side(a, over), Side(key, over))
                each = [compared(study, study.at(c), Side(a, (i,)), Side(key, (i,)))
                        for i, c in enumerate(study.conditions)]  # fmt: skip
                out[Pair(key, other)] = [whole, *(each if len(each) > 1 else [])]
    return out


def _is_nmtune(key: Key) -> bool:
    return key.method is not None and key.method.name == "nmtune"


def noisy(study: Study) -> tuple[list[int], str]:
    """The conditions over which heads are compared, and that in words: those with noise, or all where none has."""
    above = [i for i, condition in enumerate(study.conditions) if condition.x > 0]
    if len(study.conditions) == 1 or (study.axis == "noise" and len(above) == 1):
        i = above[0] if above else 0
        return [i], f"at {study.at(study.conditions[i])}"
    if study.axis == "noise" and above:
        return above, "mean over the noise rates above 0"
    return list(range(len(study.conditions))), f"mean over {study.axis}"


# ---- in words


def lead(study: Study) -> list[str]:
    """What the study shows: paragraphs of sentences that its seeds support; over the mean of its tasks if several."""
    task = MEAN if len(study.tasks) > 1 else next(iter(study.tasks), "")
    paragraphs = [*about(study), *_changes(study, task), *_by_task(study)], _heads(study, task)
    return [" ".join(sentences) for sentences in paragraphs if sentences]


def about(study: Study) -> list[str]:
    """Which runs there are, in a sentence."""
    counts = sorted({len(condition.cells) for condition in study.conditions})
    seeds = f"{counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} seed{'s' if counts[-1] > 1 else ''}"
    first = study.cells[0]
    noise = f"{100 * first.noise:.4g} % {first.noise_kind} noise" if math.isfinite(first.noise) else "unknown noise"
    if len(study.conditions) == 1:
        runs = "1 run" if len(study.cells) == 1 else f"{len(study.cells)} runs"
        return [f"{runs} with {noise}: one condition alone says nothing about what noise does."]
    what = f"rates of {first.noise_kind} noise" if study.axis == "noise" else f"values of {study.axis} with {noise}"
    return [f"{len(study.cells)} runs: {len(study.conditions)} {what}, {seeds} each."]


def _changes(study: Study, task: str) -> list[str]:
    if len(study.conditions) == 1:
        return []
    first, last = study.at(study.conditions[0]).removesuffix(" noise"), study.at(study.conditions[-1])
    found = {measure: change(study, measure.key) for measure in measures(study, task)}
    shared = max((c.n for c in found.values()), default=0)
    if shared < SEEDS:
        seeds = f"{shared} seed{'' if shared == 1 else 's'}"
        return [f"{first} and {last} share {seeds}, and a claim needs {SEEDS}: none is made."]
    out = [_moved(_of_pretraining(m), c) for m, c in found.items() if m.key.task == "pretrain"]
    spectrum = {m.key.metric: c for m, c in found.items() if m.flatter}
    if spectrum:
        signs = {metric: c.sign for metric, c in spectrum.items()}
        flatter = signs.get("sve", 0) - signs.get("top_share", 0)
        whole = {2: ": the spectrum gets flatter", -2: ": the spectrum gets steeper"}.get(flatter, "")
        words = {"sve": "the entropy SVE", "lsvr": "LSVR", "top_share": "the share of the largest singular value"}
        moved = listed([_moved(words[metric], c) for metric, c in spectrum.items()])
        out.append(f"in the spectrum of the in-domain (ID) features (raw mode), {moved}{whole}")
    for domain, name in (("id", "in-domain (ID)"), ("ood", "out-of-domain (OOD)")):
        for m, c in found.items():
            if (m.key.domain, m.key.method) == (domain, Method(ZERO_SHOT)):
                out.append(_moved(f"{name} zero-shot accuracy", c) + _between(study, m.key))
            if (m.key.domain, m.key.method) == (domain, reference(study)):
                setting = f", {m.key.setting}" if m.key.setting else ""
                out.append(_moved(f"{name} accuracy of {the_reference(study)}{setting}", c) + _between(study, m.key))
    sentences = [f"{text[0].upper()}{text[1:]}." for text in out[1:]]
    return [f"From {first} to {last}, {out[0]}.", *sentences] if out else []


def split_name(key: Key) -> str:
    """What a split of pre-training is called in words."""
    return "clean validation" if key.split == "validation" else key.split


def _of_pretraining(measure: Measure) -> str:
    if measure.key.metric == "accuracy":
        return "clean validation accuracy"
    return f"{RETRIEVAL[measure.key.metric]} recall@1 ({split_name(measure.key)})"


def _moved(name: str, c: Comparison) -> str:
    a, b = c.unit.text(c.a), c.unit.text(c.b)
    if c.n < SEEDS:
        return f"{name} has too few seeds (n = {c.n})"
    way = {-1: f"falls from {a} to {b}", 0: f"shows no difference ({a}, {b})", 1: f"rises from {a} to {b}"}[c.sign]
    return f"{name} {way}"


def _between(study: Study, key: Key) -> str:
    """What holds at the conditions between the first and the last."""
    verdicts = [(change(study, key, i).verdict("lower", "higher"), study.conditions[i].label)
                for i in range(1, len(study.conditions) - 1)]  # fmt: skip
    shown = []
    for verdict, group in itertools.groupby(verdicts, key=lambda pair: pair[0]):
        labels = [label for _, label in group]
        shown.append(f"{verdict} at {f'{labels[0]} to {labels[-1]}' if len(labels) > 2 else listed(labels)}")
    return f" ({'; '.join(shown)})" if shown else ""


def _by_task(study: Study) -> list[str]:
    """For several tasks: in how many of them each measure moves."""
    if len(study.tasks) < 2 or len(study.conditions) < 2:
        return []
    signs: dict[str, list[int]] = {}
    for task in study.tasks:
        for m in measures(study, task):
            if m.flatter or m.key.method == reference(study):
                name = m.label.removesuffix(" %") if m.flatter else f"{m.key.domain.upper()} accuracy of the {m.label}"
                signs.setdefault(name, []).append(change(study, m.key).sign)
    moved = [f"{name} rises in {s.count(1)} and falls in {s.count(-1)}" for name, s in signs.items()]
    return [f"Task by task ({len(study.tasks)} of them), {'; '.join(moved)}."] if moved else []


def _heads(study: Study, task: str) -> list[str]:
    base = reference(study)
    found = {p: c[0] for p, c in heads(study, task).items() if p.base == base and _is_nmtune(p.key)}
    if not found:
        return []
    parts: dict[str, list[str]] = {}
    for pair, c in found.items():
        interval = f"95 % interval {c.interval()}: " if c.n > 1 else ""
        parts.setdefault(pair.head, []).append(
            f"{c.unit.signed(c.difference)} points on {pair.domain} ({interval}{c.verdict('worse', 'better')})"
        )
    each = "; ".join(f"{head} {listed(of_head)}" for head, of_head in parts.items())
    said = f"Accuracy against {the_reference(study)} on the same features, {noisy(study)[1]}: {each}."
    if max(c.n for c in found.values()) < SEEDS:
        return [said, f"With fewer than {SEEDS} seeds these are numbers, no claim."]
    if all(c.blind for c in found.values()):
        return [said, f"No claim: {BLIND}."]
    corrected = {p: c.corrected(len(found)) for p, c in found.items()}
    better, worse = ([f"{p.head} on {p.domain}" for p, c in corrected.items() if c.sign == sign] for sign in (1, -1))
    hurts = f"; it hurts: {listed(worse)}" if worse else ""
    also = f" (intervals widened for {len(found)} comparisons)" if len(found) > 1 else ""
    if better:
        return [said, f"NMTune helps here{also}: {listed(better)}{hurts}."]
    return [said, f"No gain from NMTune is shown here{also}{hurts}."]
