"""What a study of several conditions supports: which numbers are compared (by the rule of paired.py), and sentences."""

import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from nml_jax.reporting.sentences import say
from nml_jax.reporting.statistics.choose_method import DOMAINS, find_metric, name_points
from nml_jax.reporting.statistics.compare import Side, compare_numbers, is_unvalidated
from nml_jax.reporting.statistics.paired import SEEDS, Comparison, unit
from nml_jax.reporting.statistics.studies import (
    MEAN,
    MEASURES,
    REFERENCES,
    REGRESSION_REFERENCES,
    ZERO_SHOT,
    Key,
    Method,
    Study,
)
from nml_jax.reporting.tables import detection

RETRIEVAL = {"i2t_recall@1": "image→text", "t2i_recall@1": "text→image"}
SPECTRUM = {"sve": "the entropy SVE", "lsvr": "LSVR", "top_share": "the share of the largest singular value"}

# ---- which numbers are compared


class Measure(NamedTuple):
    """A line of the summary: what it is called there, and which number it is."""

    group: str
    label: str
    key: Key
    flatter: str = ""  # the way a measure of a spectrum goes where the spectrum is flatter


def list_measures(study: Study, task: str) -> list[Measure]:
    """Return the summary's measures that the study has: validation, retrieval, transfer, spectrum of features."""
    validation = study.keys(metric="accuracy", task="pretrain", split="validation", weights="")
    found = [Measure("Pre-training, accuracy %", "clean validation", key) for key in validation]
    for metric, way in RETRIEVAL.items():
        keys = study.keys(metric=metric, task="pretrain", weights="")
        found += [Measure("Retrieval, recall@1 %", f"{name_split(key)}, {way}", key) for key in keys]
    metric = find_metric(study, task)
    for domain in DOMAINS:
        keys = study.keys(metric=metric, task=task, split=MEAN, domain=domain)
        found += [Measure(name_group(domain, metric), key.head, key) for key in keys]
    for metric, words in (("box_AP", "boxes"), ("mask_AP", "masks")):
        keys = detection.list_keys(study, metric)
        found += [Measure(f"Detection, AP % of {words}", key.head, key) for key in keys]
    for metric, name, flatter in (("sve", "SVE", "↑"), ("lsvr", "LSVR", "↑"), ("top_share", "top share %", "↓")):
        keys = find_raw_spectrum(study, task, metric)
        found += [Measure("Spectrum, ID features, raw mode", name, key, flatter) for key in keys]
    return found


def name_group(domain: str, metric: str) -> str:
    """Return the heading of a domain's scores."""
    unit_of, points = unit(metric).suffix, name_points(metric)
    return f"{domain.upper()} {name_metric(metric)}{unit_of}" + (f" ({points})" if points != "points" else "")


def name_metric(metric: str) -> str:
    """Return the name of a metric that decides, without an article."""
    return MEASURES[metric].title.removeprefix("the ")


def find_raw_spectrum(study: Study, task: str, metric: str) -> list[Key]:
    """Return the key of a spectrum's measure in raw mode on the ID features of the first layer, if there is one."""
    return study.keys(metric=metric, task=task, split=study.id_split(task), domain="id", mode="paper", method=None)[:1]


def compare_condition(study: Study, key: Key, i: int = -1) -> Comparison:
    """Compare condition i with the first."""
    labels = [condition.label for condition in study.conditions]
    return compare_numbers(study, f"{labels[0]} → {labels[i]}", Side(key), Side(key, (i,)))


def find_reference(study: Study) -> Method:
    """Return the method that others are compared with."""
    metric = find_metric(study, _main_task(study))
    names = REFERENCES if MEASURES[metric].needs in ("confusion", "losses") else REGRESSION_REFERENCES
    known = [Method(name) for name in names]
    return next((method for method in known if study.keys(metric=metric, method=method)), known[-1])


def name_reference(study: Study) -> str:
    config, method = study.cells[0].config, find_reference(study)
    settings = len(config["tune.lrs"]) * len(config["tune.weight_decays"])
    if method.name == "lbfgs":
        settings = len(config["tune.cs"])
    keys, conditions = study.keys(metric="accuracy", method=method), range(len(study.conditions))
    tuned = settings > 1 and not all(is_unvalidated(study, key, conditions) for key in keys)
    return f"the tuned {method}" if tuned else f"the {method}"


class Pair(NamedTuple):
    """A head, by the key of its score, and the method that it is compared with."""

    key: Key
    base: Method

    @property
    def domain(self) -> str:
        return self.key.domain.upper()

    @property
    def way(self) -> int:
        """Return 1 if a larger score is better, else −1."""
        return MEASURES[self.key.metric].way

    @property
    def verdicts(self) -> tuple[str, str]:
        """Return what a negative difference is, and a positive one."""
        return ("worse", "better") if self.way > 0 else ("better", "worse")


