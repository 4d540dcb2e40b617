"""How features leave other people's encoders: one .safetensors file, which nml_jax and anything else can read.

    python examples/export_features.py timm resnet50.a1_in1k photos/train train.safetensors
    python examples/export_features.py open_clip ViT-B-32 laion2b_s34b_b79k photos/train train.safetensors
    python examples/export_features.py hf sentence-transformers/all-MiniLM-L6-v2 train.csv train.safetensors
    python examples/export_features.py api https://api.openai.com/v1/embeddings train.csv train.safetensors \\
        --model text-embedding-3-small

Images lie in FOLDER/<class>/<image>; texts in a CSV file with the columns text and label. The file holds `features`
float32 [N, D], `labels` int64 [N] (numbers of the sorted class names), `ids` int64 [N] (of the sorted paths, or the
rows of the table) and, in its metadata, the class names. Give --like TRAIN.safetensors for test data, so that classes
have the numbers of the training file even where some are absent.

timm, open_clip and hf need PyTorch and that library; api needs neither, and takes its key from an environment variable.
"""

import argparse
import csv
import hashlib
import json
import os
import sys
import time
import urllib.error
import urllib.request
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
        (export_api, ("URL", "TEXTS")),
    ):
        command = commands.add_parser(run.__name__.removeprefix("export_"), help=run.__doc__, description=run.__doc__)
        for name in (*names, "OUT"):
            command.add_argument(name.lower(), metavar=name, type=Path if name in ("FOLDER", "TEXTS", "OUT") else str)
        command.add_argument("--like", type=Path, help="number the classes as this earlier output does")
        command.add_argument("--batch", type=int, default=64, help="images or texts at a time (%(default)s)")
        command.set_defaults(run=run)
        if "FOLDER" in names:
            command.add_argument("--random", action="store_true", help="random weights: no download, to try it out")
        if run is export_api:
            command.add_argument("--model", default="text-embedding-3-small", help="the endpoint's name (%(default)s)")
            command.add_argument("--key", default="OPENAI_API_KEY", help="environment variable that holds the key")
            command.add_argument("--retries", type=int, default=6, help="of a request (%(default)s)")
            command.add_argument("--wait", type=float, default=1.0, help="seconds before the first; doubles each time")
    args = parser.parse_args(argv)
    args.run(args)


def fail(cause: str, cure: str) -> NoReturn:
    print(f"error: {cause}\n  cure: {cure}", file=sys.stderr)
    sys.exit(2)


