"""Measure the features of published encoders on one core against timm's in PyTorch.

    python benchmarks/published.py [--models efficientnet_b0 ...] [--repeats=3] [--torch-python=PATH] [--write]

Ours is the compiled encoder as the stage extract runs it: uint8 images, normalised on the device, features only.
PyTorch runs timm's network of the same name under inference_mode on normalised images, in both memory formats, in a
process of its own, with the Python of --torch-python (default: this one). The better of the two counts. Both processes
are pinned to the same core and take turns in every round; what is compared is the CPU time per image, the least of all
rounds. Weights are random. The numbers of parameters must agree. Models that are left out keep theirs in the file.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Opponent, import_torch, make_parser, merge_results, pin_to_a_core, print_head, serve

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "published.json"
SIZE, NEEDS = 224, "torch and timm"

# ours: (timm's, images at once, highest ratio of our time to the better of PyTorch's that we accept)
MODELS: dict[str, tuple[str, int, float]] = {
    "efficientnet_b0": ("efficientnet_b0", 8, 1.0),
    "convnext_t": ("convnext_tiny", 4, 1.3),
    "swin_t": ("swin_tiny_patch4_window7_224", 4, 1.2),
    "bit_50x1": ("resnetv2_50x1_bit", 4, 1.3),
    "resnet50": ("resnet50", 8, 1.0),
    "vit_b": ("vit_base_patch16_224", 4, 1.2),
}


def draw_images(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)


class Ours:
    def __init__(self, name: str, batch: int):
        import jax

        sys.path.insert(0, str(ROOT))
        from configs import common
        from nml_jax import models, runtime

        config = common.get_config().model
        config.name = name
        mesh = runtime.make_mesh()
        model = models.build(config, num_classes=0, image_size=SIZE)
        rng = np.random.default_rng(0)
        draw = lambda x: (rng.standard_normal(x.shape, np.float32) / 10) ** 2 + np.float32(0.01)  # noqa: E731
        weights = runtime.to_mesh(jax.tree.map(draw, model.shapes), mesh)
        self.images, self.parameters = draw_images(batch), sum(x.size for x in jax.tree.leaves(weights[0]))
        encode = runtime.jit(
            lambda p, s, x: model.apply(p, s, {"image": x}, train=False, key=None)[0]["features"], mesh
        )
        self.run = lambda: encode(*weights, self.images).block_until_ready()
        start = time.perf_counter()
        self.run()
        self.first = time.perf_counter() - start

    def seconds(self) -> float:
        start = time.process_time()
        self.run()
        return (time.process_time() - start) / len(self.images)


def serve_opponent() -> None:
    """Answer `Opponent`: a name of MODELS -> CPU seconds per image in both memory formats, number of parameters."""
    torch = import_torch()
    import timm  # pyright: ignore[reportMissingImports]

    built: dict[str, Any] = {}

    def answer(name: str) -> tuple[float, float, int]:
        theirs, batch, _ = MODELS[name]
        if name not in built:
            x = torch.from_numpy(draw_images(batch)).permute(0, 3, 1, 2).float() / 255 - 0.5
            built[name] = [
                (timm.create_model(theirs, num_classes=0).eval().to(memory_format=form), x.to(memory_format=form))
                for form in (torch.contiguous_format, torch.channels_last)
            ]
        times = []
        for model, x in built[name]:
            with torch.inference_mode():
                start = time.process_time()
                model(x)
                times.append((time.process_time() - start) / batch)
        return *times, sum(p.numel() for p in built[name][0][0].parameters())

    serve(f"{torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} thread", answer)


def main() -> None:
    parser = make_parser(__doc__, RESULTS, repeats=3, needs=NEEDS)
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    args = parser.parse_args()
    pin_to_a_core()
    if args.serve:
        return serve_opponent()
    import jax
    import jaxlib

    import nml_jax

    opponent = Opponent(args.torch_python, __file__, needs=NEEDS)
    facts = {"images": f"{SIZE} × {SIZE}, float32", "repeats": args.repeats}
    head = print_head(nml_jax, jax, jaxlib, np, versions={"torch": opponent.version}, **facts)
    names = ("ours", "NCHW", "NHWC", "ratio", "accepted", "compile s")
    print(f"\n{'CPU ms an image':<16}", *(f"{name:>9}" for name in names))
    results = {}
    for name in args.models:
        _, batch, accepted = MODELS[name]
        ours, rounds = Ours(name, batch), []
        for _ in range(args.repeats + 1):
            own, (contiguous, last, parameters) = ours.seconds(), opponent.ask(name)
            rounds.append((own, contiguous, last))
        if parameters != ours.parameters:
            sys.exit(f"{name}: {ours.parameters:,} parameters against {parameters:,}: not the same network")
        own, contiguous, last = (min(times) for times in zip(*rounds[1:], strict=True))
        ratio = own / min(contiguous, last)
        figures = (1000 * own, 1000 * contiguous, 1000 * last)
        print(f"{name:<16}", *(f"{ms:9.1f}" for ms in figures), f"{ratio:9.2f} {accepted:9.2f} {ours.first:9.1f}")
        keys = ("seconds", "torch_contiguous", "torch_channels_last", "ratio", "accepted", "first_call")
        results[name] = dict(zip(keys, (own, contiguous, last, ratio, accepted, ours.first), strict=True))
        results[name] |= {"batch": batch, "parameters": parameters, "rounds": rounds[1:]}
    if args.write:
        merge_results(RESULTS, head, results)


if __name__ == "__main__":
    main()