def compare_heads(study: Study, task: str) -> dict[Pair, list[Comparison]]:
    """Compare every head with the reference, and NMTune with the MLP, on the same features.

    Returns:
        pair -> [over the noisy conditions, then in every condition].
    """
    over, where = find_noisy(study)
    metric = find_metric(study, task)
    base, no_heads, out = find_reference(study), (None, find_reference(study), Method(ZERO_SHOT)), {}
    for domain in DOMAINS:
        keys = study.keys(metric=metric, task=task, split=MEAN, domain=domain)
        pairs = [(key, base) for key in keys if key.method not in no_heads]
        pairs += [(key, Method("mlp")) for key in keys if key.method and key.method.name == "nmtune"]
        for key, other in pairs:
            if key._replace(method=other) in study.table:
                a = key._replace(method=other)
                whole = compare_numbers(study, where, Side(a, over), Side(key, over))
                each = [compare_numbers(study, study.at(c), Side(a, (i,)), Side(key, (i,)))
                        for i, c in enumerate(study.conditions)]  # fmt: skip
                out[Pair(key, other)] = [whole, *(each if len(each) > 1 else [])]
    return out


def find_noisy(study: Study) -> tuple[list[int], str]:
    """Return the conditions over which heads are compared, and that in words: those with noise, else all."""
    above = [i for i, condition in enumerate(study.conditions) if condition.x > 0]
    if len(study.conditions) == 1 or (study.axis == "noise" and len(above) == 1):
        i = above[0] if above else 0
        return [i], f"at {study.at(study.conditions[i])}"
    if study.axis == "noise" and above:
        return above, "mean over the noise rates above 0"
    return list(range(len(study.conditions))), f"mean over {study.axis}"


# ---- in words


def write_verdict(study: Study) -> list[str]:
    """Return what the study shows in two or three short sentences."""
    ends, found, few = _compare_ends(study)
    if few or not found:
        return [*describe_runs(study), *few]
    told = _list_told(study, found)
    accuracy = {domain: found[m] for domain, m in told.items()}
    zero_shot = any(m.key.method == Method(ZERO_SHOT) for m in told.values())
    name = "zero-shot classification" if zero_shot else name_reference(study)
    spectrum = {m.key.metric: c for m, c in found.items() if m.flatter}
    measure = name_metric(find_metric(study, _main_task(study)))
    facts_of = *ends, f"{measure} of {name}", accuracy, spectrum, _flattens(spectrum)
    sentences = [say("verdict", *facts_of)] if accuracy or spectrum else []
    facts = _compare_nmtune(study)
    if facts and not facts["state"]:
        sentences.append(say("nmtune_verdict", facts["better"], facts["worse"]))
    return sentences or describe_runs(study)


def _list_told(study: Study, found: Iterable[Measure]) -> dict[str, Measure]:
    """Return domain -> the accuracy that the verdict is about: of the reference, or else of zero-shot answers."""
    for method in (find_reference(study), Method(ZERO_SHOT)):
        told: dict[str, Measure] = {}
        for m in found:
            if m.key.method == method:
                told.setdefault(m.key.domain, m)
        if told:
            return told
    return {}


def write_lead(study: Study) -> list[str]:
    """Return sentences of all that the seeds support; over the mean of the tasks if there are several."""
    return [*describe_runs(study), *_describe_changes(study), *_count_by_task(study), *_describe_heads(study)]


def write_details(study: Study) -> list[str]:
    """Return what `write_lead` says and `write_verdict` does not."""
    return [*describe_runs(study), *_describe_changes(study, brief=True), *_count_by_task(study),
            *_describe_heads(study, brief=True)]  # fmt: skip


def describe_runs(study: Study) -> list[str]:
    """Return which runs there are, in a sentence."""
    first, seeds = study.cells[0], [len(condition.cells) for condition in study.conditions]
    noise = f"{100 * first.noise:.4g} % {first.noise_kind} noise" if math.isfinite(first.noise) else "unknown noise"
    same = len({(cell.noise_kind, cell.noise) for cell in study.cells if math.isfinite(cell.noise)}) < 2
    with_noise = f" with {noise}" if same else ""  # conditions may differ in just that
    what = f"rates of {first.noise_kind} noise" if study.axis == "noise" else f"values of {study.axis}{with_noise}"
    return [say("about", len(study.conditions), len(study.cells), noise, what, seeds)]


def name_split(key: Key) -> str:
    """Return what a split of pre-training is called in words."""
    return "clean validation" if key.split == "validation" else key.split


def _main_task(study: Study) -> str:
    return MEAN if len(study.tasks) > 1 else next(iter(study.tasks), "")


def _compare_ends(study: Study) -> tuple[tuple[str, str], dict[Measure, Comparison], list[str]]:
    """Return the first and last condition, every measure's change between them, and that too few seeds share them."""
    ends = study.at(study.conditions[0]).removesuffix(" noise"), study.at(study.conditions[-1])
    if len(study.conditions) == 1:
        return ends, {}, []
    found = {measure: compare_condition(study, measure.key) for measure in list_measures(study, _main_task(study))}
    shared = max((c.n for c in found.values()), default=0)
    return ends, found, [say("too_few", *ends, shared)] if shared < SEEDS else []


