"""Measure the images per second and core of the input pipeline against a bare loop and PyTorch's DataLoader.

    python benchmarks/input.py [--quick] [--repeats=7] [--cores=2] [--photos=FOLDER] [--torch-python=PATH] [--write]

JPEGs of 500 × 375 pixels are randomly cropped, resized to 224 and flipped, in batches of 64 uint8 images. All sides run
on the same cores and take turns in every round. Ratios are within a round; the table gives medians over rounds. For
sides in this process it also gives the CPU time per image, of all threads over the same part of a round. On a shared
machine that is the steadier measure, because it does not count the time of other programs.

- bare: simplejpeg, a slice, cv2.resize and cv2.flip on files in memory, with boxes drawn beforehand, in one thread per
  core. It does no reading, ordering or batching.
- pipeline: `data.pipeline.train` from ArrayRecord, with OpenCV's resize (bilinear, augment.antialias=False).
- antialiased: the same with augment.antialias=True, which is the opponent's filter.
- torch: a DataLoader with as many worker processes over the same files: Pillow's decoder, crop, antialiased bilinear
  resize and flip, then float32 in [0, 1] of [3, 224, 224], like torchvision's RandomResizedCrop, RandomHorizontalFlip
  and ToTensor. It runs with the Python of --torch-python and is left out without it.
- cache 256, cache 256 antialiased: both pipelines over the same images built with `--resize 256`.

It then measures the pipeline by number of threads; the cost of noisy labels by itself, which is too small for such
rounds; and digits, batches of 64 images of 8 × 8 pixels, for which only the work around an image counts.

The photos are noise with the statistics of photographs (amplitude 1 / f, colours that vary less than brightness, and
edges), or those of a folder, cropped to 500 × 375.
"""

import argparse
import importlib.metadata
import io
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL
from common import Opponent, print_head, serve, write_results
from PIL import Image, ImageOps

RESULTS = Path(__file__).parent / "results" / "input.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, SIZE, SIDE = 64, 224, 256
WIDTH, HEIGHT = 500, 375
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
BARS = {"bare": 0.9, "torch": 2.0}  # speed that the pipeline must reach, relative to each

T = TypeVar("T")


class Round(NamedTuple):
    """Seconds of a round."""

    wall: float
    cpu: float | None  # sum over all threads; None: it ran in other processes


Run = Callable[[], Round]


def measure(work: Callable[[], Any]) -> Round:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Round(time.perf_counter() - wall, time.process_time() - cpu)


def draw_photos(count: int) -> list[bytes]:
    """Draw photos of about 110 kB each, the average of ImageNet."""
    rng = np.random.default_rng(0)
    fy, fx = np.meshgrid(np.fft.fftfreq(HEIGHT), np.fft.rfftfreq(WIDTH), indexing="ij")
    falloff = 1 / np.maximum(np.hypot(fy, fx), 1 / WIDTH)
    files = []
    for _ in range(count):
        spectrum = rng.normal(size=(2, 3, *falloff.shape)) * falloff
        planes = np.fft.irfft2(spectrum[0] + 1j * spectrum[1], s=(HEIGHT, WIDTH))
        planes /= planes.std((1, 2), keepdims=True)
        for _ in range(12):
            x, y = int(rng.integers(WIDTH)), int(rng.integers(HEIGHT))
            planes[:, y : y + 90, x : x + 120] += rng.normal(size=(3, 1, 1))
        image = 128 + 45 * planes[:1] + 12 * planes  # the three channels are mostly the same
        files.append(encode(Image.fromarray(image.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))))
    return files


def read_photos(folder: Path, count: int) -> list[bytes]:
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")]
    if not paths:
        sys.exit(f"{folder} has no photos")
    return [encode(ImageOps.fit(Image.open(p).convert("RGB"), (WIDTH, HEIGHT))) for p in paths[:count]]


