"""Run the largest published encoders once at their full size: time and peak memory of a forward pass.

    python benchmarks/full_size.py [NAME...] [--batch=1] [--write]

Each network runs in a process of its own, with random weights that NumPy draws, and hands out its features. The peak is
the process's resident memory, with Python, JAX, the compiler and the host's copy of the weights.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import print_head, write_results

sys.path.insert(0, str(Path(__file__).parent.parent))
import nml_jax
from configs import common
from nml_jax import models, runtime
from nml_jax.models.variants import MODELS

RESULTS = Path(__file__).parent / "results" / "full_size.json"
NAMES = ("swin_l", "bit_152x2")


def measure(name: str, batch: int) -> dict[str, Any]:
    """Return what one network takes, in this process."""
    config = common.get_config().model
    config.name = name
    size = MODELS[name].input.size
    model = models.build(config, num_classes=0, image_size=size)
    params, state = jax.tree.map(_draw, model.shapes)
    megabytes = sum(x.nbytes for x in jax.tree.leaves(params)) / 2**20
    before = _read_peak()
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)

    def encode(params: Any, state: Any, images: jax.Array) -> jax.Array:
        return model.apply(params, state, {"image": images}, train=False, key=None)[0]["features"]

    start = time.perf_counter()
    compiled = runtime.jit(encode, runtime.make_mesh()).lower(params, state, images).compile()
    seconds, first = time.perf_counter() - start, time.process_time()
    features = np.asarray(compiled(params, state, images))
    assert np.isfinite(features).all()
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "pixels": size,
        "batch": batch,
        "weights_mib": round(megabytes),
        "compile_s": round(seconds, 1),
        "forward_cpu_s": round(time.process_time() - first, 2),
        "features": list(features.shape),
        "spread_of_features": float(features.std()),
        "peak_before_compiling_mib": round(before),
        "peak_mib": round(_read_peak()),
    }


def _draw(like: jax.ShapeDtypeStruct) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(like.shape, np.float32) / 50


def _read_peak() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", default=NAMES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # measure in this process
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.names[0], args.batch)))
        return
    head = print_head(nml_jax, jax, np, batch=args.batch)
    results = {}
    for name in args.names:
        command = [sys.executable, __file__, name, f"--batch={args.batch}", "--one"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, results[name], sep=": ")
    if args.write:
        write_results(RESULTS, head, results)


if __name__ == "__main__":
    main()
