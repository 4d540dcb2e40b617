"""A tuned head, and its file.

The file is a safetensors file. It holds the tensors of the head under names such as "dense1/kernel", and their meaning
in the metadata. NumPy alone can apply it; the README shows how. The metadata also hold a SHA-256 of tensors and
metadata (runs/tensors.py), so a head that has changed is refused. Older heads lack it and are loaded, with a message.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError

from nml_jax import console
from nml_jax.errors import UserError, report_disk_errors
from nml_jax.models.heads.mlp import EPS, Form, Tree, make_head
from nml_jax.runs.files import write_bytes
from nml_jax.runs.tensors import PROOF, is_sealed, read_tensors, seal_tensors
from nml_jax.stored import FAULTS, parse_json
from nml_jax.tuning import descent

KEYS = {"format", "form", "classes", "epsilon", "about", "columns", "temperature", PROOF}  # of the metadata
FORMAT = "nml_jax head 1"  # raise the number when the tensors or the metadata change their meaning
CLASSES = (bool, int, float, str)  # types of a class in a file
SCORES = ("ridge",)  # methods whose outputs are not logits


@dataclasses.dataclass(frozen=True)
class TunedHead:
    """A head with its weights.

    form: its architecture.
    params, state: nested dicts of float32 NumPy arrays, for the `apply` of models/heads/mlp.py.
    classes: the labels of the K logits; (): 0 to K−1. A head with one output predicts a number, whose name this is.
    about: how it was trained; JSON values.
    columns: names of the D features in the training table; (): none.
    temperature: by which logits are divided for probabilities (evals/calibration.py). In a file it is in the metadata,
        if it is not 1.
    """

    form: Form
    params: Tree
    state: Tree
    classes: tuple[Any, ...] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    columns: tuple[str, ...] = ()
    temperature: float = 1.0

    @property
    def num_classes(self) -> int:
        return len(self.params["classifier"]["bias"])

    @property
    def predicts_numbers(self) -> bool:
        """Return whether the one output is a predicted number, of the name in `classes`."""
        return self.num_classes == 1

    @property
    def dim(self) -> int:
        return len(self.params["classifier"]["kernel"])

    def outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Z float32 [M, D] and logits float32 [M, K] of features [M, D]."""
        return descent.compute_outputs(self.form, self.num_classes, self.params, self.state, features)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities of the classes, float64 [M, K], for logits [M, K].

        Raises:
            UserError: the head's outputs are not logits; a ridge probe is a regression on −1 and 1.
        """
        odds = np.exp(self._scale(logits))
        return odds / odds.sum(1, keepdims=True)

    def log_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the logarithms of `probabilities`, finite where a probability rounds to zero."""
        z = self._scale(logits)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    def _scale(self, logits: np.ndarray) -> np.ndarray:
        """Return (logits − their maximum) / temperature, float64 [M, K]."""
        if self.predicts_numbers:
            raise UserError("this head predicts numbers, so it has no probabilities", "use only its predictions")
        if self.about.get("method") in SCORES:
            raise UserError(
                f"the scores of a {self.about['method']} head are not logits, so it has no probabilities",
                "use only its predictions, or another head, such as lbfgs",
            )
        return (np.float64(logits) - logits.max(1, keepdims=True)) / self.temperature

    def save(self, path: Path) -> None:
        """Write the file, atomically.

        Raises:
            UserError: the file cannot be written, or JSON has no type for a class.
        """
        if wrong := [c for c in self.classes if not isinstance(c, CLASSES)]:
            raise UserError(
                f"a head cannot be saved with the class {wrong[0]!r} of type {type(wrong[0]).__name__}",
                "train it on labels that are text, such as y.astype(str), numbers or booleans",
            )
        if path.is_dir():
            raise UserError(f"a head cannot be saved as {path}: it is a folder", "give the name of a file in it")
        tensors = {name: np.ascontiguousarray(x, np.float32) for name, x in _flat({**self.params, "state": self.state})}
        meta = {
            "format": FORMAT,
            "form": json.dumps(self.form._asdict()),
            "classes": json.dumps(list(self.classes) or list(range(self.num_classes))),
            "epsilon": str(EPS),
            "about": json.dumps(dict(self.about)),
            "columns": json.dumps(list(self.columns)),
        } | ({"temperature": repr(float(self.temperature))} if self.temperature != 1 else {})
        with report_disk_errors(path.parent):
            write_bytes(path, seal_tensors(tensors, meta))


