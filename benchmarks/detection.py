"""Measure the parts of detectors: suppression, ROIAlign, a training step, the pipeline, and what devices exchange.

    python benchmarks/detection.py [PART ...] [--repeats=7] [--torch-python=PATH] [--write]

Times are CPU seconds of a whole process, all its threads, which on a shared machine is the steadier measure; medians
over rounds in which the sides take turns.

- nms: 2,000 boxes in 250 heaps, against a greedy loop in NumPy that gives the same. Bar: 15 ms.
- regions: ROIAlign of 512 regions of a pyramid of 256 channels of 800 × 1344 pixels, 2 × 2 samples, with the gradient;
  its temporaries are the compiler's figure. Bar: 1.3 GB.
- step: a training step of the tiny RetinaNet twin of the tests, 16 pictures of 64 × 96 and AdamW, against torchvision's
  in eager PyTorch with equal weights, which runs with the Python of --torch-python; with the parts of both.
- pipeline: photos of 500 × 375 with seven polygons on a canvas of 800 × 1344: boxes alone, masks within boxes
  (mask), masks on the canvas (solo). Bar: 0.5 of the images per second without masks.
- collectives: the training step of each system of configs/detect_digits.py on eight simulated devices: no all-gather,
  nothing in a loop.
- memory, only by name: launch/aot.py for RetinaNet and Mask R-CNN at full size, landscape canvas, two images a chip of
  a v5e:2x2. It needs the extra `tpu` and takes tens of minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Opponent, merge_results, print_head, serve

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "detection.json"
sys.path.insert(0, str(ROOT))
CANVAS, WIDTH = (800, 1344), 256
BOXES, HEAPS, REGIONS = 2000, 250, 512
COPIES, STEPS = 8, 5  # of the twins' two pictures in a batch; steps in a round
PHOTOS, POLYGONS, BATCH = 32, 7, 16
TPU = ("v5e:2x2", 8)  # slice, and a batch of two images a chip
SYSTEMS = ("retina", "faster", "mask", "solo")


def count_seconds(work: Callable[[], Any]) -> float:
    """Return the CPU seconds of this process while it works."""
    start = time.process_time()
    work()
    return time.process_time() - start


def draw_boxes(count: int, heaps: int) -> np.ndarray:
    """Draw boxes of 16 to 300 pixels in heaps on the canvas, float32 [count, 4]."""
    rng = np.random.default_rng(0)
    centre = rng.uniform((100, 100), (CANVAS[1] - 100, CANVAS[0] - 100), (heaps, 2)).repeat(count // heaps, 0)
    side = rng.uniform(16, 300, (heaps, 2)).repeat(count // heaps, 0)
    centre, side = centre + rng.normal(size=(count, 2)) * 5, side * rng.uniform(0.8, 1.25, (count, 2))
    boxes = np.concatenate([centre - side / 2, centre + side / 2], 1)[rng.permutation(count)]
    return boxes.clip(0, [CANVAS[1], CANVAS[0]] * 2).astype(np.float32)


def suppress_greedily(boxes: np.ndarray, threshold: float) -> np.ndarray:
    """Return which boxes a greedy loop in NumPy keeps, bool [N]."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    alive, keep = np.ones(len(boxes), bool), np.zeros(len(boxes), bool)
    for i, box in enumerate(boxes):
        if alive[i]:
            keep[i] = True
            side = np.minimum(box[2:], boxes[i:, 2:]) - np.maximum(box[:2], boxes[i:, :2])
            inside = side.clip(0).prod(1)
            alive[i:] &= ~(inside > threshold * (area[i] + area[i:] - inside))
    return keep


