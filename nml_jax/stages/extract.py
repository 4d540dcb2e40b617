"""Run the frozen encoder over the splits of the downstream tasks -> feature banks and spectra."""

import collections
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import console, errors, runtime, settings, spectrum
from nml_jax.assembly import agreement, encoder, evaluators
from nml_jax.assembly.encode import Encode, compile_encoder, encode_split
from nml_jax.assembly.encoder import describe_origin
from nml_jax.assembly.feature_sets import BLOCK
from nml_jax.assembly.fingerprint import describe_encoder
from nml_jax.assembly.spectra import DeviceSpectra, make_entry, make_rows, measure_written, singular_values
from nml_jax.data.class_names import count_labels, describe_scores, describe_split
from nml_jax.data.features import banks
from nml_jax.data.text import batches as texts
from nml_jax.processes import peers
from nml_jax.runs.banks import INDEX, BankIndex, bank_folder, write_index
from nml_jax.runs.classes import TASKS, write_counts
from nml_jax.runs.files import write_json
from nml_jax.runs.rows import Row, write_rows
from nml_jax.stages.stage import Outputs, Stage
from nml_jax.tasks.classification import check_tasks, list_tasks
from nml_jax.tasks.task import Test

VERSION = 1

# Key of a bank -> its folder, of the runs of this process: the seeds of a frozen encoder have the same features.
WRITTEN: dict[str, Path] = {}


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Write the banks, `spectra.json` and the spectrum rows of one run.

    Returns:
        The digest of all banks.

    Raises:
        UserError: there is no encoder, a checkpoint is damaged, a dataset is missing, or features are not finite.
    """
    frozen = encoder.load(config, workdir, mesh)
    encode = compile_encoder(frozen.model, config.extract.layers, mesh)
    origin = describe_origin(config, frozen.ledger, run=workdir.name, step=frozen.step, weights=config.extract.weights)
    rows: list[Row] = []
    spectra: list[dict[str, Any]] = []
    written: dict[str, str] = {}
    said: list[str] = []
    index, counts = BankIndex(frozen.step, config.extract.weights, {}, describe_encoder(config, frozen), {}), {}
    for name in list_tasks(config):
        task = agreement.open_task(name, config)
        train = Test(task.name + "/train", "id", task.train)
        if count := texts.count_texts(task.train):
            index.texts[task.name] = count
        for test in (train, *task.tests):
            split = "train" if test is train else test.split
            if test.source.labels.dtype.kind == "f":
                said.append(describe_scores(f"{workdir.name}: {task.name}/{split}", test.source.labels))
            else:
                counts[f"{task.name}/{split}"] = count_labels(test.source.labels, test.source.class_names)
            folder = bank_folder(workdir, task.name, split)
            key = make_bank_key(config, frozen, test, views=config.extract.views if test is train else 1)
            written_before = peers.agree(banks.find(folder, key) is not None or _copy_written(folder, key))
            if written_before:
                chosen = config.extract.layers, config.extract.spectra
                measured = measure_written(folder, *chosen, mesh, config.extract.batch)
            else:
                measured = extract(config, frozen, encode, mesh, test, folder, key, is_train=test is train)
            WRITTEN[key] = folder
            if jax.process_index() > 0:
                continue
            bank = banks.Bank(folder)
            written[f"{task.name}/{split}"] = bank.index["sha256"]
            index.domains.setdefault(task.name, {})[split] = test.domain
            for layer in config.extract.layers:
                features = banks.Layer(bank, layer)
                for mode in config.extract.spectra:
                    blocks = (block[:, 0] for _, block in features.blocks(BLOCK))
                    s = measured.get((layer, mode))
                    s = singular_values(blocks, len(features), features.dim, mode) if s is None else s
                    where = {"task": task.name, "split": split, "domain": test.domain, "layer": layer}
                    spectra.append(make_entry(s, **where, mode=mode))
                    views = config.extract.views if test is train else 1
                    rows += make_rows(s, **origin, **where, stage="extract", output="features", spectrum_mode=mode,
                                      n_test=len(bank), views=views)  # fmt: skip
    if jax.process_index() == 0:
        for line in said:
            console.notice(line)
        for name, of in counts.items():
            if name.endswith("/train") or not all(of.values()):
                console.notice(describe_split(f"{workdir.name}: {name}", of))
        with errors.report_disk_errors(workdir):
            write_counts(workdir / TASKS, counts)
            write_index(workdir, index)
            write_json(workdir / "spectra.json", spectra)
            write_rows(workdir, "extract", rows)
    return settings.hash_json(written)


def _copy_written(folder: Path, key: str) -> bool:
    """Copy the bank of another run of this sweep, if its features are the same; return whether they are."""
    return jax.process_index() == 0 and key in WRITTEN and banks.copy(WRITTEN[key], folder, key)


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    """Check the batch, the layers, the tasks and the modes of spectra."""
    runtime.check_batch(config.extract.batch, mesh, "extract.batch")
    known = encoder.list_layers(encoder.build(config, num_classes=config.data.num_classes or 1))
    if unknown := [layer for layer in config.extract.layers if layer not in known]:
        raise errors.UserError(f"no layer {unknown[0]!r}", f"choose extract.layers from {', '.join(known)}")
    check_tasks(config, data=data)
    evaluators.check_inputs(config)
    for mode in config.extract.spectra:
        spectrum.find_preset(mode)


def list_needed(workdir: Path, rows: list[Row]) -> list[Path]:
    """List `spectra.json` and the banks that the rows refer to."""
    splits = {(row.task, row.split) for row in rows}
    return [workdir / "spectra.json", *(workdir / "banks" / task / split / "index.json" for task, split in splits)]


def make_bank_key(config: ConfigDict, frozen: encoder.Encoder, test: Test, *, views: int) -> str:
    """Hash everything that the numbers of a bank depend on."""
    drawn = config.seed if views > 1 or test.shift else None
    parts = [
        VERSION,
        banks.VERSION,
        frozen.digest,
        test.source.fingerprint,
        test.shift,
        views,
        drawn,
        config.extract.layers,
    ]
    parts += [make_scoring_arguments(test)] if make_scoring_arguments(test) else []
    if texts.has_tokens(frozen.model.spec):
        tokenizer = texts.load_tokenizer(config, frozen.model)
        parts += [tokenizer.fingerprint, texts.list_buckets(config), config.extract.batch, texts.PLAN]
    seen = {"augment": config.augment, "model": config.model, "image_size": config.data.image_size}
    return settings.hash_json(json.loads(json.dumps([parts, {k: v.to_dict() if hasattr(v, "to_dict") else v
                                                       for k, v in seen.items()}])))  # fmt: skip


def extract(
    config: ConfigDict,
    frozen: encoder.Encoder,
    encode: Encode,
    mesh: Mesh,
    test: Test,
    folder: Path,
    key: str,
    *,
    is_train: bool,
) -> dict[tuple[str, str], np.ndarray]:
    """Run the encoder over a split. The first process writes the bank.

    Returns:
        The singular values of the first view, by layer and mode, as far as the devices have measured them.
    """
    views = range(1, config.extract.views + 1) if is_train and config.extract.views > 1 else (None,)
    spectra = DeviceSpectra(config.extract.spectra, len(test.source))
    passes = [
        encode_split(config, frozen, encode, mesh, test, view, spectra=None if i else spectra)
        for i, view in enumerate(views)
    ]

    def blocks() -> Iterator[Mapping[str, np.ndarray]]:
        for several in zip(*passes, strict=True):
            rows = {layer: np.stack([one[layer] for one in several], 1) for layer in config.extract.layers}
            yield rows | {"label": several[0]["label"], "id": several[0]["id"]}

    with peers.track(test.split):
        if jax.process_index() > 0:
            collections.deque(blocks(), maxlen=0)  # this process takes part in every step
        else:
            source = test.source
            named = {"num_classes": source.num_classes, "class_names": source.class_names}
            banks.write(folder, blocks(), key=key, **named, scoring=make_scoring_arguments(test))
        return spectra.finish()


def make_scoring_arguments(test: Test) -> dict[str, Any]:
    """Return the arguments of `evals.mapped.Scorer`; empty unless the test has other classes or video frames."""
    out: dict[str, Any] = {"class_map": [list(ids) for ids in test.class_map]} if test.class_map else {}
    if test.frames:
        out |= {"frame_labels": test.frames.labels, "groups": test.frames.groups}
    out |= test.scoring
    return json.loads(json.dumps(out))


STAGE = Stage(
    name="extract",
    version=VERSION,
    keys=("seed", "init_from", "data", "augment", "model", "downstream", "texts", "glue", "api", "extract"),
    upstream=("pretrain",),
    outputs=Outputs(("banks", "spectra.json"), list_needed, proved=("spectra.json", INDEX, TASKS)),
    check=check,
    run=run,
    encoded=lambda config: True,
)
