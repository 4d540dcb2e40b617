"""Name the arrays of a tree."""

from typing import Any

import jax


def name_leaf(path: jax.tree_util.KeyPath) -> str:
    """Return the name of an array from its path, as in "encoder/stem/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def name_leaves(tree: Any) -> dict[str, Any]:
    """Return the arrays of a tree by name."""
    return {name_leaf(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
