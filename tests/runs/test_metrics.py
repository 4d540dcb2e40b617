"""The lines of metrics are read with their types; half a line at the end is that of a killed writer."""

from pathlib import Path

import pytest

from nml_jax.errors import UserError
from nml_jax.runs.metrics import drop_after, read_metrics

GOOD = '{"step": 1, "train/loss": 2.5}\n{"step": 2, "train/loss": 2}\n'


def test_half_a_line_at_the_end_is_skipped(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(GOOD + '{"step": 3, "tra')
    assert read_metrics(tmp_path) == [{"step": 1, "train/loss": 2.5}, {"step": 2, "train/loss": 2}]


@pytest.mark.parametrize(
    "line", ['{"step": 3, "tra', "[]", '{"step": "3"}', '{"loss": 1.0}', '{"step": 1, "loss": NaN}']
)
def test_damage_elsewhere_is_told(tmp_path: Path, line: str, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{line}\n{GOOD}")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1 is damaged"):
        read_metrics(tmp_path)
    drop_after(path, 1)  # a restart drops it, with what comes after the step
    assert read_metrics(tmp_path) == [{"step": 1, "train/loss": 2.5}]
    assert "1 damaged line(s) are left out, the first is line 1" in capsys.readouterr().err
