"""What the report says of probabilities: calibration errors, and a reliability figure, with and without temperature."""

from typing import NamedTuple

import numpy as np

from nml_jax.evals.calibration import BINS, bin_rows
from nml_jax.reporting import figures
from nml_jax.reporting.blocks import Block, Figure, table
from nml_jax.reporting.statistics.choose_method import Contest, name_test
from nml_jax.reporting.statistics.paired import format_mean
from nml_jax.reporting.statistics.studies import MEAN, Key, Method
from nml_jax.runs.predictions import read_predictions

PANELS = 6  # tests that are drawn
BEFORE = "_before"
COLUMNS = {"ece": "calibration error %", "log_loss": "log loss (nats)"}


class Sure(NamedTuple):
    """The answers of a method to a test, of all seeds together: whether they are right, and how sure they were."""

    right: np.ndarray
    confidence: np.ndarray
    before: np.ndarray | None  # without the temperature


def show_calibration(contest: Contest, name: str) -> list[Block]:
    """Return the errors of every method on every test, and the reliability of the advised one; nothing if unknown."""
    tests = contest.tests if contest.task != MEAN else ()
    scaled = any(contest.stat(m, test, f"ece{BEFORE}").n for m in contest.methods for test in tests)
    columns = [
        (test, metric, suffix) for test in tests for metric in COLUMNS for suffix in ((BEFORE, "") * scaled or ("",))
    ]
    lines = []
    for method in contest.methods:
        stats = [contest.stat(method, test, metric + suffix) for test, metric, suffix in columns]
        if any(s.n for s in stats):
            cells = [format_mean(s, column[1]) for s, column in zip(stats, columns, strict=True)]
            lines.append([str(method), *cells])
    if not lines:
        return []
    head = ["", *(COLUMNS[metric] + (", before" if suffix else ", after" if scaled else "")
                  for _, metric, suffix in columns)]  # fmt: skip
    each = len(columns) // len(tests)
    over = [("", 1), *((name_test(test), each) for test in tests)]
    caption = (
        f"The calibration error (ECE) is the mean over rows of |share of right answers − mean confidence| "
        f"of their bin: {BINS} bins of equally many rows in the order of the probability of the answer, fewer of fewer "
        f"than {10 * BINS} rows. Mean ± sample sd over seeds; methods without probabilities are left out."
    )
    if scaled:
        caption += " After: logits are divided by a temperature that was found on rows held out from training."
    figure = _draw(contest, tests, name)
    return [table(caption, head, {"": lines}, over=over), *([Block("figure", figure)] if figure.panels else [])]


def _draw(contest: Contest, tests: tuple[Key, ...], name: str) -> Figure:
    panels, names = [], {}
    for i, test in enumerate(tests[:PANELS]):
        method = contest.advised(test) or contest.reference
        found = _read(contest, test, method)
        if found is None:
            continue
        kinds = {"as trained": found.confidence}
        if found.before is not None:
            kinds = {"before": found.before, "after the temperature": found.confidence}
        lines = {kind: bin_rows(confidence, found.right)[:2] for kind, confidence in kinds.items()}
        panels.append(figures.draw_reliability(f"{name}{i}", f"{name_test(test)}, {method}", lines))
        names |= dict.fromkeys(lines)
    caption = (
        "How often answers are right (%, upwards) against how sure they are. Below the dashed line answers are too "
        "sure. Bins as in the table, of all seeds together."
    )
    return Figure("Reliability", panels, caption, [figures.choose_mark(i, who) for i, who in enumerate(names)])


def _read(contest: Contest, test: Key, method: Method) -> Sure | None:
    """Return the answers of a method; None if they are not on record, or are no probabilities."""
    sources = contest.study.sources.get(test._replace(metric="accuracy", method=method), [{}])[0]
    found = [read_predictions(source.folder, row) for source in sources.values() for row in source.rows]
    known = [one for one in found if one is not None and one.confidence is not None]
    if not known or len(known) < len(found):
        return None
    before = [one.confidence_before for one in known if one.confidence_before is not None]
    return Sure(
        np.concatenate([one.label == one.answer for one in known]),
        np.concatenate([one.confidence for one in known if one.confidence is not None]),
        np.concatenate(before) if len(before) == len(known) else None,
    )
