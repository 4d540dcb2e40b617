"""What the report says of labels that may be wrong: how many, which, and whether heads without them are better."""

from collections.abc import Sequence

from nml_jax.reporting.blocks import Block, table
from nml_jax.reporting.statistics.choose_method import Contest, name_test
from nml_jax.reporting.statistics.compare import Side, compare_numbers
from nml_jax.reporting.statistics.paired import PERCENT, format_mean
from nml_jax.reporting.statistics.studies import SUSPECTS, Study
from nml_jax.tuning.label_errors import describe_share

SHOWN = 10  # pairs of given and likely label
VERDICTS = ("worse", "better")
KEEP = SUSPECTS.format("keep")
TREATED = {SUSPECTS.format("drop"): "dropped", SUSPECTS.format("relabel"): "relabelled"}


def list_label_errors(study: Study, task: str, prefix: str) -> list[Block]:
    """Return the estimate of wrong labels, and the pairs that are confused most; nothing if labels were not judged."""
    found = [(cell.name, entry) for cell in study.cells for entry in cell.label_errors if entry["task"] == task]
    once = all(entry == found[0][1] for _, entry in found)  # a training file has no seeds
    out: list[Block] = []
    for name, entry in found[:1] if once else found:
        where = "" if once else f"{name}, {entry['layer']}: "
        if entry["untold"]:
            out.append(Block("p", f"{prefix}{where}Labels cannot be judged: {entry['untold']}."))
            continue
        said = describe_share(entry["share"], *entry["interval"])
        out.append(Block("p", (
            f"{prefix}{where}Among the training labels, {said}. A probe has judged each of {entry['rows']:,} rows by "
            "others, and a row that looks like another class for a reason of its own passes for a wrong label. "
            f"{entry['suspects']:,} are more likely wrong than right: suspects.csv in the run's folder lists them."
        )))  # fmt: skip
    pairs = [pair for pair in found[0][1]["pairs"] if pair["given"] != pair["likely"]][:SHOWN] if found and once else []
    if pairs:
        lines = [[pair["given"], pair["likely"], PERCENT.number(pair["share"])] for pair in pairs]
        caption = (
            f"{prefix}The most frequent confusions, as a share of all rows; label_errors.json has the whole matrix."
        )
        out.append(table(caption, ["given label", "likely label", "rows %"], {"": lines}, (1,)))
    return out


def compare_treatments(contests: Sequence[Contest]) -> list[Block]:
    """Compare heads with and without the suspects on the tests; nothing if all heads keep them.

    Both are scored on the same test rows with their labels as they are, and paired over seeds and rows.
    """
    groups: dict[str, list[list[str]]] = {}
    for contest in contests:
        if KEEP not in contest.setting:
            continue
        for treated, word in TREATED.items():
            for test in contest.decided:
                for method in contest.methods:
                    kept = test._replace(method=method)
                    other = kept._replace(setting=kept.setting.replace(KEEP, treated))
                    if other not in contest.study.table:
                        continue
                    sides = (Side(kept), Side(other))
                    found = compare_numbers(contest.study, str(method), *sides)
                    wide = found.corrected(len(contest.methods) * len(contest.decided))
                    scores = [format_mean(contest.study.stat(0, side.key), test.metric) for side in sides]
                    name = ", ".join(filter(None, (name_test(test), contest.setting.replace(KEEP, "").strip(", "))))
                    groups.setdefault(f"{name}: suspects {word}", []).append(
                        [str(method), *scores, found.gain, wide.interval(), wide.verdict(*VERDICTS[:: contest.way])]
                    )
    measure = contests[0].measure if contests else ""
    caption = (
        f"{measure[:1].upper()}{measure[1:]} of heads that were trained on all rows as they are, and of heads that "
        "were trained with the suspects dropped or relabelled. Suspects were looked for among the training rows alone; "
        "tests keep their rows and labels. Differences are paired over seeds and test rows; intervals are widened for "
        "all comparisons of a treatment."
    )
    gap = f"difference ({contests[0].points if contests else ''})"
    head = ["", "all rows", "treated", gap, "95 % interval, widened", "verdict"]
    return [table(caption, head, groups, (5,))] if groups else []
