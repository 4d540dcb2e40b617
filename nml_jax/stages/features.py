"""Check features from files, match their classes and measure their spectra.

The files stay where they are. `features.json` in the run's folder records what was read and how.
"""

import filecmp
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import console, errors, inputs, settings, spectrum
from nml_jax.assembly.feature_files import (
    LAYER,
    TASK,
    count_seen,
    describe_groups,
    describe_seen,
    get_file,
    list_specs,
    match_specs,
    open_files,
)
from nml_jax.assembly.spectra import make_entry, make_rows, singular_values
from nml_jax.data.class_names import count_labels, describe_scores, describe_split
from nml_jax.data.features.checks import check_varied
from nml_jax.data.features.files import LARGE, count_block_rows
from nml_jax.data.features.guesses import find_counting
from nml_jax.data.features.sets import FeatureSet, Split, Subset
from nml_jax.errors import UserError
from nml_jax.runs.files import write_json
from nml_jax.runs.rows import Row, write_rows
from nml_jax.stages.stage import Outputs, Stage


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Read every file once, write `features.json`, `spectra.json` and the spectrum rows.

    Returns:
        The digest of the files.

    Raises:
        UserError: see `open_files` and `count_seen`; or a value is not finite.
    """
    if jax.process_index() > 0:
        return ""
    found = open_files(config, workdir)
    for split in (found.train, *found.tests):
        where = f"{workdir.name}: {split.name}" if isinstance(split.features, Subset) else split.name
        if found.is_scored:
            console.notice_once(describe_scores(where, split.labels))
        else:
            console.notice_once(describe_split(where, count_labels(split.labels, found.classes)))
    rows: list[Row] = []
    spectra: list[dict[str, Any]] = []
    for split in (found.train, *found.tests):
        for mode in config.extract.spectra:
            s = _measure_split(config, split, mode)
            where = {"task": TASK, "split": split.name, "domain": split.domain, "layer": LAYER}
            spectra.append(make_entry(s, **where, mode=mode))
            rows += make_rows(s, **found.origin, **where, stage="features", spectrum_mode=mode,
                               output="features", n_test=len(split.labels), views=split.features.views)  # fmt: skip
    seen = count_seen(found)
    shared = describe_groups(found, config.features.group)
    for line in (*describe_seen(found, seen), *shared):  # of whole files they are the same for every seed
        console.notice_once(line)
    several = {spec: get_file(split) for spec, split in match_specs(config, found).items()}
    read = {
        "classes": [] if found.is_scored else list(found.classes),
        "splits": [
            {"split": split.name, "domain": split.domain, "rows": len(split.labels), "views": split.features.views,
             "features": split.features.dim,
             "per_class": [] if found.is_scored else np.bincount(split.labels, minlength=len(found.classes)).tolist()}
            for split in (found.train, *found.tests)
        ],
        "files": {spec: file.fingerprint for spec, file in several.items()},
        "columns": {spec: {"label": file.label, "taken": list(file.columns), "left_out": list(file.left_out)}
                    for spec, file in several.items() if file.columns},
    }  # fmt: skip
    more = {
        "seen_in_training": seen,
        "groups": shared,
        "ids": {spec: dict(file.ids) for spec, file in several.items() if file.columns},
    }
    with errors.report_disk_errors(workdir):
        write_json(workdir / "features.json", read | more)
        write_json(workdir / "spectra.json", spectra)
        write_rows(workdir, "features", rows)
    return settings.hash_json(read)


_spectra: dict[tuple[str, str], np.ndarray] = {}  # of whole files, which all runs of this process share


def _measure_split(config: ConfigDict, split: Split, mode: str) -> np.ndarray:
    """Return the singular values of a split; those of a whole file are computed once."""
    key = None
    if not isinstance(split.features, Subset):
        key = get_file(split).fingerprint + settings.hash_json(settings.to_json(config.features)), mode
    if key in _spectra:
        return _spectra[key]
    s = singular_values((block for block, _ in split.blocks()), len(split.labels), split.features.dim, mode)
    if key:
        _spectra[key] = s
    return s


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    """Check that the files are named, distinct and, with `data`, readable and not all rows of the training file."""
    if not config.features.train:
        raise UserError(
            "the stage features has no training file", "set --config.features.train=FILE, or leave the stage out"
        )
    for mode in config.extract.spectra:
        spectrum.find_preset(mode)
    specs = list_specs(config)
    for i, spec in enumerate(specs):  # compare the features of a pair: other labels do not make other rows
        for other in specs[:i]:
            if same := _find_shared(other, spec, content=data):
                one = spec if len(inputs.split_parts(spec)) == 1 else f"{same} of {spec}"
                raise UserError(
                    f"{one} is the same as {other}: a test needs rows of its own",
                    "name each file once, or leave features.test out to hold out a part of the training file",
                )
    if data:
        found = open_files(config, Path())
        for spec, split in match_specs(config, found).items():
            check_varied((block for block, _ in split.blocks()), spec)
        if sum(path.stat().st_size for split in (found.train, *found.tests) for path in get_file(split).files) <= LARGE:
            count_seen(found)  # every start reads all rows for that; of larger files only the stage itself does
        _warn_of_counting(found)
        if found.train.features.dim == 1 and "code" in config.extract.spectra:
            raise UserError(
                f"{config.features.train} has one feature, for which the mode code has no spectrum",
                "give two features or more, or --config.extract.spectra=\"('paper',)\"",
            )


def _warn_of_counting(found: FeatureSet) -> None:
    """Print which features of an array count up. Those of tables were left out when they were opened."""
    file = get_file(found.train)
    rows = count_block_rows(file.views, file.dim)
    counting = [] if file.columns else find_counting(block for _, block in file.blocks(rows))
    if counting:
        console.notice_once(
            f"{file.spec}: features {console.shorten(map(str, counting))} of each row count up: if they number the "
            "rows, leave them out where the features were made"
        )


def _find_shared(a: str, b: str, *, content: bool) -> Path | None:
    """Return a file of the set b that is a file of a, too; None if there is none. A pair's labels do not count."""
    mine, its = ([inputs.split_pair(part)[0] for part in inputs.split_parts(spec)] for spec in (a, b))
    sizes = {path: path.stat().st_size for path in {*mine, *its} if path.is_file()}
    pairs = ((x, y) for y in its for x in mine if sizes.get(x) == sizes.get(y))
    return next((y for x, y in pairs if _is_same_file(x, y, content=content)), None)


def _is_same_file(a: Path, b: Path, *, content: bool) -> bool:
    """Return whether two paths lead to the same file or, with `content`, to files with the same bytes."""
    if a.resolve() == b.resolve():
        return True
    return content and a.is_file() and b.is_file() and filecmp.cmp(a, b, shallow=False)


STAGE = Stage(
    name="features",
    version=4,
    keys=("seed", "features", "extract"),
    upstream=(),
    outputs=Outputs(("features.json", "spectra.json"), proved=("features.json", "spectra.json")),
    check=check,
    run=run,
)