def load(path: Path) -> TunedHead:
    """Load the file of a head.

    Raises:
        UserError: there is no file, it is damaged, or it does not hold a head.
    """
    cure = "give a .safetensors file that `save` or the stage tune has written"
    if not path.is_file():
        raise UserError(f"there is no head at {path}", cure)
    try:
        flat, meta = read_tensors(path)
        if meta.get("format") != FORMAT:
            raise UserError(f"{path} is not a head of this version: its format is {meta.get('format')!r}", cure)
        _check_proof(path, flat, meta)
        tree = _nested(flat)
        state, form = tree.pop("state", {}), Form(**parse_json(meta["form"]))
        _check_claim(form, flat, path, cure)
        classes, about, columns = (parse_json(meta.get(name, "[]")) for name in ("classes", "about", "columns"))
        if not (isinstance(classes, list) and all(isinstance(c, CLASSES) for c in classes) and isinstance(about, dict)):
            raise UserError(f"{path} does not name its classes or its origin", cure)
        if not (isinstance(columns, list) and all(isinstance(name, str) for name in columns)):
            raise UserError(f"{path} names columns that are not text", cure)
        for what, names in (("class", classes), ("column", columns)):
            if len(set(names)) < len(names):
                raise UserError(f"{path} names a {what} twice", cure)
            "".join(filter(lambda name: isinstance(name, str), names)).encode()  # halves of characters are an error
        temperature = float(meta.get("temperature", "1"))
        if not 0 < temperature < float("inf"):
            raise ValueError(f"its temperature is {temperature}")
        head = TunedHead(form, tree, state, tuple(classes), about, tuple(columns), temperature)
        if len(head.classes) != head.num_classes:
            raise UserError(f"{path} names {len(head.classes)} classes for {head.num_classes} logits", cure)
        if len(head.columns) not in (0, head.dim):
            raise UserError(f"{path} names {len(head.columns)} columns for {head.dim} features", cure)
        params, inner = _find_shapes(form, head.num_classes, head.dim)
        if "input" in state:
            inner["input"] = dict.fromkeys(("mean", "scale"), np.empty(head.dim))
        expected = {name: x.shape for name, x in _flat({**params, "state": inner})}
        if wrong := sorted(expected.items() ^ {name: x.shape for name, x in flat.items()}.items()):
            raise UserError(f"{path} does not hold the head that it describes: {wrong[0][0]}", cure)
        for name, x in flat.items():
            if not np.isfinite(x).all() or (name == "state/input/scale" and not x.all()):
                raise UserError(f"{path} is damaged: {name} holds an invalid value", cure)
    except (SafetensorError, OSError, OverflowError, RecursionError, *FAULTS) as e:
        raise UserError(f"{path} is damaged: {' '.join(str(e).split())}", cure) from e
    return head


def _check_claim(form: Form, flat: Mapping[str, np.ndarray], path: Path, cure: str) -> None:
    """Raise UserError if a form is larger than the tensors beside it, before anything of its size is made."""
    kinds = [(form.mlp, bool), (form.residual, bool), (form.depth, int), (form.norm, str)]
    good = type(form.width) is int or (type(form.width) is float and not form.width.is_integer())
    if not good or any(type(value) is not kind for value, kind in kinds):
        raise UserError(f"{path} is damaged: its form is {str(form)[:200]}", cure)
    longest = max((max(x.shape, default=0) for x in flat.values()), default=0)
    if form.mlp and (form.depth > len(flat) or not form.width <= longest):
        raise UserError(
            f"{path} does not hold the head that it describes: depth {form.depth:,} and width {form.width:,} in "
            f"{len(flat)} tensors",
            cure,
        )


def _find_shapes(form: Form, num_classes: int, dim: int) -> tuple[Tree, Tree]:
    """Return the shapes of a head's parameters and state. No device starts, so whoever only loads may still fork."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(partial(make_head(form, num_classes).init, dim=dim), key)


def _check_proof(path: Path, tensors: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> None:
    """Check the SHA-256 in the metadata. Say that a head of an earlier version has none.

    Raises:
        ValueError: the head has changed, or its metadata have a key that no version writes, as after a flipped bit.
    """
    if strange := sorted(meta.keys() - KEYS):
        raise ValueError(f"its metadata have a key {strange[0]!r}")
    if not is_sealed(tensors, meta):
        console.notice(f"{path} was written before heads had a SHA-256: whether it has changed cannot be told")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, np.ndarray]]:
    out = []
    for name, x in tree.items():
        out += _flat(x, f"{prefix}{name}/") if isinstance(x, Mapping) else [(f"{prefix}{name}", x)]
    return out


def _nested(flat: Mapping[str, np.ndarray]) -> Tree:
    tree: Tree = {}
    for name, x in flat.items():
        *path, leaf = name.split("/")
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[leaf] = x
    return tree


def classes_to_json(classes: Sequence[Any] | np.ndarray) -> tuple[Any, ...]:
    """Convert labels to JSON values: integers, floats, strings, booleans. Others, such as dates, do not change."""
    return tuple(c.item() if isinstance(c, np.generic) and c.dtype.kind in "biufU" else c for c in classes)
