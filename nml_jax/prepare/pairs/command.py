"""The command `python -m nml_jax.prepare image_text`: its arguments, and what it prints (see build.py)."""

import argparse
from pathlib import Path

from nml_jax import console
from nml_jax.data.class_names import describe_counts
from nml_jax.prepare.image_files import RESIZE
from nml_jax.prepare.pairs.build import build_image_text
from nml_jax.prepare.records import print_classes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments. `main` runs the command."""
    src = 'file or folder of files for split "train", or a folder with a folder of files for each split'
    several = "several folders of files with different names are splits of these names"
    parser.add_argument("src", metavar="SRC", type=Path, nargs="+", help=f"{src}; {several}")
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--workers", type=int, help="number of processes, 1 or more (default: one per core)")
    parser.add_argument("--image", metavar="COLUMN", help="column of a table: bytes, or paths below its folder")
    parser.add_argument("--caption", metavar="COLUMN[,COLUMN]", type=_parse_names, help="columns or fields of KEY.json")
    parser.add_argument("--label", metavar="FIELD", default="", help="column or field of KEY.json with the class")
    parser.add_argument(
        "--group", metavar="FIELD", default="", help="pairs with the same value fall into the same part"
    )
    parser.add_argument("--parts", metavar="NAME=SHARE,...", type=_parse_shares, help="parts of every split")
    parser.add_argument("--resize", metavar="SIDE", type=int, help=RESIZE)
    parser.add_argument("--beam", metavar="OPTIONS", help='run on Apache Beam, as in --beam="--runner=DirectRunner"')


def _parse_names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _parse_shares(text: str) -> dict[str, float]:
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        shares = {name: float(share) for name, _, share in pairs}
    except ValueError:
        shares = {}
    if len(shares) < len(pairs) or "" in shares:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of parts, as in train=0.7,new=0.3")
    return shares


def main(args: argparse.Namespace) -> int:
    """Build the dataset and print the counts. Return the exit code."""
    manifest = build_image_text(
        args.src,
        args.out,
        workers=args.workers,
        image=args.image,
        captions=args.caption,
        label=args.label,
        group=args.group,
        parts=args.parts,
        resize=args.resize,
        beam=args.beam,
    )
    for split, counts in manifest["splits"].items():
        console.show(f"{split}: {counts['records']} images with {counts['captions']} captions")
        if present := {name: n for name, n in counts.get("per_class", {}).items() if n}:
            console.show(f"  {describe_counts(present)}")
    print_classes(manifest)
    for equal in manifest["equal_texts"]:
        counts = {split: (n, manifest["splits"][split]["records"]) for split, n in equal["pairs"].items()}
        pairs = ", ".join(f"{n} of {total} in {split}" for split, (n, total) in counts.items())
        console.show(f"equal texts in {' and '.join(equal['splits'])}: {equal['texts']}; pairs with them: {pairs}")
    kinds = {"pairs": "refused", "captions of pairs that were kept": "refused_captions", "files": "refused_files"}
    for what, kind in kinds.items():
        if manifest[kind] or what == "pairs":
            console.show(f"refused {what}: {sum(manifest[kind].values())}, listed in {args.out / 'refused.jsonl'}")
        for reason, n in sorted(manifest[kind].items(), key=lambda item: -item[1]):
            console.show_line(f"  {n} x {reason}")
    console.show(str(args.out))
    return 0
