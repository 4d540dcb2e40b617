"""Read `nml_config.json`, which nml_jax.export writes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nml_jax import settings
from nml_jax.errors import UserError
from nml_jax.models.published.common import Keys, require
from nml_jax.models.weights import nml


def read_nml(path: Path, config: Mapping[str, Any]) -> Keys:
    """Return the keys of our config that the file sets.

    Raises:
        UserError: it is of another version, or sets a key that is not known.
    """
    require(path, "format", config["format"], config["format"] == nml.FORMAT, nml.FORMAT)
    known, keys = dict(settings.flatten(settings.default_config())), {**config["keys"]}
    if unknown := [key for key, value in keys.items() if key not in known and value is not None]:
        raise UserError(f"{path}: {unknown[0]} is not known here", "read it with the version that wrote it, or a newer")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items() if key in known}