def _flattens(spectrum: dict[str, Comparison]) -> int:
    """Return 1 if a spectrum gets flatter by two measures, -1 if it gets steeper, else 0."""
    signs = {metric: c.sign for metric, c in spectrum.items()}
    return {2: 1, -2: -1}.get(signs.get("sve", 0) - signs.get("top_share", 0), 0)


def _describe_changes(study: Study, *, brief: bool = False) -> list[str]:
    """Return how every measure changes. In brief, leave out what the verdict says."""
    (first, last), found, few = _compare_ends(study)
    if few:
        return few
    told, between = _list_told(study, found) if brief else {}, []
    out = [say("moved", _name_pretraining(m.key), c) for m, c in found.items() if m.key.task == "pretrain"]
    spectrum = {m.key.metric: c for m, c in found.items() if m.flatter}
    if spectrum:
        moved = [say("moved", SPECTRUM[metric], c) for metric, c in spectrum.items()]
        out.append(say("moved_spectrum", moved, 0 if brief else _flattens(spectrum)))
    measure = name_metric(find_metric(study, _main_task(study)))
    names = {Method(ZERO_SHOT): f"zero-shot {measure}", find_reference(study): f"{measure} of {name_reference(study)}"}
    for domain, where in DOMAINS.items():
        for m, c in found.items():
            if m.key.domain == domain and m.key.method and m.key.method in names:
                setting = f", {m.key.setting}" if m.key.setting and m.key.method == find_reference(study) else ""
                name = f"{where} ({domain.upper()}) {names[m.key.method]}{setting}"
                inner = _list_verdicts_between(study, m.key)
                if told.get(domain) == m:
                    short = name if setting else f"{where} ({domain.upper()}) {measure}"
                    between += [f"{say('between', short, inner)}."] if inner else []
                else:
                    out.append(say("moved", name, c, inner))
    sentences = [f"{text[0].upper()}{text[1:]}" for text in (*(f"{text}." for text in out[1:]), *between)]
    return [*([f"From {first} to {last}, {out[0]}."] if out else []), *sentences]


def _name_pretraining(key: Key) -> str:
    if key.metric == "accuracy":
        return "clean validation accuracy"
    return f"{RETRIEVAL[key.metric]} recall@1 ({name_split(key)})"


def _list_verdicts_between(study: Study, key: Key) -> list[tuple[str, list[str]]]:
    """Return the verdicts at the conditions between the first and the last, each with its conditions."""
    verdicts = [(compare_condition(study, key, i).verdict("lower", "higher"), study.conditions[i].label)
                for i in range(1, len(study.conditions) - 1)]  # fmt: skip
    groups = itertools.groupby(verdicts, key=lambda pair: pair[0])
    return [(verdict, [label for _, label in group]) for verdict, group in groups]


def _count_by_task(study: Study) -> list[str]:
    """Return in how many of several tasks each measure moves."""
    if len(study.tasks) < 2 or len(study.conditions) < 2:
        return []
    signs: dict[str, list[int]] = {}
    for task in study.tasks:
        for m in list_measures(study, task):
            if m.flatter or m.key.method == find_reference(study):
                if m.flatter:
                    name = m.label.removesuffix(" %")
                else:
                    name = f"{m.key.domain.upper()} {name_metric(m.key.metric)} of the {m.label}"
                signs.setdefault(name, []).append(compare_condition(study, m.key).sign)
    return [say("by_task", len(study.tasks), signs)] if signs else []


def _compare_nmtune(study: Study) -> dict[str, Any]:
    """Return how NMTune compares with the reference, and where it helps and hurts; {} without NMTune."""
    base, task = find_reference(study), _main_task(study)
    found = {p: c[0] for p, c in compare_heads(study, task).items()
             if p.base == base and p.key.method and p.key.method.name == "nmtune"}  # fmt: skip
    if not found:
        return {}
    few, blind = max(c.n for c in found.values()) < SEEDS, all(c.blind for c in found.values())
    signs = {f"{p.key.head} on {p.domain}": p.way * c.corrected(len(found)).sign for p, c in found.items()}
    better, worse = ([where for where, sign in signs.items() if sign == way] for way in (1, -1))
    return {"found": found, "state": "few" if few else "blind" if blind else "", "better": better, "worse": worse}


def _describe_heads(study: Study, *, brief: bool = False) -> list[str]:
    """Return how heads compare, and what is claimed of them. In brief, leave out the claim, which the verdict makes."""
    if not (facts := _compare_nmtune(study)):
        return []
    each: dict[str, list[tuple[Pair, Comparison]]] = {}
    for pair, c in facts["found"].items():
        each.setdefault(pair.key.head, []).append((pair, c))
    metric = find_metric(study, _main_task(study))
    points = name_points(metric)
    measure = f"{MEASURES[metric].title[:1].upper()}{MEASURES[metric].title[1:]}"
    said = say("heads", name_reference(study), find_noisy(study)[1], each, measure, points)
    n = len(facts["found"])
    if brief and not facts["state"]:
        return [said, *([say("heads_widened", n)] if n > 1 else [])]
    return [said, say("heads_claim", facts["state"], facts["better"], facts["worse"], n)]
