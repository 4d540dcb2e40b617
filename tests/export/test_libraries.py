"""Open exported folders in timm, open_clip and transformers; run by name, with a Python that has them.

NML_TORCH_PYTHON=/path/to/python pytest -m slow tests/export/test_libraries.py
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.export import golden_export


@pytest.mark.slow
@pytest.mark.skipif("NML_TORCH_PYTHON" not in os.environ, reason="NML_TORCH_PYTHON names no Python with torch and timm")
def test_the_libraries_say_today_what_is_in_the_file(tmp_path: Path):
    """They load every folder strictly, and their outputs of photos are ours to 5e-4 standard deviations."""
    golden_export.write(tmp_path / "folders")
    command = [os.environ["NML_TORCH_PYTHON"], golden_export.__file__, "open", tmp_path / "folders", tmp_path / "file"]
    subprocess.run(command, check=True)
    found, want = (json.loads(path.read_text())["cases"] for path in (tmp_path / "file", golden_export.FILE))
    assert found.keys() == want.keys()
    for name, case in found.items():
        for part in ("config", "keys", "data_config"):
            assert case[part] == want[name][part], name
        assert case["differences"].keys() == want[name]["differences"].keys()
