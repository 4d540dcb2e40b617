"""Measure a whole training step of a small ResNet and a small ViT at 32 px against the same in eager PyTorch.

    python benchmarks/train_step.py [--repeats=7] [--batch=128] [--torch-python=PATH] [--write]

Ours is the compiled step of training/loop.py as in any run: uint8 images, normalised on the device, cross-entropy,
gradient, its norm and a check that it is finite, AdamW with a schedule. The opponent trains a network of equal shapes
(a ResNet with basic blocks, written below; timm's VisionTransformer) with torch.optim.AdamW. It runs in a process of
its own, with the Python of --torch-python (default: this one). The two take turns in every round, and both have all
cores. The numbers of parameters must agree. "products" are the matrix products of one block of the ViT and of its
gradient, each called alone. No order of operations and no fusion can be faster than these.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Opponent, print_head, serve, write_results

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "train_step.json"
CLASSES, SIZE = 10, 32
MODELS: dict[str, dict[str, Any]] = {
    "resnet": {"model.name": "resnet18", "model.stem": "small", "model.width": 32, "model.blocks": (1, 1, 1, 1)},
    "vit": {"model.name": "vit_ti", "model.patch": 4, "model.depth": 6},
}
PRODUCTS = ((192, 576), (192, 192), (192, 768), (768, 192))  # kernels of a block: qkv, proj, fc1, fc2
TOKENS = 1 + (SIZE // 4) ** 2
STEPS = 8  # per round


def draw_images(batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8), rng.integers(0, CLASSES, batch)


class Ours:
    def __init__(self, name: str, batch: int):
        import jax

        sys.path.insert(0, str(ROOT))
        from configs import common
        from nml_jax import runtime
        from nml_jax.training import loop

        config = common.get_config()
        plain = {"data.image_size": SIZE, "train.batch": batch, "train.ema": 0.0, "optimizer.name": "adamw"}
        config.update_from_flattened_dict(MODELS[name] | plain)
        mesh = runtime.make_mesh()
        self.program = loop.build(config, loop.Plan(10_000, 100.0), mesh, num_classes=CLASSES)
        self.state = self.program.init(jax.random.key(0))
        image, label = draw_images(batch)
        rows = {"image": image, "label": label.astype(np.int32), "id": np.arange(batch, dtype=np.int32),
                "mask": np.ones(batch, np.float32)}  # fmt: skip
        self.batch = runtime.put_batch(mesh)(rows)
        self.parameters = sum(x.size for x in jax.tree.leaves(self.state.params))

    def seconds(self) -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            self.state, metrics = self.program.step(self.state, self.batch)
        float(metrics["loss"][0])
        return (time.perf_counter() - start) / STEPS


class Products:
    """The products x·W, g·Wᵀ and xᵀ·g (the latter two of the gradient) for every W of a block, one after another."""

    parameters = sum(k * n for k, n in PRODUCTS)

    def __init__(self, batch: int):
        import jax

        sys.path.insert(0, str(ROOT))
        from nml_jax import runtime

        mesh = runtime.make_mesh()
        product = runtime.jit(lambda a, b: a @ b, mesh)
        by_right = runtime.jit(lambda g, w: g @ w.T, mesh)
        by_left = runtime.jit(lambda x, g: x.T @ g, mesh)
        self.calls = []
        for arrays in draw_operands(batch):
            x, w, g = jax.device_put(arrays)
            self.calls += [(product, x, w), (by_right, g, w), (by_left, x, g)]

    def seconds(self) -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            for call, a, b in self.calls:
                call(a, b).block_until_ready()
        return (time.perf_counter() - start) / STEPS


def draw_operands(batch: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Draw x, W and g of every product."""
    rng, rows = np.random.default_rng(0), batch * TOKENS

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return [(draw(rows, k), draw(k, n), draw(rows, n)) for k, n in PRODUCTS]


