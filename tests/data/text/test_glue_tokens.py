"""Test, by name, the ids of real tokenizers on 10,000 rows of GLUE and odd texts against transformers'."""

import json
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from nml_jax.data.text.folders import TextTokenizer

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden_glue.py"))))
FOLDERS = {"minilm": "NML_MINILM", "gpt2": "NML_GPT2"}  # environment variables that name folders with a tokenizer


def list_ids(tokenizer: TextTokenizer, rows: list[tuple[str, ...]], kind: str):
    table = tokenizer(rows)
    for i, second in enumerate(table.seconds):
        ids = table.ids[table.starts[i] : table.starts[i + 1]].tolist()
        yield ids, [int(place >= second) for place in range(len(ids))] if kind == "minilm" else None


@pytest.mark.slow
@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("form", ["as it is", "without tokenizer.json"])
def test_ids_and_types(kind: str, form: str, shared_data: Path, tmp_path: Path):
    if not os.environ.get(FOLDERS[kind]):
        pytest.skip(f"set {FOLDERS[kind]} to a folder with this tokenizer")
    folder = Path(os.environ[FOLDERS[kind]])
    if form != "as it is":
        for file in folder.glob("*"):
            if file.is_file() and file.name != "tokenizer.json":
                (tmp_path / file.name).symlink_to(file.resolve())
        folder = tmp_path
    want = json.loads(golden.FILE.read_text())
    for name, rows in golden.read_rows(shared_data).items():
        rows = [row for row in rows if kind == "minilm" or any(row)]
        for length in golden.LENGTHS:
            found = golden.hash_rows(list_ids(TextTokenizer(folder, length), rows, kind))
            assert found == want[f"{kind} {name} {length}"], (name, length)
