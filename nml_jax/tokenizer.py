"""Train a tokenizer on captions or texts.

    python -m nml_jax.tokenizer train CORPUS... OUT.json [--vocab 8192]

CORPUS is a text file with one caption a line, a table of texts (.tsv, .csv, .parquet), whose usual columns are read, or
a prepared image-text directory, DIR or DIR:SPLIT. OUT.json is a tokenizer.json of the Hugging Face tokenizers library;
the same corpus gives the same file. It is for CLIP's captions and for text encoders that start at random.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from nml_jax import console
from nml_jax.data.sources import texts as stored
from nml_jax.data.text.tables import SUFFIXES, choose_columns, read_table
from nml_jax.data.text.tokenizer import load, train
from nml_jax.errors import UserError, report_disk_errors
from nml_jax.runs.files import write_atomic

LONGEST_WORD = 5000  # characters, as in a prepared caption; the time of BPE grows with the square of a word


TABLES = tuple(ending for ending in SUFFIXES if ending != ".txt")  # a .txt holds a text a line


def read_captions(sources: Iterable[str]) -> Iterator[str]:
    """Yield the captions of text files and prepared image-text directories, and the texts of tables, in order.

    Raises:
        UserError: a source is neither, cannot be read, or is not UTF-8.
    """
    for source in sources:
        if Path(source).suffix in TABLES and Path(source).is_file():
            table = read_table(Path(source))
            columns, _ = choose_columns(Path(source), list(table), "", "")
            yield from _drop_long_words(source, (text for name in columns for text in table[name] if text))
            continue
        if Path(source).is_file():
            try:
                with Path(source).open(encoding="utf-8") as f:
                    yield from _drop_long_words(source, f)
            except (OSError, UnicodeDecodeError) as e:
                raise UserError(
                    f"{source} cannot be read: {e}", "give a UTF-8 text file with one caption a line"
                ) from e
            continue
        folder, split = (source, "*") if Path(source).is_dir() else source.rpartition(":")[::2]
        files = sorted(Path(folder, "supervision").glob(f"{split}.captions")) if folder and split else []
        if not files:
            raise UserError(
                f"{source} is neither a text file nor an image-text directory",
                "give a file, DIR or DIR:SPLIT; python -m nml_jax.prepare image_text makes DIR",
            )
        for file in files:
            for record in stored.Texts(file):
                yield from stored.split(record)


def _drop_long_words(source: str, lines: Iterable[str]) -> Iterator[str]:
    """Yield lines without words that would take BPE hours. Say how many there were."""
    count = 0
    for line in lines:
        if len(line) > LONGEST_WORD:
            words = line.split()
            kept = [word for word in words if len(word) <= LONGEST_WORD]
            count += len(words) - len(kept)
            line = " ".join(kept)
        yield line
    if count:
        console.notice(f"{source}: {count} words of more than {LONGEST_WORD:,} characters are left out")


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nml_jax.tokenizer", description=(__doc__ or "").split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    bpe = kinds.add_parser("train", help="train BPE on captions")
    bpe.add_argument("corpus", metavar="CORPUS", nargs="+", help="text file, DIR or DIR:SPLIT")
    bpe.add_argument("out", metavar="OUT.json", type=Path)
    bpe.add_argument("--vocab", type=int, default=8192, help="number of tokens with start and end (default: 8192)")
    console.allow_any_terminal()
    args = parser.parse_args(argv)
    try:
        if args.out.suffix != ".json":
            raise UserError(f"{args.out} does not end in .json", "give the output file last, as in captions.json")
        if args.out.exists():
            raise UserError(f"{args.out} exists already", "choose another OUT.json, or delete it first")
        definition = train(read_captions(args.corpus), args.vocab)
        with report_disk_errors(args.out):
            write_atomic(args.out, definition)
        tokenizer = load(str(args.out), 3)
    except UserError as e:
        console.notice(str(e))
        return e.exit_code
    console.show(f"{args.out}: {tokenizer.vocab_size} tokens")
    console.show(f"use it with --config.data.tokenizer={args.out} --config.model.text_vocab={tokenizer.vocab_size}")
    console.show(
        f"or, for a text encoder, --config.texts.tokenizer={args.out} --config.model.vocab={tokenizer.vocab_size}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
