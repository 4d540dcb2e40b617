"""Measure the parts of accelerator.py that are ours; it is a worker of that script."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from accelerator_worker import FULL, TINY, Parts, Row, parse, serve, time_calls

sys.path.insert(0, str(Path(__file__).parent.parent))
import nml_jax
from configs import common
from launch.aot import read_memory
from launch.chips import find_peak
from nml_jax import runtime, settings, spectrum
from nml_jax.objectives import nmtune, terms
from nml_jax.objectives.contrastive import info_nce
from nml_jax.stages.dry_run import make_batch_shapes
from nml_jax.training import loop
from nml_jax.training.window import put_signals
from nml_jax.tuning import descent, spread

GIB = 2**30


def make_config(**values: Any) -> Any:
    config = common.get_config()
    config.update_from_flattened_dict(values)
    return next(iter(settings.expand_sweep(config).values()))


def make_step_config(name: str, batch: int, tiny: bool) -> Any:
    """Return the config of a training step; PyTorch's (accelerator_torch.py) is the same."""
    sizes = (TINY if tiny else FULL)[name]
    values: dict[str, Any] = {
        "data.image_size": sizes.image, "train.batch": batch, "train.ema": 0.0, "optimizer.name": "adamw",
        "model.dtype": "bfloat16",
    }  # fmt: skip
    tower = {"dim": sizes.dim, "depth": sizes.depth, "heads": sizes.heads} if tiny and name != "resnet50" else {}
    if name == "resnet50":
        values |= {"model.name": name, "model.width": sizes.dim} | ({"model.blocks": (1,)} if tiny else {})
    elif name == "vit_b16":
        values |= {"model.name": "vit_b", "model.patch": 16}
    else:
        values |= {"model.name": "clip_vitb16", "objective.name": "clip"}
        text = {"context": sizes.context, "vocab": sizes.vocabulary, "width": sizes.text_dim, "depth": sizes.text_depth,
                "heads": sizes.text_heads}  # fmt: skip
        values |= {f"model.text_{key}": x for key, x in text.items()} | {"model.embed_dim": sizes.embedding}
    values |= {f"model.{key}": x for key, x in tower.items()}
    return make_config(**values)


def draw_batch(config: Any, classes: int) -> dict[str, np.ndarray]:
    rng, out = np.random.default_rng(0), {}
    limits = {"image": 256, "label": max(classes, 1), "text": config.model.text_vocab}
    for name, x in make_batch_shapes(config).items():
        out[name] = rng.integers(0, limits.get(name, 2), x.shape).astype(x.dtype)
    return out | {"mask": np.ones(config.train.batch, np.float32)}


def measure_steps(name: str) -> Callable[[bool], Iterator[Row]]:
    """Measure the compiled step of training/loop.py, as in any run."""

    def measure(tiny: bool) -> Iterator[Row]:
        sizes = (TINY if tiny else FULL)[name]
        mesh = runtime.make_mesh()
        for batch in sizes.batches:
            case = f"batch {batch * mesh.size}" if mesh.size > 1 else f"batch {batch}"
            config = make_step_config(name, batch * mesh.size, tiny)
            program = loop.build(config, loop.Plan(10_000, 100.0), mesh, num_classes=sizes.classes)
            state = program.init(jax.random.key(0))
            placed, signals = runtime.put_batch(mesh)(draw_batch(config, sizes.classes)), put_signals(mesh)
            lowered = program.step.lower(state, placed, signals)  # type: ignore[attr-defined]
            flop = (lowered.cost_analysis() or {}).get("flops")
            begun = time.perf_counter()
            try:
                compiled = lowered.compile()
                compiling = time.perf_counter() - begun

                def step(batch: Any = placed, signals: Any = signals, compiled: Any = compiled) -> Any:
                    nonlocal state
                    state, metrics = compiled(state, batch, signals)
                    return metrics

                seconds = time_calls(step, jax.block_until_ready, tiny)
            except jax.errors.JaxRuntimeError as e:
                if "RESOURCE_EXHAUSTED" not in str(e):
                    raise
                yield {"case": case, "note": "does not fit into memory"}
                continue
            peak = find_peak(jax.devices()[0].device_kind)
            yield {
                "case": case,
                "examples_per_s": len(placed["image"]) / seconds,
                "ms": 1e3 * seconds,
                "mfu": flop / seconds / (peak * mesh.size) if flop and peak else None,
                "flop": flop,
                "memory": read_memory(compiled)["total"] / GIB,
                "compile_seconds": compiling,
                "parameters": sum(x.size for x in jax.tree.leaves(program.shapes.params)),
            }
            del state, placed, compiled, program

    return measure


