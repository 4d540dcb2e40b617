"""The ledger of a run's noise: what was done to its supervision."""

import dataclasses
import hashlib
import math
import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import numpy.typing as npt

from nml_jax.errors import UserError
from nml_jax.noise.captions import CaptionSwap
from nml_jax.noise.labels import check_labels
from nml_jax.noise.permutation import split_blocks
from nml_jax.stored import FAULTS, parse_json, read_bytes, require_fields

FULL_MATRIX = 100  # classes up to which a ledger holds the whole transition matrix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """What was done to the supervision of a run: written at its start, compared when it is resumed."""

    kind: str
    seed: int
    asked: float | None  # γ; None if the kind fixes its own rate
    realised: float  # count / n
    n: int  # records
    count: int  # records whose label differs, or whose caption was swapped
    noisy_sha256: str  # of labels, or for captions of partner ids, in record order as little-endian int64
    clean_sha256: str  # of labels likewise, or of captions in record order, each after its length in bytes
    corrupted: tuple[int, ...] | None = None  # labels: changed records of each true class
    transitions: tuple[tuple[int, ...], ...] | None = None  # labels of up to 100 classes: records, [true][noisy]
    unchanged: int | None = None  # captions: swaps that put the same text back, if they were counted

    @classmethod
    def from_labels(
        cls, clean: npt.ArrayLike, noisy: npt.ArrayLike, *, num_classes: int, kind: str, asked: float | None, seed: int
    ) -> "Ledger":
        """Make the ledger of `noisy` labels, aligned with `clean`; both shape (n,), integers in 0..num_classes-1.

        Raises:
            UserError: labels differ in number, are not integers or are out of range.
        """
        num_classes = operator.index(num_classes)
        clean = check_labels(clean, num_classes, "label")
        noisy = check_labels(noisy, num_classes, "noisy label", clean.size)
        full = num_classes <= FULL_MATRIX
        sha_clean, sha_noisy = hashlib.sha256(), hashlib.sha256()
        corrupted = np.zeros(num_classes, np.int64)
        transitions = np.zeros(num_classes**2 if full else 0, np.int64)
        for block in split_blocks(clean.size):
            c, y = clean[block].astype("<i8"), noisy[block].astype("<i8")
            sha_clean.update(c.tobytes())
            sha_noisy.update(y.tobytes())
            corrupted += np.bincount(c[c != y], minlength=num_classes)
            if full:
                transitions += np.bincount(c * num_classes + y, minlength=transitions.size)
        count = int(corrupted.sum())
        return cls(
            kind=kind,
            seed=operator.index(seed),
            asked=None if asked is None else float(asked),
            realised=count / max(clean.size, 1),
            n=clean.size,
            count=count,
            noisy_sha256=sha_noisy.hexdigest(),
            clean_sha256=sha_clean.hexdigest(),
            corrupted=tuple(corrupted.tolist()),
            transitions=tuple(map(tuple, transitions.reshape(-1, num_classes).tolist())) if full else None,
        )

    @classmethod
    def from_captions(
        cls, swap: CaptionSwap, captions: Iterable[str | bytes], *, unchanged: int | None = None
    ) -> "Ledger":
        """Make the ledger of `swap` from the clean `captions` in record order, read once in constant memory.

        Raises:
            UserError: there are not `swap.n` captions.
        """
        sha_clean, sha_noisy = hashlib.sha256(), hashlib.sha256()
        n = 0
        for caption in captions:
            n += 1
            text = caption.encode() if isinstance(caption, str) else caption
            sha_clean.update(len(text).to_bytes(8, "little") + text)
        if n != swap.n:
            raise UserError(f"{n} captions for {swap.n} records", "give one for each record, in the order of the split")
        for block in split_blocks(n):
            sha_noisy.update(swap(np.arange(block.start, block.stop)).astype("<i8").tobytes())
        return cls(
            kind="caption_swap",
            seed=swap.seed,
            asked=swap.rate,
            realised=swap.count / max(n, 1),
            n=n,
            count=swap.count,
            noisy_sha256=sha_noisy.hexdigest(),
            clean_sha256=sha_clean.hexdigest(),
            unchanged=unchanged,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return every field by name, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Ledger":
        """Make the ledger from the result of `to_dict`, also after JSON has turned its tuples into lists."""
        return cls(**{name: _freeze_lists(value) for name, value in fields.items()})

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """Read the ledger of a run's folder from its JSON file.

        Raises:
            UserError: the file is not a ledger.
        """
        cure = "delete it; the run's command writes it again"
        try:
            ledger = cls.from_dict(parse_json(read_bytes(path, cure)))
            require_fields(vars(ledger), get_type_hints(cls))
            ledger.check_sums()
        except FAULTS as e:
            raise UserError(f"{path} is damaged: not a noise ledger: {e}", cure) from e
        return ledger

    def check_sums(self) -> None:
        """Raise ValueError if the counts do not fit each other."""
        share = self.count / max(self.n, 1)
        whole = {"realised": math.isclose(self.realised, share, abs_tol=1e-6), "count": 0 <= self.count <= self.n}
        whole["corrupted"] = self.corrupted is None or sum(self.corrupted) == self.count
        if self.transitions is not None:
            whole["transitions"] = sum(map(sum, self.transitions)) == self.n
        if wrong := [name for name, right in whole.items() if not right]:
            raise ValueError(f"{wrong[0]} does not fit the other counts")

    def check_same(self, other: "Ledger", where: str) -> None:
        """Compare with the ledger at the path `where`.

        Raises:
            UserError: they differ; the message names the fields.
        """
        mine, theirs = self.to_dict(), other.to_dict()
        differ = [name for name in mine if mine[name] != theirs[name]]
        if differ:
            values = [
                name if isinstance(mine[name], tuple) else f"{name} {theirs[name]!s:.12} there, {mine[name]!s:.12} here"
                for name in differ
            ]
            raise UserError(
                f"{where} has another noise ledger: {'; '.join(values)}",
                "continue with the noise settings and the data that the run began with, or choose another --workdir",
            )


def _freeze_lists(value: Any) -> Any:
    """Turn lists into tuples, at every depth."""
    return tuple(map(_freeze_lists, value)) if isinstance(value, list) else value
