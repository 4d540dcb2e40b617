import json

import pytest

from nml_jax.errors import UserError
from nml_jax.runs import classes


def test_counts_of_all_splits_are_read_back(tmp_path):
    assert classes.read_counts(tmp_path) == {}
    classes.write_counts(tmp_path / classes.PRETRAINING, {"train": {"ant": 2, "bee": 0}})
    classes.write_counts(tmp_path / classes.TASKS, {"pets/test": {"cat": 1}})
    features = {"classes": [2, 10], "splits": [{"split": "holdout", "per_class": [3, 4]}]}
    (tmp_path / classes.FEATURES).write_text(json.dumps(features))
    assert classes.read_counts(tmp_path) == {
        "train": {"ant": 2, "bee": 0},
        "pets/test": {"cat": 1},
        "holdout": {"2": 3, "10": 4},
    }


@pytest.mark.parametrize("name", [classes.PRETRAINING, classes.FEATURES])
@pytest.mark.parametrize("content", ["{", "[1]", '{"train": 3}', '{"splits": 1}', '{"train": {"a": "b"}}', "\xff"])
def test_damaged_counts_are_named(tmp_path, name, content):
    (tmp_path / name).write_text(content, "latin-1")
    if (name, content) in [(classes.FEATURES, '{"train": 3}'), (classes.FEATURES, '{"train": {"a": "b"}}')]:
        return  # keys that it does not read
    with pytest.raises(UserError, match=f"{name} is damaged: "):
        classes.read_counts(tmp_path)
