"""Encode texts with transformers' own tokenizers of small folders, and keep the ids in `golden_folders.json`.

`python tests/data/text/golden_folders.py` writes the file again; it needs transformers, but not nml_jax.
"""

import json
import tempfile
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
LENGTHS = (8, 13, 64)
TEXTS = (
    "", " ", "hello", " hello", "Hello  World", "na\u00efve caf\u00e9", "e\u0301",
    "\u65e5\u672c\u8a9e text", "\U0001f642\U0001f44d",
    "[CLS] in text", "a [SEP] b [MASK]", "<s> hi </s>", "<|endoftext|>", "x" * 120, "don't can't I'll", "3.14 1,000",
    "\t\n mixed \r\n", "\u200bzero", "\u00c0\u00c9\u00ce", "\u0130stanbul", "a\u0000b", "@user #tag", "\u2026\u2014",
    "word " * 40,
    "a <mask> b<pad>",
)  # fmt: skip
PAIRS = tuple(zip(TEXTS, TEXTS[::-1], strict=True))
WORDS = ("hello", "world", "text", "word", "naive", "cafe", "in", "##o", "##rl", "mixed", "\u65e5")
MERGES = ("h e", "l l", "he ll", "hell o", "\u0120 w", "o r", "\u0120w or", "\u0120wor d", "i n", "t e")


def list_bytes() -> list[str]:
    """Return the character that stands for each byte, in the order of GPT-2's vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in shown] + [chr(256 + n) for n in range(256 - len(shown))]


def write_folder(kind: str, folder: Path) -> Path:
    """Write the tokenizer of a small model: bert, bert-cased, roberta or gpt2."""
    about = {"tokenizer_class": {"b": "BertTokenizer", "r": "RobertaTokenizer", "g": "GPT2Tokenizer"}[kind[0]]}
    if kind[0] == "b":
        letters = [chr(c) for c in (*range(33, 127), 0xC0, 0xC9, 0xCE, 0xE9)]
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokens = dict.fromkeys([*special, *letters, *(f"##{c}" for c in letters), *WORDS])
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), "utf-8")
        about |= {"do_lower_case": kind == "bert"}
    else:
        special = ["<s>", "<pad>", "</s>", "<unk>"] if kind == "roberta" else []
        merged = [merge.replace(" ", "") for merge in MERGES]
        tokens = [*special, *list_bytes(), *merged, "<mask>" if special else "<|endoftext|>"]
        (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), "utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{m}\n" for m in MERGES), "utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": kind.partition("-")[0]}))
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


KINDS = ("bert", "bert-cased", "roberta", "gpt2")


def main() -> None:
    import runpy

    weights = Path(__file__).parents[2] / "models" / "weights"
    runpy.run_path(str(weights / "golden.py"))["timm"]()  # defines what torchvision may lack
    from transformers import AutoTokenizer

    found = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            own = AutoTokenizer.from_pretrained(write_folder(kind, Path(folder)))
            for length in LENGTHS:
                for texts in (*((text,) for text in TEXTS), *PAIRS):
                    # as a list: of a single pair whose second text is empty, transformers takes the first alone
                    done = own(*([text] for text in texts), truncation="longest_first", max_length=length)
                    ids, types = done["input_ids"], done.get("token_type_ids", [None])
                    found.setdefault(f"{kind} {length}", []).append([ids[0], types[0]])
    FILE.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
