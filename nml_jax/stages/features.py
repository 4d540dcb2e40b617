"""Features from files, whoever computed them: checked, their classes matched, their spectra measured.

They stay where they are. The run's folder gets `features.json`, which says what was read and how.
"""

import filecmp
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import errors, inputs, settings, spectrum
from nml_jax.assembly.feature_files import LAYER, TASK, _list_specs, _open, open_files
from nml_jax.assembly.spectra import make_entry, make_rows, singular_values
from nml_jax.data.features.checks import check_varied
from nml_jax.errors import UserError
from nml_jax.runs.files import write_json
from nml_jax.runs.rows import Row, write_rows
from nml_jax.stages.stage import Outputs, Stage


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Read every file once, write `features.json`, `spectra.json` and the spectrum rows.

    Returns:
        The digest of the files.

    Raises:
        UserError: see `opened`; or a value is not finite.
    """
    if jax.process_index() > 0:
        return ""
    found = open_files(config, workdir)
    rows: list[Row] = []
    spectra: list[dict[str, Any]] = []
    for split in (found.train, *found.tests):
        for mode in config.extract.spectra:
            blocks = (block for block, _ in split.blocks())
            s = singular_values(blocks, len(split.labels), split.features.dim, mode)
            where = {"task": TASK, "split": split.name, "domain": split.domain, "layer": LAYER}
            spectra.append(make_entry(s, **where, mode=mode))
            rows += make_rows(s, **found.origin, **where, stage="features", spectrum_mode=mode,
                                               n_test=len(split.labels), views=split.features.views)  # fmt: skip
    several = {spec: _open(config.features, spec, found.columns) for spec in _list_specs(config)}
    read = {
        "classes": list(found.classes),
        "splits": [
            {"split": split.name, "domain": split.domain, "rows": len(split.labels), "views": split.features.views,
             "features": split.features.dim,
             "per_class": np.bincount(split.labels, minlength=len(found.classes)).tolist()}
            for split in (found.train, *found.tests)
        ],
        "files": {spec: file.fingerprint for spec, file in several.items()},
        "columns": {spec: {"label": file.label, "taken": list(file.columns), "left_out": list(file.left_out)}
                    for spec, file in several.items() if file.columns},
    }  # fmt: skip
    with errors.report_disk_errors(workdir):
        write_json(workdir / "features.json", read)
        write_json(workdir / "spectra.json", spectra)
        write_rows(workdir, "features", rows)
    return settings.hash_json(read)


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    if not config.features.train:
        raise UserError(
            "the stage features has no training file", "set --config.features.train=FILE, or leave the stage out"
        )
    for mode in config.extract.spectra:
        spectrum.find_preset(mode)
    specs = _list_specs(config)
    for i, spec in enumerate(specs):  # of a pair the features: other labels would not make them other rows
        for other in specs[:i]:
            if _same(inputs.split_pair(other)[0], inputs.split_pair(spec)[0], content=data):
                raise UserError(
                    f"{spec} is the same as {other}: what a head was trained on, or a test that there is, is no test",
                    "name each file once; leave features.test out, and a part of the training file is held out",
                )
    if data:
        found = open_files(config, Path())
        splits = [split for split in (found.train, *found.tests) if split.name != "holdout"]
        for spec, split in zip(specs, splits, strict=True):
            check_varied((block for block, _ in split.blocks()), spec)
        if found.train.features.dim == 1 and "code" in config.extract.spectra:
            raise UserError(
                f"{config.features.train} has one feature, of which the mode code leaves no spectrum",
                "give two features or more, or --config.extract.spectra=\"('paper',)\"",
            )


def _same(a: Path, b: Path, *, content: bool) -> bool:
    """Whether two paths lead to one file, or to files with the same bytes, if these are to be looked at."""
    if a.resolve() == b.resolve():
        return True
    return content and a.is_file() and b.is_file() and filecmp.cmp(a, b, shallow=False)


STAGE = Stage(
    name="features",
    version=3,
    keys=("seed", "features", "extract"),
    upstream=(),
    outputs=Outputs(("features.json", "spectra.json")),
    check=check,
    run=run,
)
