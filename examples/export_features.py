"""Export the features of other libraries' encoders to a .safetensors file, which nml_jax and other programs read.

    python examples/export_features.py timm resnet50.a1_in1k photos/train train.safetensors
    python examples/export_features.py open_clip ViT-B-32 laion2b_s34b_b79k photos/train train.safetensors
    python examples/export_features.py hf sentence-transformers/all-MiniLM-L6-v2 train.csv train.safetensors

Images lie in FOLDER/<class>/<image>. Texts are a CSV file with the columns text and label. The output contains
`features` float32 [N, D], `labels` int64 [N] (indices of the sorted class names), `ids` int64 [N] (positions in the
sorted paths, or row numbers) and, in its metadata, the class names. For test data give --like TRAIN.safetensors, so
that classes have the numbers of the training file even if some are absent.

All need PyTorch and the library. Texts of an embeddings API need no export: configs/text_api.py asks for them.
"""

import argparse
import csv
import json
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for run, names in (
        (export_timm, ("MODEL", "FOLDER")),
        (export_open_clip, ("MODEL", "PRETRAINED", "FOLDER")),
        (export_hf, ("MODEL", "TEXTS")),
    ):
        command = commands.add_parser(run.__name__.removeprefix("export_"), help=run.__doc__, description=run.__doc__)
        for name in (*names, "OUT"):
            command.add_argument(name.lower(), metavar=name, type=Path if name in ("FOLDER", "TEXTS", "OUT") else str)
        command.add_argument("--like", type=Path, help="number the classes as in this earlier output")
        command.add_argument("--batch", type=int, default=64, help="images or texts at a time (%(default)s)")
        command.set_defaults(run=run)
        if "FOLDER" in names:
            command.add_argument(
                "--random", action="store_true", help="use random weights, to try it out without a download"
            )
    args = parser.parse_args(argv)
    args.run(args)


def fail(cause: str, cure: str) -> NoReturn:
    print(f"error: {cause}\n  cure: {cure}", file=sys.stderr)
    sys.exit(2)


def export_timm(args: argparse.Namespace) -> None:
    """Encode images with a timm model: the input of its classifier."""
    import timm

    model = timm.create_model(args.model, pretrained=not args.random, num_classes=0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    encode_images(args, model, model, transform)


def export_open_clip(args: argparse.Namespace) -> None:
    """Encode images with the image tower of an open_clip model."""
    import open_clip

    pretrained = None if args.random else args.pretrained
    model, _, transform = open_clip.create_model_and_transforms(args.model, pretrained=pretrained)
    encode_images(args, model, model.encode_image, transform)


def export_hf(args: argparse.Namespace) -> None:
    """Encode texts with a Hugging Face text encoder: the mean of its last hidden states over a text's tokens."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts, names = read_texts(args.texts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, model = AutoTokenizer.from_pretrained(args.model), AutoModel.from_pretrained(args.model)
    model = model.eval().to(device)
    features = []
    with torch.inference_mode():
        for batch in split_batches(texts, args.batch):
            tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(device)
            hidden = model(**tokens).last_hidden_state.float()
            mask = tokens["attention_mask"][..., None]
            features.append(((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy())
    save(args, np.concatenate(features), names)


def encode_images(args: argparse.Namespace, model, encode: Callable, transform: Callable) -> None:
    """Encode all images of a folder with `encode`, a PyTorch function of `model`, and save the features."""
    import torch
    from PIL import Image

    paths = sorted(path for path in args.folder.glob("*/*") if path.suffix.lower() in IMAGES)
    if not paths:
        fail(f"{args.folder} has no images", "put them into FOLDER/<class>/<image>")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.eval().to(device)
    features = []
    with torch.inference_mode():
        for batch in split_batches(paths, args.batch):
            images = torch.stack([transform(Image.open(path).convert("RGB")) for path in batch])
            features.append(encode(images.to(device)).float().cpu().numpy())
    save(args, np.concatenate(features), [path.parent.name for path in paths])


def read_texts(path: Path) -> tuple[list[str], list[str]]:
    """Read the columns text and label of a CSV file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            rows = list(csv.DictReader(f))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        fail(f"{path} cannot be read: {e}", "give a CSV file in UTF-8")
    if not rows or any(None in (row.get("text"), row.get("label")) for row in rows):
        fail(f"{path} has no rows, or a row without the columns text and label", "give a CSV with a header text,label")
    return [row["text"] for row in rows], [row["label"] for row in rows]


def split_batches(items: list, size: int) -> Iterator[list]:
    """Yield the items in batches and print the progress."""
    for start in range(0, len(items), size):
        print(f"\r{start}/{len(items)}", end="", file=sys.stderr, flush=True)
        yield items[start : start + size]
    print(f"\r{len(items)}/{len(items)}", file=sys.stderr)


def save(args: argparse.Namespace, features: np.ndarray, names: list[str]) -> None:
    """Write the file. It appears once it is complete."""
    classes = sorted(set(names), key=lambda name: (int(name), "") if name.isdecimal() else (sys.maxsize, name))
    if args.like:
        try:
            with safe_open(args.like, "numpy") as file:
                classes = json.loads((file.metadata() or {})["class_names"])
        except (OSError, SafetensorError, KeyError, ValueError) as e:
            fail(f"{args.like} has no class names: {e}", "give a file that this script has written")
        if unknown := sorted(set(names) - set(classes)):
            fail(
                f"{args.like} has no classes {', '.join(unknown)}", "drop their rows, or export the training file again"
            )
    number = {name: i for i, name in enumerate(classes)}
    arrays = {
        "features": np.ascontiguousarray(features, np.float32),
        "labels": np.array([number[name] for name in names], np.int64),
        "ids": np.arange(len(names), dtype=np.int64),
    }
    part = args.out.with_name(f".{args.out.name}.{uuid.uuid4().hex}.part")
    save_file(arrays, part, {"class_names": json.dumps(classes)})
    part.replace(args.out)
    print(f"{args.out}: {len(names)} rows of {features.shape[1]} features, {len(classes)} classes")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  a terminal may lack characters
    main()
