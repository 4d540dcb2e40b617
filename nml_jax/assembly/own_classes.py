"""Score a classifier as it is: its own logits, on tasks whose classes are among its own."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax.assembly import agreement, encoder
from nml_jax.assembly.encode import compile_encoder, encode_split
from nml_jax.console import shorten
from nml_jax.data.class_names import NameIndex
from nml_jax.errors import UserError
from nml_jax.evals.mapped import Scorer
from nml_jax.models import published
from nml_jax.processes import peers
from nml_jax.runs.classes import read_counts
from nml_jax.stored import read_json
from nml_jax.tasks.class_maps import ClassMap
from nml_jax.tasks.task import Task
from nml_jax.training import checkpoint, pretrained

LOGITS, ORDER = "logits", "order"
CURE = "set --config.zeroshot.class_map to a JSON file, {class of the task: [class of the weights, ...]}, or to order"


def score_tasks(config: ConfigDict, workdir: Path, mesh: Mesh) -> tuple[encoder.Encoder, list[dict[str, Any]]]:
    """Score the own head of a run's encoder on every test of the tasks.

    Returns:
        The encoder, and the fields of the row of every score.

    Raises:
        UserError: the weights have no head, or how its classes are those of a task is not known.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.extract.layers = (LOGITS,)  # so that weights without this head are refused
    frozen, names = encoder.load(config, workdir, mesh), find_class_names(config, workdir)
    return frozen, list(_score(config, frozen, names, mesh))


def _score(config: ConfigDict, frozen: encoder.Encoder, names: Sequence[str], mesh: Mesh) -> Iterator[dict[str, Any]]:
    encode = compile_encoder(frozen.model, (LOGITS,), mesh)
    num_classes = frozen.params["head"]["bias"].shape[-1]
    for name in config.downstream.tasks:
        task = agreement.open_task(name, config)
        own = map_classes(config.zeroshot.class_map, names, num_classes, task)
        for test in task.tests:
            stand_for = own if test.class_map is None else [[k for c in ids for k in own[c]] for ids in test.class_map]
            scorer = Scorer(num_classes, class_map=stand_for)
            with peers.track(test.split):
                for rows in encode_split(config, frozen, encode, mesh, test, None):
                    scorer.update(rows["label"], rows[LOGITS])
            where = {"task": name, "split": test.split, "domain": test.domain, "n_test": len(test.source)}
            yield from ({**where, "metric": metric, "value": value} for metric, value in scorer.scores().items())


def find_class_names(config: ConfigDict, workdir: Path) -> tuple[str, ...]:
    """Return the names of the classes of a run's own head; () if they are not on record."""
    source = workdir
    if not checkpoint.list_steps(workdir / "checkpoints") and config.init_from:
        source = Path(config.init_from)
        if not pretrained.is_run(source):
            return published.read_class_names(source)
    return tuple(read_counts(source).get("train", {}))


def map_classes(spec: str, names: Sequence[str], num_classes: int, task: Task) -> ClassMap:
    """Return for each class of a task the outputs of the head that stand for it.

    Args:
        spec: `config.zeroshot.class_map`.
        names: of the head's classes; () if they are not known.

    Raises:
        UserError: the head lacks a class of the task, or there is no file of that name.
    """
    classes = task.train.class_names
    if spec == ORDER:
        if len(classes) != num_classes:
            have = f"the weights have {num_classes:,} classes and {task.name} has {len(classes):,}"
            raise UserError(f"zeroshot.class_map=order, but {have}", "give a JSON file that maps the classes")
        return tuple((i,) for i in range(num_classes))
    given = {name: [name] for name in classes}
    if spec:
        cure = 'write {"class of the task": ["class of the weights", ...], ...}'
        told = read_json(Path(spec), cure, dict[str, Any])
        found = NameIndex(told)
        places = {name: found.find(name) for name in classes}
        if missing := [name for name, place in places.items() if place is None]:
            raise UserError(f"{spec} maps nothing to the class {missing[0]!r} of {task.name}", cure)
        values = list(told.values())
        given = {name: _as_list(values[place]) for name, place in places.items() if place is not None}
    elif len(names) != num_classes:
        raise UserError("the weights do not name their classes, so they cannot be matched by name", CURE)
    index = NameIndex(names)
    ids = {name: [_find(one, index, num_classes) for one in of] for name, of in given.items()}
    if wrong := [name for name, of in ids.items() if None in of or not of]:
        raise UserError(
            f"the class {wrong[0]!r} of {task.name} is none of the weights' {num_classes:,} classes: {shorten(names)}",
            CURE,
        )
    return tuple(tuple(c for c in of if c is not None) for of in ids.values())


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _find(one: Any, index: NameIndex, num_classes: int) -> int | None:
    """Return the output for a class, by its number or its name; None if there is none."""
    if isinstance(one, int) and not isinstance(one, bool):
        return one if 0 <= one < num_classes else None
    return index.find(one)