def measure_nms(args: argparse.Namespace) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from nml_jax import boxes

    found = draw_boxes(BOXES, HEAPS)
    ours = jax.jit(lambda x: boxes.suppress(x, jnp.ones(BOXES, bool), 0.7))
    keep = np.asarray(ours(found))
    np.testing.assert_array_equal(keep, suppress_greedily(found, 0.7))
    seconds = [(count_seconds(lambda: ours(found).block_until_ready()),
                count_seconds(lambda: suppress_greedily(found, 0.7))) for _ in range(args.repeats)]  # fmt: skip
    a, b = map(statistics.median, zip(*seconds, strict=True))
    print(f"nms: {1e3 * a:.1f} ms of CPU for {BOXES:,} boxes, {keep.sum()} kept (bar 15); loop in NumPy {1e3 * b:.1f}")
    return {"kept": int(keep.sum()), "seconds": seconds}


def measure_regions(args: argparse.Namespace) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from nml_jax import boxes

    strides, rng = (4, 8, 16, 32), np.random.default_rng(0)
    maps = [jnp.asarray(rng.normal(size=(CANVAS[0] // s, CANVAS[1] // s, WIDTH)), jnp.float32) for s in strides]
    regions = jnp.asarray(draw_boxes(REGIONS, REGIONS // 4))
    level = boxes.find_level(regions, len(strides), 4, 1e-6, 0.0)
    weights = jnp.asarray(rng.normal(size=(REGIONS, 7, 7, WIDTH)), jnp.float32)

    def pool(maps: Any) -> Any:
        return (boxes.pool_regions(maps, strides, regions, level, 7) * weights).sum()

    compiled = jax.jit(jax.grad(pool)).lower(maps).compile()
    analysis: Any = compiled.memory_analysis()
    size = analysis.temp_size_in_bytes
    seconds = [count_seconds(lambda: jax.block_until_ready(compiled(maps))) for _ in range(args.repeats)]
    print(f"regions: {size / 1e9:.2f} GB of temporaries with the gradient (bar 1.3), "
          f"{statistics.median(seconds):.2f} s of CPU")  # fmt: skip
    return {"temporaries": size, "seconds": seconds}


def make_batch() -> dict[str, np.ndarray]:
    from tests.models.detection import twins

    return {name: np.concatenate([x] * COPIES) for name, x in twins.BATCH.items()}


def build_parts() -> tuple[dict[str, Callable[[], Any]], int]:
    """Return our forward pass to the loss, the same with the gradient, and a whole step; and the parameters."""
    import jax
    import optax

    from nml_jax import runtime
    from nml_jax.objectives import detection as objectives
    from nml_jax.training import loop
    from nml_jax.training.window import put_signals
    from tests.models.detection import ours

    model, config = ours.build("retina")
    mesh, loss = runtime.make_mesh(), partial(objectives.make(config, "retina").loss, model)
    program = loop.assemble(model, loss, optax.adamw(1e-5), lambda _: 1e-5, 0.0, mesh)
    params, state = ours.fill(model)
    kept = [program.adopt(jax.tree.map(jax.numpy.asarray, (params, state)), jax.random.key(0))]
    batch, signals = (
        runtime.put_batch(mesh)({k: x for k, x in make_batch().items() if k in model.spec}),
        put_signals(mesh),
    )
    total = jax.jit(lambda params: loss(params, state, batch, jax.random.key(0))[0])
    gradient = jax.jit(jax.grad(lambda params: loss(params, state, batch, jax.random.key(0))[0]))

    def step() -> None:
        for _ in range(STEPS):
            kept[0], metrics = program.step(kept[0], batch, signals)
        float(metrics["loss"][0])

    def repeat(function: Callable[[Any], Any]) -> Callable[[], object]:
        return lambda: [jax.block_until_ready(function(params)) for _ in range(STEPS)]

    parts = {"forward": repeat(total), "gradient": repeat(gradient), "step": step}
    return parts, sum(x.size for x in jax.tree.leaves(params))


def serve_torch() -> None:
    """Answer `Opponent`: anything -> CPU seconds a step of the forward pass, with the gradient, of all; parameters."""
    import torch  # pyright: ignore[reportMissingImports]

    from tests.models.detection import torch_twins

    batch = make_batch()
    model = torch_twins.to_train(torch_twins.fill(torch_twins.build_retina()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    pictures, targets = torch_twins.pictures(batch), torch_twins.targets(0, batch)
    count = sum(p.numel() for p in model.parameters())

    def answer(_: Any) -> Any:
        total = np.zeros(3)
        for _ in range(STEPS):
            begun = time.process_time()
            loss: Any = sum(model(pictures, targets).values())
            forward = time.process_time()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            backward = time.process_time()
            optimizer.step()
            total += (forward - begun, backward - begun, time.process_time() - begun)
        return [*(total / STEPS), count]

    serve(f"{torch.__version__}, {torch.get_num_threads()} threads", answer)


def measure_step(args: argparse.Namespace) -> dict[str, Any]:
    opponent = Opponent(args.torch_python, __file__, needs="torch and torchvision")
    parts, parameters = build_parts()
    rounds = []
    for _ in range(args.repeats + 1):  # the first compiles and warms up
        own = [count_seconds(run) / STEPS for run in parts.values()]
        *theirs, count = opponent.ask()
        rounds.append((own, theirs))
    if count != parameters:
        sys.exit(f"step: {parameters:,} parameters against {count:,}: not the same network")
    ours, theirs = (np.median([r[side] for r in rounds[1:]], 0) for side in (0, 1))
    ratio = statistics.median(b[-1] / a[-1] for a, b in rounds[1:])
    print(f"step: {1e3 * ours[2]:.0f} ms of CPU, eager PyTorch {1e3 * theirs[2]:.0f}: {ratio:.2f} times its speed")
    for name, of in (("ours", ours), ("torch", theirs)):
        print(
            f"  {name}: forward {1e3 * of[0]:.0f}, with gradient {1e3 * of[1]:.0f}, with optimiser {1e3 * of[2]:.0f} ms"
        )
    return {"torch": opponent.version, "parameters": parameters, "ratio": ratio, "rounds": rounds[1:]}


def prepare_photos(folder: Path) -> Any:
    """Prepare photos with polygons in COCO's format; return the split."""
    from input import HEIGHT, draw_photos
    from input import WIDTH as ACROSS

    from nml_jax.data.sources import annotated
    from nml_jax.prepare.coco.build import build_coco_folder

    rng, images, notes = np.random.default_rng(0), [], []
    (folder / "src" / "images").mkdir(parents=True)
    for i, photo in enumerate(draw_photos(PHOTOS)):
        (folder / "src" / "images" / f"{i}.jpg").write_bytes(photo)
        images.append({"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": ACROSS})
        for _ in range(POLYGONS):
            angle, radius = np.linspace(0, 6, 24), rng.uniform(15, 90) * rng.uniform(0.6, 1.0, 24)
            x, y = rng.uniform(100, ACROSS - 100), rng.uniform(100, HEIGHT - 100)
            polygon = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1).clip(0, (ACROSS, HEIGHT))
            low, high = polygon.min(0), polygon.max(0)
            notes.append({"id": len(notes) + 1, "image_id": i, "category_id": 1, "iscrowd": 0, "area": 1000.0,
                          "bbox": [*low, *(high - low)], "segmentation": [polygon.reshape(-1).tolist()]})  # fmt: skip
    tree = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "src" / "instances.json").write_text(json.dumps(tree))
    build_coco_folder(folder / "src", folder / "out")
    return annotated.load(str(folder / "out"), "train")


def measure_pipeline(args: argparse.Namespace) -> dict[str, Any]:
    from nml_jax.data.images.scenes import SceneTransform
    from nml_jax.data.stream import pipeline
    from nml_jax.data.stream.reading import SceneReading

    kinds, rounds = {"boxes": {}, "mask": {"crop": 112}, "solo": {"stride": 4}}, []
    with tempfile.TemporaryDirectory() as folder:
        source = prepare_photos(Path(folder))

        def read(**how: Any) -> None:
            transform = SceneTransform(CANVAS, CANVAS[0], 1333, flip=0.5, **how)
            reading = SceneReading(transform, threads=2, prefetch=2)
            batches = pipeline.train(source, reading, batch=BATCH, seed=0)
            for _ in range(PHOTOS // BATCH):
                next(batches)
            batches.close()

        for _ in range(args.repeats + 1):
            rounds.append([count_seconds(partial(read, **how)) for how in kinds.values()])
    share = {name: statistics.median(r[0] / r[i] for r in rounds[1:]) for i, name in enumerate(kinds)}
    plain = 1e3 * statistics.median(r[0] for r in rounds[1:]) / PHOTOS
    print(f"pipeline: at most {plain:.1f} ms of CPU an image with boxes; {share['mask']:.2f} of the speed with masks "
          f"in boxes, {share['solo']:.2f} on the canvas (bar 0.5)")  # fmt: skip
    return {"kinds": [*kinds], "share": share, "seconds": rounds[1:]}


def list_collectives(system: str) -> list[dict[str, Any]]:
    """Compile the step of a system on this process's devices and list what they exchange."""
    from configs import detect_digits
    from launch import hlo
    from nml_jax import runtime
    from nml_jax.stages import detect

    config = detect_digits.get_config()
    with config.unlocked():
        config.detect.systems = (system,)
    mesh = runtime.make_mesh()
    text = detect.lower(config, mesh, 1024, 10)[2].compile().as_text()
    return [{"kind": c.kind, "times": c.times, "group": c.group, "bytes": c.bytes}
            for c in hlo.find_collectives(text, mesh.size)]  # fmt: skip


def measure_collectives(args: argparse.Namespace) -> dict[str, Any]:
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    out = {}
    for system in SYSTEMS:
        done = subprocess.run(
            [sys.executable, __file__, f"--list={system}"], env=env, stdout=subprocess.PIPE, check=True
        )
        out[system] = found = json.loads(done.stdout.splitlines()[-1])
        kinds = {kind: sum(c["kind"] == kind for c in found) for kind in sorted({c["kind"] for c in found})}
        looped = sum(c["times"] != 1 for c in found)
        print(f"collectives of {system}: {kinds}, {looped} in loops, {sum(c['bytes'] for c in found):,} bytes")
    return out


def measure_memory(args: argparse.Namespace) -> dict[str, Any]:
    topology, batch = TPU
    out = {}
    for system in ("retina", "mask"):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "result.json"
            command = [sys.executable, str(ROOT / "launch" / "aot.py"), f"--topology={topology}", f"--json={file}",
                       f"--config={ROOT / 'configs' / 'detect_coco.py'}:{system}", f"--config.detect.batch={batch}",
                       "--effort=-1"]  # fmt: skip
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
            out[system] = json.loads(file.read_text()) if file.exists() else {"error": done.stderr.strip()}
        shown = f"{out[system]['memory']['total'] / 2**30:.2f} GiB a chip" if "memory" in out[system] else out[system]
        print(f"memory of {system}, {batch} images on {topology}: {shown}")
    return out


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "nms": measure_nms,
    "regions": measure_regions,
    "step": measure_step,
    "pipeline": measure_pipeline,
    "collectives": measure_collectives,
    "memory": measure_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all but memory")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch and torchvision")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--list", choices=SYSTEMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve_torch()
    if args.list:
        return print(json.dumps(list_collectives(args.list)))
    if unknown := [name for name in args.parts if name not in PARTS]:
        parser.error(f"no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    import jax
    import jaxlib

    import nml_jax

    head = print_head(nml_jax, jax, jaxlib, np, repeats=args.repeats)
    results = {name: PARTS[name](args) for name in args.parts or [name for name in PARTS if name != "memory"]}
    if args.write:
        merge_results(RESULTS, head, results)


if __name__ == "__main__":
    main()
