"""Measure the training steps of accelerator.py in PyTorch; it is a worker of that script, and needs torch alone.

The models have the shapes of ours, and as many parameters. A step does what ours does: uint8 images are normalised on
the device, then come loss, gradient, its norm, and fused AdamW. The forward pass is in bfloat16 by autocast, images and
the ResNet are channels-last, and torch.compile compiles the model.
"""
# ruff: noqa: B023  a step is used up before the next is defined

import time
from collections.abc import Callable, Iterator
from typing import Any

from accelerator_worker import FULL, TINY, Parts, Row, Sizes, Skipped, parse, serve, time_calls


def build(name: str, sizes: Sizes, tiny: bool) -> Any:
    """Build the module: images (and tokens) -> logits."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    def conv(a: int, b: int, kernel: int, stride: int = 1) -> Any:
        return nn.Sequential(nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(b))

    class Bottleneck(nn.Module):
        def __init__(self, a: int, width: int, stride: int):
            super().__init__()
            b = 4 * width
            self.convs = nn.Sequential(
                conv(a, width, 1), nn.ReLU(inplace=True), conv(width, width, 3, stride), nn.ReLU(inplace=True),
                conv(width, b, 1),
            )  # fmt: skip
            self.shortcut = conv(a, b, 1, stride) if stride > 1 or a != b else nn.Identity()

        def forward(self, x: Any) -> Any:
            return functional.relu(self.convs(x) + self.shortcut(x), inplace=True)

    def make_resnet(width: int, blocks: tuple[int, ...], classes: int) -> Any:
        layers, a = [conv(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)], width
        for i, n in enumerate(blocks):
            for j in range(n):
                layers.append(Bottleneck(a, width * 2**i, 2 if i and not j else 1))
                a = 4 * width * 2**i
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(a, classes))

    class Block(nn.Module):
        def __init__(self, dim: int, heads: int, causal: bool, eps: float):
            super().__init__()
            self.heads, self.causal = heads, causal
            self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
            self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

        def forward(self, x: Any) -> Any:
            b, t, d = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
            x = x + self.proj(mixed.transpose(1, 2).reshape(b, t, d))
            return x + self.mlp(self.norm2(x))

    class Vit(nn.Module):
        def __init__(self, clip: bool):
            super().__init__()
            dim, patch = sizes.dim, 16
            self.patch = nn.Conv2d(3, dim, patch, patch, bias=not clip)
            self.cls = nn.Parameter(torch.zeros(1, 1, dim))
            self.position = nn.Parameter(0.02 * torch.randn(1, 1 + (sizes.image // patch) ** 2, dim))
            eps = 1e-5 if clip else 1e-6
            self.before = nn.LayerNorm(dim, eps) if clip else nn.Identity()
            self.blocks = nn.Sequential(*(Block(dim, sizes.heads, False, eps) for _ in range(sizes.depth)))
            self.norm = nn.LayerNorm(dim, eps)
            self.head = nn.Linear(dim, sizes.embedding, bias=False) if clip else nn.Linear(dim, sizes.classes)

        def forward(self, image: Any) -> Any:
            x = self.patch(image).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls.expand(len(x), -1, -1).to(x.dtype), x], 1) + self.position
            return self.head(self.norm(self.blocks(self.before(x)))[:, 0])

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            dim = sizes.text_dim
            self.tokens = nn.Embedding(sizes.vocabulary, dim)
            self.position = nn.Parameter(0.01 * torch.randn(1, sizes.context, dim))
            self.blocks = nn.Sequential(*(Block(dim, sizes.text_heads, True, 1e-5) for _ in range(sizes.text_depth)))
            self.norm, self.projection = nn.LayerNorm(dim), nn.Linear(dim, sizes.embedding, bias=False)

        def forward(self, text: Any) -> Any:
            x = self.blocks(self.tokens(text) + self.position)
            x = self.norm(x[torch.arange(len(x), device=x.device), text.argmax(1)])
            return self.projection(x)

    class Clip(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.text = Vit(clip=True), Text()
            self.scale = nn.Parameter(torch.tensor(2.659))

        def forward(self, image: Any, text: Any) -> Any:
            x, y = (functional.normalize(part.float(), dim=1) for part in (self.image(image), self.text(text)))
            return self.scale.exp() * x @ y.T

    if name == "resnet50":
        return make_resnet(sizes.dim, (1,) if tiny else (3, 4, 6, 3), sizes.classes)
    return Vit(clip=False) if name == "vit_b16" else Clip()


def measure_steps(name: str, device: str) -> Callable[[bool], Iterator[Row]]:
    def measure(tiny: bool) -> Iterator[Row]:
        import torch  # pyright: ignore[reportMissingImports]
        from torch.nn import functional  # pyright: ignore[reportMissingImports]

        cuda, sizes = device == "cuda", (TINY if tiny else FULL)[name]
        mean, std = (
            255 * torch.tensor(v, device=device)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )

        def wait(loss: Any) -> None:
            loss.item()

        for batch in sizes.batches:
            torch.manual_seed(0)
            model: Any = build(name, sizes, tiny).to(device, memory_format=torch.channels_last)
            optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
            image = torch.randint(0, 256, (batch, 3, sizes.image, sizes.image), dtype=torch.uint8, device=device)
            image = image.to(memory_format=torch.channels_last)
            text = torch.randint(0, sizes.vocabulary, (batch, sizes.context), device=device)
            label = torch.arange(batch, device=device)
            label = label if name == "clip_vitb16" else label % sizes.classes
            given = (text,) if name == "clip_vitb16" else ()
            forward: Any = torch.compile(model) if cuda else model

            def step() -> Any:
                with torch.autocast(device, torch.bfloat16):
                    logits = forward(((image - mean) / std).contiguous(memory_format=torch.channels_last), *given)
                loss = functional.cross_entropy(logits.float(), label)
                if given:
                    loss = (loss + functional.cross_entropy(logits.float().T, label)) / 2
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
                optimizer.step()
                return loss.detach()

            begun = time.perf_counter()
            try:
                wait(step())
                compiling = time.perf_counter() - begun
                seconds = time_calls(step, wait, tiny)
            except torch.OutOfMemoryError:
                yield {"case": f"batch {batch}", "note": "does not fit into memory"}
                continue
            yield {
                "case": f"batch {batch}",
                "examples_per_s": batch / seconds,
                "ms": 1e3 * seconds,
                "memory": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
                "compile_seconds": compiling,
                "parameters": sum(p.numel() for p in model.parameters()),
            }
            model = optimizer = forward = None  # free them before the next
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()

    return measure


def skip(why: str) -> Callable[[bool], Iterator[Row]]:
    def measure(tiny: bool) -> Iterator[Row]:
        raise Skipped(why)
        yield {}

    return measure


def find_device(wanted: str) -> tuple[str, dict[str, Any]]:
    """Return why no step can be measured, or "", and what is known of PyTorch and its device."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return "no PyTorch can be imported here", {}
    about = {"torch": str(torch.__version__)}
    if wanted != "cuda":
        return "", about
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no CUDA device", about
    return "", {**about, "device": torch.cuda.get_device_name()}


def main() -> None:
    args, say = parse(__doc__)
    why, about = find_device(args.device)
    parts: Parts = {f"torch_{name}": skip(why) if why else measure_steps(name, args.device) for name in FULL}
    serve(parts, about, args.parts.split(","), args.tiny, say)


if __name__ == "__main__":
    main()
