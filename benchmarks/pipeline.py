"""How much of the bare decode-and-crop does the pipeline deliver, and what does the noise overlay cost?

    python benchmarks/pipeline.py [--quick] [--repeats=7] [--threads=N] [--write]

JPEGs of 500 × 375 pixels, random-resized-crop to 224. `bare` decodes and crops the same files from memory, in as many
threads, and does nothing else. `pipeline` reads them from ArrayRecord, shuffles, crops, batches. `noisy` is the same
with noisy labels laid over the source. All three take turns in every round; ratios are of a round, medians over rounds.
`fast` samples with OpenCV, bilinear; `default` is Pillow's antialiased bicubic.

What the overlay costs is far below what end-to-end rounds can resolve, so it is also timed by itself: laying it over
ImageNet's 1.28 million labels, spread over one epoch, and looking up a record with and without it.

Last, digits: batches of 64 images of 8 × 8 pixels, where all that counts is the work around an image.
"""

import argparse
import datetime
import io
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import grain
import numpy as np
import PIL
import simplejpeg
from PIL import Image

import nml_jax
from nml_jax import corrupt_labels
from nml_jax.data import builders, codec, pipeline, sources, transforms

RESULTS = Path(__file__).parent / "results" / "pipeline.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, SIZE = 64, 224
RECIPES = {"fast": ("bilinear", False), "default": ("bicubic", True)}


def photos(count: int) -> list[bytes]:
    """JPEGs with about the entropy of photographs: smooth colours, edges and a little grain; some 60 kB each."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        for _ in range(12):
            x, y = int(rng.integers(500)), int(rng.integers(375))
            image[y : y + 90, x : x + 120] += rng.integers(-60, 60, 3, dtype=np.int16)
        image += rng.normal(0, 9, image.shape).astype(np.int16)
        out = io.BytesIO()
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=88)
        files.append(out.getvalue())
    return files


def prepared(files: list[bytes], folder: Path) -> sources.Source:
    (folder / "src" / "train" / "0").mkdir(parents=True)
    (folder / "src" / "train" / "1").mkdir()
    for i, content in enumerate(files):
        (folder / "src" / "train" / str(i % 2) / f"{i:05}.jpg").write_bytes(content)
    builders.image_folder(folder / "src", folder / "out")
    data = SimpleNamespace(source="directory", path=str(folder / "out"), name="", classes=(), num_classes=None)
    return sources.load(data, "train")


def recipe(crop: str, name: str) -> Any:
    interpolation, antialias = RECIPES[name]
    return SimpleNamespace(
        crop=crop,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        flip=0.0,
        randaugment=0,
        erase=0.0,
        repeats=1,
        interpolation=interpolation,
        antialias=antialias,
    )


def bare(files: list[bytes], augment: Any, batches: int, threads: int) -> Callable[[], float]:
    how = {"interpolation": augment.interpolation, "antialias": augment.antialias}

    def work(start: int) -> None:
        rng = np.random.default_rng(start)
        for i in range(start, start + BATCH):
            image = codec.decode(files[i % len(files)])
            transforms.random_resized_crop(image, rng, size=SIZE, scale=augment.scale, ratio=augment.ratio, **how)

    def run() -> float:
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(work, range(0, batches * BATCH, BATCH)))
            return time.perf_counter() - start

    return run


def piped(source: sources.Source, augment: Any, batches: int, threads: int, size: int = SIZE) -> Callable[[], float]:
    def run() -> float:
        how = {"image_size": size, "mean": MEAN, "std": STD, "batch": BATCH, "threads": threads}
        others = threading.active_count()
        stream = pipeline.train(source, augment=augment, seed=0, **how)
        for _ in range(2 * max(4, threads)):  # until as many batches are under way at the start as at the end
            next(stream)
        start = time.perf_counter()
        for _ in range(batches):
            next(stream)
        seconds = time.perf_counter() - start
        stream.close()
        while threading.active_count() > others:  # batches under way must not run into the next one's time
            time.sleep(0.001)
        return seconds

    return run


def looked_up(source: sources.Source, ids: list[int]) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        for i in ids:
            source[i]
        return time.perf_counter() - start

    return run


def rounds(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run in every round; all take turns, after one round to warm up."""
    seconds = [{name: run() for name, run in runs.items()} for _ in range(repeats + 1)]
    return {name: [one[name] for one in seconds[1:]] for name in runs}