def measure_loop(tiny: bool) -> Iterator[Row]:
    """Measure the loop around a step that only counts, beside the same step alone (overhead.py)."""
    import overhead

    if tiny:
        overhead.TREE |= {"model.name": "resnet18", "model.width": 4, "model.blocks": (1,), "model.stem": "small"}
    steps = 8 if tiny else 400
    pairs = [(overhead.time_loop(steps), overhead.time_bare_calls(steps)) for _ in range(1 if tiny else 3)]
    for case, of in (("loop, dispatch included", 0), ("dispatch alone", 1)):
        yield {"case": case, "ms": statistics.median(pair[of] for pair in pairs)}
    yield {"case": "loop outside the step", "ms": statistics.median(whole - bare for whole, bare in pairs)}


HEADS = 64


def measure_heads(tiny: bool) -> Iterator[Row]:
    """Measure steps of heads on features in memory: one head, and a sweep of 64 in one program."""
    rows, dim, classes, batch, epochs = (64, 8, 3, 16, 1) if tiny else (20_000, 768, 100, 64, 1)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows).astype(np.int32)
    features = rng.normal(size=(rows, 1, dim)).astype(np.float32)
    bank = jax.device_put(descent.TrainingSet(features, labels, np.ones(rows, np.float32)))
    steps = epochs * -(-rows // batch)
    for method in ("linear", "nmtune") if tiny else ("linear", "mlp", "nmtune"):
        active, numbers = terms.split("nmtune", nmtune.PRESETS["paper"]) if method == "nmtune" else (None, {})
        spec = descent.Spec(descent.Form(method != "linear"), active, classes, batch, standardize=True)
        settings = [descent.Setting(np.arange(rows), 10 ** -(1 + i % 8 / 2), 1e-4, i // 8, numbers)
                    for i in range(HEADS)]  # fmt: skip
        for several in (1, HEADS):
            mapped = several > 1
            train = lambda: spread.train(spec, bank, settings[:several], rows, epochs=epochs, mapped=mapped)  # noqa: B023, E731
            begun = time.perf_counter()
            train()
            first = time.perf_counter() - begun
            times = []
            for _ in range(1 if tiny else 2):
                begun = time.perf_counter()
                train()
                times.append(time.perf_counter() - begun)
            seconds = min(times)
            yield {
                "case": f"{method}, {several} head{'s' * mapped}",
                "ms": 1e3 * seconds / steps,
                "seconds": seconds,
                "heads_per_s": several / seconds,
                "compile_seconds": max(first - seconds, 0.0),
            }


def measure_spectra(tiny: bool) -> Iterator[Row]:
    """Measure singular values of features that are drawn on the devices, and stay there but for D × D."""
    mesh = runtime.make_mesh()
    n, d = (1_000, 16) if tiny else (1_281_167, 2048)
    n -= n % mesh.size
    draw = jax.jit(
        lambda key: jax.random.normal(key, (n, d), jnp.float32),
        out_shardings=jax.NamedSharding(mesh, runtime.BATCH_SPEC),
    )
    F = jax.block_until_ready(draw(jax.random.key(0)))
    for mode, preset in spectrum.PRESETS.items():
        times, s = [], np.ones(1)
        for _ in range(2):  # the first compiles
            begun = time.perf_counter()
            s = spectrum.singular_values(F, **preset)
            times.append(time.perf_counter() - begun)
        yield {
            "case": f"{n:,} × {d}, {mode}",
            "seconds": times[1],
            "tflop_per_s": 2 * n * d**2 / times[1] / 1e12,
            "compile_seconds": max(times[0] - times[1], 0.0),
            "sve": float(spectrum.sve(s)),
        }


def measure_contrastive(tiny: bool) -> Iterator[Row]:
    """Measure value and gradient of the CLIP loss on one device, until memory or time is up."""
    for chunk in (0, 8 if tiny else 256):
        n, form = (32 if tiny else 16_384), f"chunk {chunk}" if chunk else "plain"
        while True:
            x, y = jax.random.normal(jax.random.key(0), (2, n, 512))
            gradient = jax.jit(
                jax.value_and_grad(lambda *args: info_nce(*args, chunk=chunk), (0, 1, 2), has_aux=True)  # noqa: B023
            )
            args = (x / 22, y / 22, jnp.float32(10))
            try:
                compiled = gradient.lower(*args).compile()
                seconds = time_calls(lambda: compiled(*args), jax.block_until_ready, tiny, 1.0)  # noqa: B023
            except jax.errors.JaxRuntimeError as e:
                if "RESOURCE_EXHAUSTED" not in str(e):
                    raise
                yield {"case": f"{n:,} pairs, {form}", "note": "does not fit into memory"}
                break
            flop = (6 + 2 * bool(chunk)) * n**2 * 512
            yield {
                "case": f"{n:,} pairs, {form}",
                "seconds": seconds,
                "tflop_per_s": flop / seconds / 1e12,
                "memory": read_memory(compiled)["total"] / GIB,
            }
            if tiny or seconds > 0.5:
                break
            n *= 2


def measure_extraction(tiny: bool) -> Iterator[Row]:
    """Measure JPEGs to features: the stage's own pipeline and encoder, together and each alone."""
    from input import draw_photos

    from nml_jax.assembly import encoder, streams
    from nml_jax.assembly.encode import compile_encoder, encode_split
    from nml_jax.data.sources.source import in_memory
    from nml_jax.tasks.classification import Test

    mesh = runtime.make_mesh()
    batch, photos, count = (8, 2, 16) if tiny else (512, 64, 12_288)
    batch *= mesh.size
    count = max(count, 2 * batch)
    config = make_step_config("vit_b16", batch, tiny)
    with config.unlocked():
        config.extract.batch = batch
        config.runtime.threads = 2 if tiny else len(os.sched_getaffinity(0))
    files = draw_photos(photos)
    labels = np.arange(count, dtype=np.int32) % 2
    source = in_memory([files[i % photos] for i in range(count)], labels, num_classes=2, name="photos")
    model = encoder.build(config, num_classes=2)
    params, model_state = runtime.to_mesh(jax.device_get(model.init(jax.random.key(0), model.spec)), mesh)
    frozen = encoder.Encoder(model, params, model_state, 0, None, "")
    encode, test = compile_encoder(model, ("features",), mesh), Test("photos", "id", source)

    def all_of_it() -> int:
        return sum(len(block["id"]) for block in encode_split(config, frozen, encode, mesh, test, None))

    def pipeline() -> int:
        return sum(len(block["id"]) for block in streams.read_records(config, mesh, model, source, batch=batch))

    side = config.data.image_size
    images = runtime.put_batch(mesh)({"image": np.zeros((batch, side, side, 3), np.uint8)})
    seconds = time_calls(lambda: encode(params, model_state, images), jax.block_until_ready, tiny, 2.0)
    yield {"case": "encoder alone", "examples_per_s": batch / seconds, "ms": 1e3 * seconds}
    for case, run in (("JPEG to features", all_of_it), ("input pipeline alone", pipeline)):
        begun = time.perf_counter()
        done = run()
        seconds = time.perf_counter() - begun
        yield {"case": case, "examples_per_s": done / seconds, "seconds": seconds}


PARTS: Parts = {
    "resnet50": measure_steps("resnet50"),
    "vit_b16": measure_steps("vit_b16"),
    "clip_vitb16": measure_steps("clip_vitb16"),
    "loop": measure_loop,
    "heads": measure_heads,
    "spectra": measure_spectra,
    "contrastive": measure_contrastive,
    "extraction": measure_extraction,
}


def main() -> None:
    args, say = parse(__doc__)
    about = {**runtime.describe_environment(), "peak_flop_per_s": find_peak(jax.devices()[0].device_kind)}
    about["nml_jax"] = nml_jax.__version__
    serve(PARTS, about, args.parts.split(","), args.tiny, say)


if __name__ == "__main__":
    main()
