"""Names of the arrays of a tree."""

from typing import Any

import jax


def name_leaf(path: jax.tree_util.KeyPath) -> str:
    """The keys on the way to an array, as in "encoder/stem/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def name_leaves(tree: Any) -> dict[str, Any]:
    """Name -> array."""
    return {name_leaf(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
