"""Encode odd texts and 10,000 rows of GLUE with transformers' tokenizers, and keep hashes in `golden_glue.json`.

`python tests/data/text/golden_glue.py SHARED MINILM GPT2` writes the file again from the folder of shared data, a
folder with all-MiniLM-L6-v2's tokenizer, and one with GPT-2's vocab.json, merges.txt and configs; it needs
transformers, but not nml_jax. There is a hash for each tokenizer, length and set: of the ids and, for BERT, the types
of all its rows.
"""

import hashlib
import json
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
LENGTHS = (16, 24, 128, 512)
# Folder and file of a set, columns of its texts, first line of them, number of rows.
SETS = {
    "RTE": ("train.tsv", (1, 2), 1, 2490),
    "SST-2": ("train.tsv", (0,), 1, 3000),
    "CoLA": ("train.tsv", (3,), 0, 2000),
    "QNLI": ("dev.tsv", (1, 2), 1, 1010),
    "STS-B": ("sts-dev.csv", (5, 6), 0, 1500),
}
ODD = (
    "", " ", "hello", " hello", "Hello  World", "na\u00efve caf\u00e9", "e\u0301", "\u65e5\u672c\u8a9e text",
    "\U0001f642\U0001f44d", "[CLS] in text", "a [SEP] b [MASK]", "<s> hi </s>", "<|endoftext|>", "x" * 300,
    "don't I'll", "3.14 1,000", "\t\n mixed \r\n", "\u200bzero", "\u00c0\u00c9\u00ce", "\u0130stanbul",
    "a\u0000b", "@user #tag",
    "\u2026\u2014", "word " * 600, "\ue000 private", "\ufb01 ligature", "\u0645\u0631\u062d\u0628\u0627",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\u1e9e\u00df", "a\u00a0b\u3000c", "http://x.y/z?q=1&r=%20", "\ufeffBOM",
)  # fmt: skip


def read_rows(shared: Path) -> dict[str, list[tuple[str, ...]]]:
    """Return the texts of each set, 10,000 in all, and the odd ones, alone and in pairs."""
    rows = {"odd": [(text,) for text in ODD], "odd pairs": list(zip(ODD, ODD[::-1], strict=True))}
    for name, (file, columns, first, count) in SETS.items():
        lines = (shared / "language" / name / file).read_text("utf-8-sig").split("\n")[first : first + count]
        cells = [line.removesuffix("\r").split("\t") for line in lines]
        rows[name] = [tuple(row[column] for column in columns) for row in cells]
    assert sum(map(len, rows.values())) == 10_000 + 2 * len(ODD)
    return rows


def hash_rows(rows: Iterable[tuple[list[int], list[int] | None]]) -> str:
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()


def main() -> None:
    shared, *folders = map(Path, sys.argv[1:])
    runpy.run_path(str(Path(__file__).parents[2] / "models" / "weights" / "golden.py"))["timm"]()
    from transformers import AutoTokenizer

    found = {}
    for kind, folder in zip(("minilm", "gpt2"), folders, strict=True):
        own = AutoTokenizer.from_pretrained(folder)
        assert len(own(["hello"])["input_ids"][0]), "a folder of GPT-2 needs config.json and tokenizer_config.json"
        for name, rows in read_rows(shared).items():
            rows = [row for row in rows if kind == "minilm" or any(row)]  # GPT-2 has no token for an empty text
            for length in LENGTHS:
                texts = [[*column] for column in zip(*rows, strict=True)]
                done = own(*texts, truncation="longest_first", max_length=length, padding=False)
                types = done["token_type_ids"] if kind == "minilm" else [None] * len(rows)
                found[f"{kind} {name} {length}"] = hash_rows(zip(done["input_ids"], types, strict=True))
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
