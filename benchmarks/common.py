"""What the benchmarks share: what stands above their numbers, and the file that keeps both."""

import datetime
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


def about(*modules: ModuleType, versions: Mapping[str, str] | None = None, **facts: Any) -> dict[str, Any]:
    """When, where, with which versions and of what is measured, printed and returned.

    Args:
        modules: whose versions are told; with JAX among them, its device, too.
        versions: of what runs elsewhere, by name.
        facts: sizes, repeats and the like.
    """
    device = [m.devices()[0].device_kind for m in modules if m.__name__ == "jax"]
    device += [f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores", platform.machine()]
    head = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": ", ".join([*device, f"load {os.getloadavg()[0]:.1f} at the start"]),
        "versions": {m.__name__: m.__version__ for m in modules}
        | {"python": platform.python_version()}
        | dict(versions or {}),
        **facts,
    }
    print(*(f"{key}: {value}" for key, value in head.items()), sep="\n")
    return head


def write(path: Path, head: Mapping[str, Any], results: Any) -> None:
    """Keep the results, with `about` them and the load at the end."""
    path.parent.mkdir(exist_ok=True)
    told = {**head, "load_at_the_end": round(os.getloadavg()[0], 1), "results": results}
    path.write_text(json.dumps(told, indent=2) + "\n", "utf-8")