def serve_opponent(batch: int) -> None:
    """Answer `Opponent`: a name of MODELS -> seconds per step, number of parameters."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    def conv(a: int, b: int, k: int, stride: int = 1) -> Any:
        return nn.Sequential(nn.Conv2d(a, b, k, stride, k // 2, bias=False), nn.BatchNorm2d(b))

    class Block(nn.Module):
        def __init__(self, a: int, b: int, stride: int):
            super().__init__()
            self.first, self.second = conv(a, b, 3, stride), conv(b, b, 3)
            self.shortcut = conv(a, b, 1, stride) if stride > 1 or a != b else nn.Identity()

        def forward(self, x: Any) -> Any:
            return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))

    class ResNet(nn.Module):
        def __init__(self, width: int, blocks: tuple[int, ...]):
            super().__init__()
            layers, a = [conv(3, width, 3), nn.ReLU()], width
            for i, n in enumerate(blocks):
                for j in range(n):
                    b = width * 2**i
                    layers.append(Block(a, b, 2 if i and not j else 1))
                    a = b
            self.body, self.head = nn.Sequential(*layers), nn.Linear(a, CLASSES)

        def forward(self, x: Any) -> Any:
            return self.head(self.body(x).mean((2, 3)))

    def build_model(name: str) -> Any:
        given = MODELS[name]
        if name == "resnet":
            return ResNet(given["model.width"], given["model.blocks"])
        library = torch.library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"):  # timm's import needs these, even if torchvision lacks its compiled part
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from timm.models.vision_transformer import VisionTransformer  # pyright: ignore[reportMissingImports]

        return VisionTransformer(
            img_size=SIZE, patch_size=given["model.patch"], embed_dim=192, depth=given["model.depth"], num_heads=3,
            num_classes=CLASSES,
        )  # fmt: skip

    array, classes = draw_images(batch)
    image, label = torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(classes)
    mean, std = (torch.tensor(v)[:, None, None] * 255 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    trained: dict[str, Any] = {}

    def time_products() -> tuple[float, int]:
        if "products" not in trained:
            trained["products"] = [[torch.from_numpy(a) for a in arrays] for arrays in draw_operands(batch)]
        start = time.perf_counter()
        for _ in range(STEPS):
            for x, w, g in trained["products"]:
                _ = x @ w, g @ w.T, x.T @ g
        return (time.perf_counter() - start) / STEPS, Products.parameters

    def answer(name: str) -> tuple[float, int]:
        if name == "products":
            return time_products()
        if name not in trained:
            model = build_model(name).train()
            trained[name] = model, torch.optim.AdamW(model.parameters(), lr=1e-3)
        model, optimizer = trained[name]
        start = time.perf_counter()
        for _ in range(STEPS):
            loss = nn.functional.cross_entropy(model((image.float() - mean) / std), label)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        loss.item()
        return (time.perf_counter() - start) / STEPS, sum(p.numel() for p in model.parameters())

    serve(f"{torch.__version__}, {torch.get_num_threads()} threads", answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--models", nargs="+", choices=[*MODELS, "products"], default=[*MODELS, "products"])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch and timm")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve_opponent(args.batch)
    import jax
    import jaxlib

    import nml_jax

    opponent = Opponent(args.torch_python, __file__, f"--batch={args.batch}", needs="torch and timm")
    torch = {"torch": opponent.version}
    batch = f"{args.batch} images of {SIZE} × {SIZE}, float32"
    head = print_head(nml_jax, jax, jaxlib, np, versions=torch, batch=batch, repeats=args.repeats)
    print(f"\n{'ms a step':<10}", *(f"{name:>8}" for name in ("ours", "min", "max", "torch", "min", "max")), "   ratio")
    results = {}
    for name in args.models:
        ours, seconds = (Products(args.batch) if name == "products" else Ours(name, args.batch)), []
        for _ in range(args.repeats + 1):  # the first compiles and warms up
            a = ours.seconds()
            time.sleep(0.3)  # until idle threads sleep
            b, parameters = opponent.ask(name)
            time.sleep(0.3)
            seconds.append((a, b))
        if parameters != ours.parameters:
            sys.exit(f"{name}: {ours.parameters:,} parameters against {parameters:,}: not the same network")
        a, b = zip(*seconds[1:], strict=True)
        ratio = statistics.median(y / x for x, y in seconds[1:])
        figures = [1000 * f(times) for times in (a, b) for f in (statistics.median, min, max)]
        print(f"{name:<10}", *(f"{ms:8.1f}" for ms in figures), f"{ratio:8.2f}")
        results[name] = {"parameters": parameters, "seconds": a, "torch_seconds": b, "ratio": ratio}
    if args.write:
        write_results(RESULTS, head, results)


if __name__ == "__main__":
    main()
