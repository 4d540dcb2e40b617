"""What the workers of accelerator.py share: what they say, the sizes of the steps, and how a step is timed."""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Row = dict[str, Any]
Parts = Mapping[str, Callable[[bool], Iterator[Row]]]  # name -> (tiny) -> figures, one by one


class Sizes(NamedTuple):
    """A model to train, for us and for PyTorch."""

    batches: tuple[int, ...]
    image: int
    classes: int
    dim: int  # of the ViT; of the ResNet its width
    depth: int
    heads: int
    context: int = 77
    vocabulary: int = 49_408
    text_dim: int = 512
    text_depth: int = 12
    text_heads: int = 8
    embedding: int = 512


# The middle batch first: if the time is over, it is the one to have.
FULL = {
    "resnet50": Sizes((512, 256, 1024), 224, 1000, 64, 50, 0),
    "vit_b16": Sizes((512, 256, 1024), 224, 1000, 768, 12, 12),
    "clip_vitb16": Sizes((512, 256, 1024), 224, 0, 768, 12, 12),
}
TINY = {
    "resnet50": Sizes((8,), 32, 10, 4, 14, 0),
    "vit_b16": Sizes((8,), 32, 10, 32, 1, 2),
    "clip_vitb16": Sizes((8,), 32, 0, 32, 1, 2, 8, 64, 16, 1, 2, 8),
}


def time_calls(step: Callable[[], Any], wait: Callable[[Any], Any], tiny: bool, seconds: float = 3.0) -> float:
    """Return the seconds of a call. Calls are not waited for one by one, as in training."""
    for _ in range(1 if tiny else 3):  # warm up
        wait(step())
    begun = time.perf_counter()
    wait(step())
    once = time.perf_counter() - begun
    count = 2 if tiny else max(int(seconds / max(once, 1e-6)), 3)
    begun, out = time.perf_counter(), None
    for _ in range(count):
        out = step()
    wait(out)
    return (time.perf_counter() - begun) / count


def serve(parts: Parts, about: Mapping[str, Any], names: list[str], tiny: bool, say: Callable[..., None]) -> None:
    """Measure parts, and say each figure as soon as it is known. One that fails does not end the others."""
    say(part="start", row=dict(about))
    for name in names:
        say(part=name)
        end: dict[str, Any] = {}
        try:
            for row in parts[name](tiny):
                say(part=name, row=row)
        except Skipped as e:
            end = {"skipped": str(e)}
        except Exception as e:
            end = {"failed": f"{type(e).__name__}: {str(e)[:300]}"}
            import traceback

            traceback.print_exc()
        gc.collect()
        say(part=name, end=end)


class Skipped(Exception):
    """A part cannot run here."""


def parse(description: str | None) -> tuple[argparse.Namespace, Callable[..., None]]:
    """Parse the command line of a worker, and take standard output for what it says: all else goes to errors."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--parts", required=True)
    parser.add_argument("--device", default="cuda", help="of PyTorch")
    args = parser.parse_args()
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def say(**what: Any) -> None:
        print(json.dumps(what), file=told, flush=True)

    return args, say
