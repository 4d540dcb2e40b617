"""Named sets of classes for `noise_classes`, such as ImageNet's that overlap CIFAR-100's.

The table is class_sets.json, written by wordnet.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nml_jax.errors import UserError

TABLE = Path(__file__).with_name("class_sets.json")


def list_sets() -> dict[str, dict[str, Any]]:
    """Return the named sets: name -> {classes: {id: why}, positions: ids' places among all classes, of: all}."""
    return json.loads(TABLE.read_text("utf-8"))


def find_classes(asked: Sequence[int | str], names: Sequence[str]) -> tuple[int, ...]:
    """Return class ids for `noise_classes`, which holds ids and names of sets.

    A set is found by the names of the classes where these are ImageNet's ids, as n01440764; the data may then be a part
    of ImageNet. Data whose classes are only numbered must have all of ImageNet's, in their order.

    Args:
        asked: ids of classes, or names of sets, or both.
        names: the names of all classes, in their order.

    Raises:
        UserError: there is no such set, or the data are not of the classes that the set is about.
    """
    ids = {int(one) for one in asked if not isinstance(one, str)}
    for name in (one for one in asked if isinstance(one, str)):
        ids |= _find_members(name, names)
    return tuple(sorted(ids))


def _find_members(name: str, names: Sequence[str]) -> set[int]:
    """Return the ids of the classes of a set."""
    known = list_sets()
    if name not in known:
        raise UserError(f"noise_classes: there is no set {name!r}", f"give ids, or one of {', '.join(known)}")
    synsets, own = known[name], [n.split(" ")[0].split(",")[0] for n in names]
    if members := {i for i, n in enumerate(own) if n in synsets["classes"]}:
        return members
    if len(names) == synsets["of"] and all(n.isdecimal() for n in names):
        return set(synsets["positions"])
    raise UserError(
        f"noise_classes={name!r} is a set of ImageNet's {synsets['of']:,} classes, and the data have {len(names)} "
        f"classes, the first called {names[0]!r}",
        "train on ImageNet with its ids, such as n01440764, as names of classes, or give ids of classes",
    )