def overlay_ns(repeats: int) -> dict[str, float]:
    """What the overlay costs per image of one epoch over 1.28 million records, in nanoseconds, by itself."""
    labels = np.random.default_rng(0).integers(0, 1000, 1_281_167).astype(np.int32)
    pixel = np.zeros((1, 1, 3), np.uint8)
    images = [pixel] * len(labels)
    clean = sources.Arrays(images, labels, num_classes=1000, class_names=None, fingerprint="")
    laid = []
    for _ in range(repeats):
        start = time.perf_counter()
        noisy = sources.NoisyLabels(clean, corrupt_labels(labels, num_classes=1000, rate=0.3, seed=0))
        laid.append((time.perf_counter() - start) / len(labels) * 1e9)
    ids = np.random.default_rng(1).integers(0, len(labels), 20_000).tolist()

    seconds = rounds({"clean": looked_up(clean, ids), "noisy": looked_up(noisy, ids)}, repeats)
    extra = [(b - a) / len(ids) * 1e9 for a, b in zip(seconds["clean"], seconds["noisy"], strict=True)]
    return {"laying": statistics.median(laid), "look_up": statistics.median(extra)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    args = parser.parse_args()
    batches = 6 if args.quick else 30
    cv2.setNumThreads(0)

    versions = {
        m.__name__: m.__version__ for m in (nml_jax, np, cv2, PIL, simplejpeg, grain) if hasattr(m, "__version__")
    }
    about: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f} at the start",
        "versions": versions | {"python": platform.python_version()},
        "threads": args.threads,
        "images_per_round": batches * BATCH,
        "repeats": args.repeats,
    }
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n")

    results: dict[str, Any] = {}
    files = photos(256)
    print(f"photos: {len(files)}, {np.mean([len(f) for f in files]) / 1000:.0f} kB on average")
    with tempfile.TemporaryDirectory() as folder:
        source = prepared(files, Path(folder))
        noisy = sources.NoisyLabels(source, corrupt_labels(source.labels, num_classes=2, rate=0.3, seed=0))
        for name in RECIPES:
            augment = recipe("random_resized", name)
            seconds = rounds(
                {
                    "bare": bare(files, augment, batches, args.threads),
                    "pipeline": piped(source, augment, batches, args.threads),
                    "noisy": piped(noisy, augment, batches, args.threads),
                },
                args.repeats,
            )
            print(f"\n{name:<12} {'images/s':>9} {'min':>7} {'max':>7} {'of bare':>8} {'of pipeline':>12}")
            results[name] = {}
            for run, times in seconds.items():
                rates = sorted(batches * BATCH / t for t in times)
                of = {
                    base: statistics.median(b / t for b, t in zip(seconds[base], times, strict=True))
                    for base in ("bare", "pipeline")
                }
                rate = statistics.median(rates)
                print(
                    f"{run:<12} {rate:9.0f} {rates[0]:7.0f} {rates[-1]:7.0f} {of['bare']:8.3f} {of['pipeline']:12.3f}"
                )
                results[name][run] = {"seconds": times, "images_per_second": rate} | {
                    f"of_{k}": v for k, v in of.items()
                }

    cost = overlay_ns(args.repeats)
    image_ns = args.threads / results["fast"]["pipeline"]["images_per_second"] * 1e9
    share = sum(cost.values()) / image_ns
    print(f"\noverlay by itself: laying {cost['laying']:.0f} ns, look-up {cost['look_up']:.0f} ns per image")
    print(f"that is {share:.3%} of the {image_ns / 1000:.0f} µs a thread spends on an image (fast)")
    results["overlay"] = {"laying_ns": cost["laying"], "look_up_ns": cost["look_up"], "share": share}

    digits = sources.load(SimpleNamespace(source="digits", path="", name="", classes=(), num_classes=None), "train")
    augment = recipe("none", "fast")
    runs = {f"{n} threads": piped(digits, augment, 100, n, size=8) for n in (0, 1, 2, 4, 8)}
    print(f"\n{'digits':<12} {'µs/image':>9} {'batches/s':>10}")
    results["digits"] = {}
    for run, times in rounds(runs, args.repeats).items():
        median = statistics.median(times)
        print(f"{run:<12} {median / 100 / BATCH * 1e6:9.1f} {100 / median:10.0f}")
        results["digits"][run] = {"seconds": times, "us_per_image": median / 100 / BATCH * 1e6}
    if args.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
