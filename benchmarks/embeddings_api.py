"""What the client of embeddings services costs, and how fast its cache is.

    python benchmarks/embeddings_api.py [--quick] [--repeats=5] [--write]

The service runs in a process of its own and answers at once: its replies are made before. What a text takes is then the
client's, with the server's handling of connections: hashes, requests, reading replies and writing the cache. Loading is
what a run does when all texts are in the cache: hash the texts, find them, compare their sums, read their vectors.
"""

import argparse
import base64
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from common import print_head, write_results

sys.path.insert(0, str(Path(__file__).parent.parent))
from configs.common import get_config
from nml_jax.data.embeddings.ask import complete_cache
from nml_jax.data.embeddings.cache import Cache
from nml_jax.data.embeddings.service import make_service

RESULTS = Path(__file__).parent / "results" / "embeddings_api.json"
WIDTH = 1536


def make_body(count: int, encoding: str) -> bytes:
    """Return a reply with drawn vectors."""
    vectors = np.random.default_rng(0).standard_normal((count, WIDTH)).astype(np.float32)
    write = (lambda x: base64.b64encode(x.tobytes()).decode()) if encoding == "base64" else (lambda x: x.tolist())
    data = [{"object": "embedding", "index": i, "embedding": write(x)} for i, x in enumerate(vectors)]
    return json.dumps({"data": data, "usage": {"total_tokens": count}}).encode()


def serve(channel: Any, batch: int) -> None:
    """Run the service, in a process of its own."""
    bodies = {encoding: make_body(batch, encoding) for encoding in ("base64", "float")}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"]))
            body = bodies["base64" if b'"encoding_format": "base64"' in asked[-100:] else "float"]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        channel.send(server.server_port)
        server.serve_forever()


def measure_client(url: str, texts: list[str], encoding: str) -> dict[str, float]:
    """Ask for the texts into an empty cache. Return milliseconds a text, of wall time and of this process's CPU."""
    with tempfile.TemporaryDirectory() as folder:
        how = get_config().runtime.api
        how.update({"cache": folder, "encoding": encoding})
        service, wall, own = make_service(url, "instant", 0), time.perf_counter(), time.process_time()
        complete_cache(service, how, texts, what="train", name=str, count_tokens=lambda some: [10.0] * len(some))
        wall, own = time.perf_counter() - wall, time.process_time() - own
    return {"ms": 1000 * wall / len(texts), "cpu_ms": 1000 * own / len(texts)}


def measure_load(folder: Path, texts: list[str]) -> dict[str, float]:
    """Read the vectors of texts that are all in the cache. Return seconds, of wall time and of this process's CPU."""
    how = get_config().runtime.api
    how.cache = str(folder)
    service, rows = make_service("http://127.0.0.1", "instant", 0), 0
    wall, own = time.perf_counter(), time.process_time()
    cache = complete_cache(service, how, texts, what="train", name=str, count_tokens=lambda some: [])
    for first in range(0, len(texts), 4096):
        rows += len(cache.read(cache.find(service.hash_texts(texts[first : first + 4096]), verify=False)))
    assert rows == len(texts)
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - own}


def fill(folder: Path, texts: list[str]) -> None:
    """Write a cache with vectors of the texts."""
    service = make_service("http://127.0.0.1", "instant", 0)
    cache, rng = Cache(folder, service), np.random.default_rng(0)
    with cache.writing():
        for first in range(0, len(texts), 4096):
            some = texts[first : first + 4096]
            cache.append(service.hash_texts(some), rng.standard_normal((len(some), WIDTH), np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few texts")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args()
    asked, stored = (640, 2000) if args.quick else (6400, 100_000)
    head = print_head(np, texts_asked=asked, texts_loaded=stored, width=WIDTH, repeats=args.repeats)
    results: dict[str, Any] = {"base64": [], "float": [], "load": []}
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs, get_config().runtime.api.batch), daemon=True
    )
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}/v1"
    for _ in range(args.repeats):
        for encoding in ("base64", "float"):
            results[encoding].append(measure_client(url, [f"text number {i}" for i in range(asked)], encoding))
    server.terminate()
    folder, texts = Path(tempfile.mkdtemp()), [f"text number {i}" for i in range(stored)]
    try:
        fill(folder, texts)
        results["load"] = [measure_load(folder, texts) for _ in range(args.repeats)]
    finally:
        shutil.rmtree(folder)
    for encoding in ("base64", "float"):
        wall, own = (statistics.median(each[key] for each in results[encoding]) for key in ("ms", "cpu_ms"))
        print(f"{encoding}: {wall:.3f} ms a text, {own:.3f} ms of CPU")
    wall, own = (statistics.median(each[key] for each in results["load"]) for key in ("seconds", "cpu_seconds"))
    print(f"{stored:,} cached texts of {WIDTH} numbers: {wall:.2f} s, {own:.2f} s of CPU")
    if args.write:
        write_results(RESULTS, head, results)


if __name__ == "__main__":
    main()
