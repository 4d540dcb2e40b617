"""Name the arrays of a tree."""

from collections.abc import Mapping
from typing import Any

import jax


def name_leaf(path: jax.tree_util.KeyPath) -> str:
    """Return the name of an array from its path, as in "encoder/stem/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def name_leaves(tree: Any) -> dict[str, Any]:
    """Return the arrays of a tree by name."""
    return {name_leaf(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts of arrays by name: the inverse of `name_leaves`."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
