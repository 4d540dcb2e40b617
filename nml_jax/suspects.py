"""List the rows of a feature file whose labels are likely wrong.

    python -m nml_jax.suspects FEATURES [--out suspects.csv]

FEATURES is any file with labels that data/features/files.py reads. A linear probe judges every row by the rows of other
folds (tuning/label_errors.py). The output is CSV: row (from 0), id (of a column of ids, if there is one), given_label,
likely_label and confidence, the probability that the given label is wrong; the surest come first. How many labels are
wrong, with an interval, is printed. `tune.suspects` trains heads without these rows, or with their likely labels.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from nml_jax import console
from nml_jax.assembly.feature_files import name_classes, number_groups, read_training_file
from nml_jax.assembly.feature_sets import fit_in_memory
from nml_jax.assembly.suspects import judge_rows, read_ids
from nml_jax.data.features import files
from nml_jax.data.features.checks import check_varied
from nml_jax.errors import UserError, report_disk_errors
from nml_jax.inputs import list_files
from nml_jax.runs.files import check_output, write_atomic
from nml_jax.tuning.label_errors import LabelErrors

MEMORY = 0.1  # share of the memory that the features may take


def judge_file(spec: str, label: str = "", columns: str = "", group: str = "") -> tuple[files.Features, LabelErrors]:
    """Open a feature file and judge its labels.

    Raises:
        UserError: see `open_features`; every feature is constant, or there are too few rows of each class.
    """
    named = {"train": spec, "label": label, "columns": columns, "group": group}
    keys = SimpleNamespace(**named, scale=1.0, positive="", regression=False)
    whole, classes, labels = read_training_file(keys)
    check_varied((block[:, 0] for _, block in whole.blocks(files.count_block_rows(whole.views, whole.dim))), spec)
    most = fit_in_memory(MEMORY, whole, 1000)
    how = {"most": most, "ids": read_ids(whole), "groups": number_groups(whole, group)}
    return whole, judge_rows(whole, labels, name_classes(whole, classes), **how)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m nml_jax.suspects", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("features", help="FILE, or FEATURES.npy,LABELS.npy")
    parser.add_argument("--out", type=Path, help="CSV file; default: standard output")
    parser.add_argument("--columns", default="", help="name of the feature array or column")
    parser.add_argument("--label", default="", help="name of the label array or column")
    parser.add_argument("--group", default="", help="name of a column whose rows of one value are judged by others")
    console.allow_any_terminal()
    args = parser.parse_args(argv)
    try:
        if args.out:
            check_output(args.out, [Path(part) for part in list_files(args.features)])
        _, found = judge_file(args.features, args.label, args.columns, args.group)
        if args.out:
            with report_disk_errors(args.out):
                write_atomic(args.out, found.to_csv())
        else:
            print(found.to_csv(), end="")
        console.notice(str(found))
    except UserError as e:
        console.notice(f"error: {e}")
        return e.exit_code
    except BrokenPipeError:
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