def encode(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def prepare(files: list[bytes], folder: Path, resize: int | None) -> Any:
    from nml_jax.data import sources
    from nml_jax.prepare import image_folder

    src, out = folder / "src", folder / f"out{resize}"
    for i, content in enumerate(files):
        path = src / "train" / str(i % 2) / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    image_folder.build_image_folder(src, out, resize=resize)
    data = SimpleNamespace(source="directory", path=str(out), name="", classes=(), num_classes=None)
    return sources.load(data, "train")


def make_bare(files: list[bytes], batches: int, threads: int) -> Run:
    import cv2
    import simplejpeg

    rng = np.random.default_rng(0)
    boxes = [(*draw_box(rng.uniform, WIDTH, HEIGHT), rng.random() < 0.5) for _ in range(batches * BATCH)]

    def work(start: int) -> None:
        for i in range(start, start + BATCH):
            left, top, w, h, flip = boxes[i]
            image = simplejpeg.decode_jpeg(files[i % len(files)], "RGB")
            image = cv2.resize(image[top : top + h, left : left + w], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
            if flip:
                cv2.flip(image, 1)

    def run() -> Round:
        with ThreadPoolExecutor(threads) as pool:
            return measure(lambda: list(pool.map(work, range(0, batches * BATCH, BATCH))))

    return run


def draw_box(uniform: Callable[[float, float], float], width: int, height: int) -> tuple[int, int, int, int]:
    """Draw left, top, width and height of a random-resized crop like torchvision."""
    for _ in range(10):
        area = width * height * uniform(*SCALE)
        aspect = math.exp(uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(uniform(0, width - w + 1)), int(uniform(0, height - h + 1)), w, h
    return 0, 0, width, height


def make_augment(*, crop: str = "random_resized", antialias: bool = False) -> Any:
    return SimpleNamespace(
        crop=crop, scale=SCALE, ratio=RATIO, flip=0.5 if crop == "random_resized" else 0.0, randaugment=0, erase=0.0,
        repeats=1, interpolation="bilinear", antialias=antialias,
    )  # fmt: skip


def make_piped(source: Any, augment: Any, batches: int, threads: int, size: int = SIZE) -> Run:
    from nml_jax.data.stream import pipeline

    def run() -> Round:
        how = {"image_size": size, "mean": MEAN, "std": STD, "batch": BATCH, "threads": threads}
        others = threading.active_count()
        stream = pipeline.train(source, augment=augment, seed=0, **how)
        spent = measure_steady(stream, 2 * max(4, threads), batches)
        stream.close()
        while threading.active_count() > others:  # unfinished batches must not slow the next side
            time.sleep(0.001)
        return spent

    return run


def measure_steady(stream: Any, warm: int, batches: int) -> Round:
    """Measure `batches` batches after `warm` others, so that as many are in flight at the start as at the end."""
    for _ in range(warm):
        next(stream)
    return measure(lambda: deque(islice(stream, batches), maxlen=0))


def serve_opponent(folder: Path, batches: int, workers: int) -> None:
    """Answer `Opponent`: nothing -> seconds of a round over the files of the folder."""
    import random

    import torch  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader, Dataset  # pyright: ignore[reportMissingImports]

    class Photos(Dataset):
        def __init__(self):
            self.paths = [str(path) for path in sorted(folder.rglob("*.jpg"))]

        def __len__(self) -> int:
            return 2 * (batches + 4 * workers) * BATCH

        def __getitem__(self, i: int) -> tuple[Any, int]:
            path = self.paths[i % len(self.paths)]
            with open(path, "rb") as f:
                image = Image.open(f).convert("RGB")
            left, top, w, h = draw_box(random.uniform, *image.size)
            image = image.crop((left, top, left + w, top + h)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            if random.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
            return pixels.to(torch.float32).div(255), i % 2

    loader = DataLoader(Photos(), BATCH, shuffle=True, num_workers=workers, drop_last=True)

    def seconds(_: None) -> float:
        return measure_steady(iter(loader), 4 * workers, batches).wall

    serve(f"{torch.__version__}, Pillow {PIL.__version__}", seconds)


def run_rounds(runs: dict[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Run all in turn in every round, after one round to warm up. Return each run's results."""
    given = [{name: run() for name, run in runs.items()} for _ in range(repeats + 1)]
    return {name: [one[name] for one in given[1:]] for name in runs}


def compare(spent: dict[str, list[Round]], images: int, cores: int) -> dict[str, Any]:
    """Print and return images per second and core, CPU time, and their ratios to the opponents'."""
    to = [name for name in ("bare", "torch", "pipeline") if name in spent]
    titles = [*(f"of {name}" for name in to), "CPU µs/image", *(["CPU of bare"] if "bare" in spent else [])]
    print(f"\n{'images/s/core':<22} {'median':>7} {'min':>6} {'max':>6}", *(f"{title:>12}" for title in titles))
    results = {}
    for run, each in spent.items():
        rates = sorted(images / cores / one.wall for one in each)
        of = {f"of_{name}": ratio([one.wall for one in spent[name]], [one.wall for one in each]) for name in to}
        cpu = [one.cpu for one in each if one.cpu is not None]
        cost = {"cpu_us_per_image": statistics.median(cpu) / images * 1e6} if cpu else {}
        if cpu and "bare" in spent:
            cost["cpu_of_bare"] = ratio([one.cpu or 0.0 for one in spent["bare"]], cpu)
        rate = statistics.median(rates)
        figures = (f"{x:12.3f}" if x < 100 else f"{x:12.0f}" for x in (*of.values(), *cost.values()))
        print(f"{run:<22} {rate:7.0f} {rates[0]:6.0f} {rates[-1]:6.0f}", *figures)
        seconds = {"seconds": [one.wall for one in each], "cpu_seconds": cpu, "images_per_second_and_core": rate}
        results[run] = seconds | of | cost
    return results


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Return the median over rounds of their time divided by ours."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def measure_overlay(repeats: int) -> dict[str, float]:
    """Measure the cost of the noise overlay alone, in nanoseconds per image of an epoch over 1.28 million records."""
    from nml_jax import corrupt_labels
    from nml_jax.data.sources.noisy import NoisyLabels
    from nml_jax.data.sources.source import Arrays

    labels = np.random.default_rng(0).integers(0, 1000, 1_281_167).astype(np.int32)
    images = [np.zeros((1, 1, 3), np.uint8)] * len(labels)
    clean = Arrays(images, labels, num_classes=1000, class_names=None, fingerprint="")
    laid = []
    for _ in range(repeats):
        start = time.perf_counter()
        noisy = NoisyLabels(clean, corrupt_labels(labels, num_classes=1000, rate=0.3, seed=0))
        laid.append((time.perf_counter() - start) / len(labels) * 1e9)
    ids = np.random.default_rng(1).integers(0, len(labels), 20_000).tolist()

    def make_look_up(source: Any) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            for i in ids:
                source[i]
            return time.perf_counter() - start

        return run

    seconds = run_rounds({"clean": make_look_up(clean), "noisy": make_look_up(noisy)}, repeats)
    extra = [(b - a) / len(ids) * 1e9 for a, b in zip(seconds["clean"], seconds["noisy"], strict=True)]
    return {"laying": statistics.median(laid), "look_up": statistics.median(extra)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and rounds, to see that it runs")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="number of cores, and of threads or workers")
    parser.add_argument("--photos", type=Path, help="use a folder of real photos instead")
    parser.add_argument("--torch-python", help="a Python that has torch and Pillow")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve_opponent(Path(args.serve[0]), int(args.serve[1]), int(args.serve[2]))
    import cv2
    import simplejpeg

    import nml_jax
    from nml_jax.data import sources

    cv2.setNumThreads(0)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    cores, (batches, repeats, count) = args.cores, (2, 1, 64) if args.quick else (30, args.repeats, 256)
    files = read_photos(args.photos, count) if args.photos else draw_photos(count)
    versions = {"grain": importlib.metadata.version("grain")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, cached = (prepare(files, folder, resize) for resize in (None, SIDE))
        sampled, antialiased = make_augment(), make_augment(antialias=True)
        runs: dict[str, Run] = {
            "bare": make_bare(files, batches, cores),
            "pipeline": make_piped(source, sampled, batches, cores),
            "antialiased": make_piped(source, antialiased, batches, cores),
            f"cache {SIDE}": make_piped(cached, sampled, batches, cores),
            f"cache {SIDE} antialiased": make_piped(cached, antialiased, batches, cores),
        }
        if args.torch_python:
            where = str(folder / "src"), str(batches), str(cores)
            opponent = Opponent(args.torch_python, __file__, *where, needs="torch and Pillow")
            runs["torch"], versions["torch"] = lambda: Round(opponent.ask(), None), opponent.version
        photos = f"{len(files)} {'real' if args.photos else 'of noise'}, {np.mean([*map(len, files)]) / 1e3:.0f} kB"
        sizes = {"photos": photos, "images_per_round": batches * BATCH, "repeats": repeats}
        head = print_head(nml_jax, np, cv2, PIL, simplejpeg, versions=versions, **sizes)
        results: dict[str, Any] = {"photos": compare(run_rounds(runs, repeats), batches * BATCH, cores)}
        for name, bar in BARS.items():
            reached = results["photos"]["pipeline"].get(f"of_{name}")
            if reached is not None:
                print(f"{reached:.2f} of {name}, must be at least {bar}: {'met' if reached >= bar else 'MISSED'}")
        print(f"{results['photos']['pipeline']['cpu_of_bare']:.2f} of bare by the CPU time of an image")
        threads = {f"{n} threads": make_piped(source, sampled, batches, n) for n in (0, 1, 2, 4, 8)}
        results["threads"] = compare(run_rounds(threads, repeats), batches * BATCH, cores)

    cost = measure_overlay(repeats)
    image_ns = 1e9 / results["photos"]["pipeline"]["images_per_second_and_core"]
    share = sum(cost.values()) / image_ns
    print(f"\noverlay by itself: laying {cost['laying']:.0f} ns, look-up {cost['look_up']:.0f} ns per image")
    print(f"that is {share:.3%} of the {image_ns / 1000:.0f} µs a core spends on an image")
    results["overlay"] = {"laying_ns": cost["laying"], "look_up_ns": cost["look_up"], "share": share}

    digits = sources.load(SimpleNamespace(source="digits", path="", name="", classes=(), num_classes=None), "train")
    small = {f"{n} threads": make_piped(digits, make_augment(crop="none"), 100, n, size=8) for n in (0, 1, 2, 4, 8)}
    print(f"\n{'digits':<12} {'µs/image':>9} {'batches/s':>10}")
    results["digits"] = {}
    for run, each in run_rounds(small, repeats).items():
        times = [one.wall for one in each]
        median = statistics.median(times)
        print(f"{run:<12} {median / 100 / BATCH * 1e6:9.1f} {100 / median:10.0f}")
        results["digits"][run] = {"seconds": times, "us_per_image": median / 100 / BATCH * 1e6}
    if args.write:
        write_results(RESULTS, head, results)


if __name__ == "__main__":
    main()