def export_timm(args: argparse.Namespace) -> None:
    """Images through a timm model: what it hands to its classifier."""
    import timm

    model = timm.create_model(args.model, pretrained=not args.random, num_classes=0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    encode_images(args, model, model, transform)


def export_open_clip(args: argparse.Namespace) -> None:
    """Images through the image tower of an open_clip model."""
    import open_clip

    pretrained = None if args.random else args.pretrained
    model, _, transform = open_clip.create_model_and_transforms(args.model, pretrained=pretrained)
    encode_images(args, model, model.encode_image, transform)


def export_hf(args: argparse.Namespace) -> None:
    """Texts through a Hugging Face text encoder: the mean of its last hidden states over the tokens of a text."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts, names = read_texts(args.texts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, model = AutoTokenizer.from_pretrained(args.model), AutoModel.from_pretrained(args.model)
    model = model.eval().to(device)
    features = []
    with torch.inference_mode():
        for batch in batches(texts, args.batch):
            tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(device)
            hidden = model(**tokens).last_hidden_state.float()
            mask = tokens["attention_mask"][..., None]
            features.append(((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy())
    save(args, np.concatenate(features), names)


def export_api(args: argparse.Namespace) -> None:
    """Texts through an endpoint that answers as OpenAI's /v1/embeddings does; a run that was stopped goes on."""
    texts, names = read_texts(args.texts)
    part = args.out.with_name(args.out.name + ".part")  # a line that says what it is of, then one per embedding
    of = json.dumps([args.url, args.model, hashlib.sha256(json.dumps(texts).encode()).hexdigest()]) + "\n"
    lines = part.read_text().splitlines(keepends=True) if part.exists() else []
    if lines and lines[0] != of:
        fail(f"{part} belongs to other texts or another model", "delete it to begin anew")
    lines = [line for line in lines or [of] if line.endswith("\n")]  # not the half line of a run that was killed
    part.write_text("".join(lines))
    with part.open("a") as f:
        for batch in batches(texts[len(lines) - 1 :], args.batch):
            for embedding in request(args, batch):
                f.write(json.dumps(embedding) + "\n")
            f.flush()
    save(args, np.array([json.loads(line) for line in part.read_text().splitlines()[1:]]), names)
    part.unlink()


def request(args: argparse.Namespace, texts: list[str]) -> list[list[float]]:
    """The embeddings of `texts`, in their order. Waits and asks again where the server is busy or out of reach."""
    body = json.dumps({"model": args.model, "input": texts}).encode()
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(args.key):
        headers["Authorization"] = f"Bearer {key}"
    for attempt in range(args.retries + 1):
        try:
            with urllib.request.urlopen(urllib.request.Request(args.url, body, headers), timeout=120) as reply:
                data = sorted(json.load(reply)["data"], key=lambda item: item["index"])
            if len(data) != len(texts):
                fail(f"{args.url} gave {len(data)} embeddings for {len(texts)} texts", "try a smaller --batch")
            return [item["embedding"] for item in data]
        except OSError as e:  # urllib's errors, timeouts and lost connections
            busy = not isinstance(e, urllib.error.HTTPError) or e.code in (408, 429) or e.code >= 500
            if not busy or attempt == args.retries:
                said = e.read(300).decode(errors="replace") if isinstance(e, urllib.error.HTTPError) else ""
                fail(f"{args.url}: {e} {said}".rstrip(), "see to the address, the key and the limits of the service")
            print(f"{args.url}: {e}; asking again", file=sys.stderr)
            time.sleep(args.wait * 2**attempt)
    raise AssertionError("the last attempt returns or exits")


def encode_images(args: argparse.Namespace, model, encode: Callable, transform: Callable) -> None:
    """The features that the PyTorch function `encode` of `model` gives for all images of a folder."""
    import torch
    from PIL import Image

    paths = sorted(path for path in args.folder.glob("*/*") if path.suffix.lower() in IMAGES)
    if not paths:
        fail(f"{args.folder} has no images", "let them lie in FOLDER/<class>/<image>")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.eval().to(device)
    features = []
    with torch.inference_mode():
        for batch in batches(paths, args.batch):
            images = torch.stack([transform(Image.open(path).convert("RGB")) for path in batch])
            features.append(encode(images.to(device)).float().cpu().numpy())
    save(args, np.concatenate(features), [path.parent.name for path in paths])


def read_texts(path: Path) -> tuple[list[str], list[str]]:
    """The columns text and label of a CSV file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            rows = list(csv.DictReader(f))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        fail(f"{path} cannot be read: {e}", "give a CSV file in UTF-8")
    if not rows or any(None in (row.get("text"), row.get("label")) for row in rows):
        fail(f"{path} has no rows, or one without the columns text and label", "give a CSV with a header text,label")
    return [row["text"] for row in rows], [row["label"] for row in rows]


def batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        print(f"\r{start}/{len(items)}", end="", file=sys.stderr, flush=True)
        yield items[start : start + size]
    print(f"\r{len(items)}/{len(items)}", file=sys.stderr)


def save(args: argparse.Namespace, features: np.ndarray, names: list[str]) -> None:
    """Write the file: under its name only when it is complete."""
    classes = sorted(set(names), key=lambda name: (int(name), "") if name.isdecimal() else (sys.maxsize, name))
    if args.like:
        try:
            with safe_open(args.like, "numpy") as file:
                classes = json.loads((file.metadata() or {})["class_names"])
        except (OSError, SafetensorError, KeyError, ValueError) as e:
            fail(f"{args.like} does not say what its classes are: {e}", "give a file that this script has written")
        if unknown := sorted(set(names) - set(classes)):
            fail(
                f"{args.like} has no classes {', '.join(unknown)}", "drop their rows, or export the training file anew"
            )
    number = {name: i for i, name in enumerate(classes)}
    arrays = {
        "features": np.ascontiguousarray(features, np.float32),
        "labels": np.array([number[name] for name in names], np.int64),
        "ids": np.arange(len(names), dtype=np.int64),
    }
    part = args.out.with_name(f".{args.out.name}.part")
    save_file(arrays, part, {"class_names": json.dumps(classes)})
    part.replace(args.out)
    print(f"{args.out}: {len(names)} rows of {features.shape[1]} features, {len(classes)} classes")


if __name__ == "__main__":
    main()
