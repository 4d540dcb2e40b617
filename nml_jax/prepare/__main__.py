"""Build a prepared TFDS/ArrayRecord dataset from images, without TensorFlow.

python -m nml_jax.prepare image_folder SRC OUT [--workers N] [--resize SIDE]
python -m nml_jax.prepare coco_folder SRC OUT [--workers N]             (nml_jax/prepare/coco/build.py)
python -m nml_jax.prepare image_text SRC... OUT [--workers N] [...]     (nml_jax/prepare/pairs/build.py)
python -m nml_jax.prepare rendered_sst2 SRC OUT [--workers N]           (and others: nml_jax/prepare/downstream.py)
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from nml_jax import console
from nml_jax.data.class_names import describe_counts
from nml_jax.errors import UserError
from nml_jax.prepare.image_files import RESIZE
from nml_jax.prepare.image_folder import IMAGE_FOLDER, build_image_folder
from nml_jax.prepare.records import check_workers, print_classes

FEW = 3  # ids of annotations in one line
SHOWN = 20  # refused files to print; the manifest lists them all


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Return the exit code."""
    from nml_jax.prepare import downstream
    from nml_jax.prepare.coco.build import COCO_FOLDER, build_coco_folder
    from nml_jax.prepare.pairs import command as pairs

    parser = argparse.ArgumentParser(prog="python -m nml_jax.prepare", description=(__doc__ or "").split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    builders = {
        "image_folder": (build_image_folder, IMAGE_FOLDER),
        "coco_folder": (build_coco_folder, COCO_FOLDER),
        **downstream.BUILDERS,
    }
    for kind, (_, help_text) in builders.items():
        command = kinds.add_parser(kind, help=help_text)
        command.add_argument("src", metavar="SRC", type=Path)
        command.add_argument("out", metavar="OUT", type=Path)
        command.add_argument("--workers", type=int, help="threads that check images, 1 or more (default: one per core)")
    kinds.choices["image_folder"].add_argument("--resize", metavar="SIDE", type=int, help=RESIZE)
    pairs.add_arguments(kinds.add_parser("image_text", help="from WebDataset tars, Parquet, CSV and TSV"))
    console.allow_any_terminal()
    args = parser.parse_args(argv)
    try:
        check_workers(args.workers)
        if args.kind == "image_text":
            return pairs.main(args)
        options = {"resize": args.resize} if args.kind == "image_folder" else {}
        manifest = builders[args.kind][0](args.src, args.out, workers=args.workers, **options)
        return _print_manifest(manifest, args.out)
    except UserError as e:
        console.notice(str(e))
        return e.exit_code
    except KeyboardInterrupt:
        console.notice(
            "\ninterrupted; the same command " + ("continues" if args.kind == "image_text" else "starts over")
        )
        return 130  # a shell's exit code for SIGINT


def _print_manifest(manifest: dict[str, Any], out: Path) -> int:
    """Print the counts of a build and the first refused files. Return the exit code."""
    for split, counts in manifest["splits"].items():
        per_class = {name: n for name, n in counts["per_class"].items() if n}
        console.show(f"{split}: {counts['records']} images of {describe_counts(per_class)}")
        for what, n in manifest.get("annotations_mended", {}).get(split, {}).items():
            ids = manifest["annotations_mended_ids"][split].get(what, [])[:FEW]
            console.show_line(f"  {n} x {what}" + f"; as in annotation {console.list_words(map(str, ids))}" * bool(ids))
    print_classes(manifest)
    left_out: Counter[str] = Counter()
    for entry in manifest["files_left_out"]:
        left_out[entry["reason"]] += entry["files"]
    if left_out:
        console.show(f"files left out: {left_out.total()}")
    for reason, n in left_out.most_common():
        console.show_line(f"  {n} x {reason}")
    if "annotations_left_out" in manifest:
        _print_annotations(manifest["annotations_left_out"], out)
    refused = manifest["refused"]
    console.show(f"refused files: {len(refused)}")
    for entry in refused[:SHOWN]:
        console.show_line(f"  {entry['file']}: {entry['reason']}")
    if len(refused) > SHOWN:
        console.show(f"  ... and {len(refused) - SHOWN} more in {out / 'manifest.json'}")
    console.show(str(out))
    return 0


def _print_annotations(left_out: list[dict[str, Any]], out: Path) -> None:
    """Print how many annotations are left out, and the first ones."""
    console.show(f"annotations left out: {len(left_out)}")
    for entry in left_out[:SHOWN]:
        console.show_line(f"  {entry['file']}, annotation {entry['annotation']}: {entry['reason']}")
    if len(left_out) > SHOWN:
        console.show(f"  ... and {len(left_out) - SHOWN} more in {out / 'manifest.json'}")


if __name__ == "__main__":
    sys.exit(main())
