"""Test the list of a run's banks, from its index or from its rows."""

from pathlib import Path

import pytest

from nml_jax.errors import UserError
from nml_jax.runs.banks import BankIndex, read_index, write_index
from nml_jax.runs.record import write_record
from nml_jax.runs.rows import write_rows
from tests.runs.test_rows import row

INDEX = BankIndex(7, "ema", {"digits": {"train": "id", "test": "id", "test/rotated": "ood"}, "pets": {"train": "id"}})


def finish(folder: Path) -> None:
    write_record(folder, {"stages": {"extract": {"inputs": "a", "output": "b"}}, "environment": {}})


def test_what_is_written_is_read_without_rows(tmp_path: Path):
    finish(tmp_path)
    write_index(tmp_path, INDEX)
    index = read_index(tmp_path)
    assert index == INDEX
    assert [(task, list(of_task)) for task, of_task in index.domains.items()] == [
        ("digits", ["train", "test", "test/rotated"]), ("pets", ["train"])
    ]  # fmt: skip


def test_rows_give_the_same_index(tmp_path: Path):
    finish(tmp_path)
    assert read_index(tmp_path) is None
    rows = [
        row(stage="extract", step=7, weights="ema", task=task, split=split, domain=domain)
        for task, of_task in INDEX.domains.items() for split, domain in of_task.items()
    ]  # fmt: skip
    write_rows(tmp_path, "extract", [x for x in rows for _ in range(2)])  # several measures of each
    assert read_index(tmp_path) == INDEX


def test_an_extraction_that_has_not_finished_has_no_banks(tmp_path: Path):
    write_index(tmp_path, INDEX)
    assert read_index(tmp_path) is None
    write_record(tmp_path, {"stages": {"extract": {}}, "environment": {}})  # begun again
    assert read_index(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[1]", '{"step": 1}'])
def test_a_damaged_index_is_refused(tmp_path: Path, text: str):
    finish(tmp_path)
    (tmp_path / "banks").mkdir()
    (tmp_path / "banks" / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        read_index(tmp_path)
