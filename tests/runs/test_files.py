"""Files of a run appear whole, under names that nobody can foresee, and only in its folder."""

import os
from pathlib import Path

import pytest

from nml_jax.errors import UserError
from nml_jax.runs import files
from nml_jax.stages import experiment


def test_a_link_out_of_a_run_is_refused(tmp_path: Path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "w" / "run" / "heads").mkdir(parents=True)
    (tmp_path / "w" / "run" / "within").symlink_to("heads")
    (tmp_path / "runs").symlink_to(tmp_path / "w")  # the user's own way to a larger disk
    with experiment.own_run(tmp_path / "runs", "run"):
        assert (tmp_path / "w" / "run" / files.OWNER).exists()
    assert not (tmp_path / "w" / "run" / files.OWNER).exists()
    (tmp_path / "w" / "run" / "heads" / "features").symlink_to(tmp_path / "victim")
    told, again = "heads/features is a link that leads out of", experiment.own_run(tmp_path / "runs", "run")
    with pytest.raises(UserError, match=told), again:
        pass
    assert list((tmp_path / "victim").iterdir()) == []


def test_a_file_is_written_under_a_name_that_nobody_can_foresee(tmp_path: Path):
    seen = set()
    for _ in range(2):
        with files.replace_file(tmp_path / "head") as part:
            seen.add(part.name)
            part.write_text("new")
    assert len(seen) == 2
    assert os.listdir(tmp_path) == ["head"]
    (tmp_path / "victim").write_text("old")
    (tmp_path / "link").symlink_to("victim")
    files.write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "victim").read_text() == "old"
