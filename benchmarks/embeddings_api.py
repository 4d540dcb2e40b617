"""What the client of embeddings services costs, and how fast its cache is.

    python benchmarks/embeddings_api.py [--quick] [--repeats=5] [--openai-python=PATH] [--write]

The service runs in a process of its own and answers at once: its replies are made before. What a text takes is then the
client's, with the server's handling of connections: hashes, requests, reading replies and writing the cache. The
opponent, if --openai-python names a Python that has openai and NumPy, is OpenAI's own client in a process of its own,
which takes turns with ours: as many requests at a time, vectors in NumPy, no cache. Loading is what a run does when all
texts are in the cache: hash the texts, find them, compare their sums, read their vectors.
"""

import argparse
import base64
import collections
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from common import Opponent, print_head, serve, write_results

sys.path.insert(0, str(Path(__file__).parent.parent))
RESULTS = Path(__file__).parent / "results" / "embeddings_api.json"
WIDTH, BLOCK = 1536, 4096
ELSEWHERE = "http://127.0.0.1"  # whose texts are all in the cache


def make_body(count: int, encoding: str) -> bytes:
    """Return a reply with drawn vectors."""
    vectors = np.random.default_rng(0).standard_normal((count, WIDTH)).astype(np.float32)
    write = (lambda x: base64.b64encode(x.tobytes()).decode()) if encoding == "base64" else (lambda x: x.tolist())
    data = [{"object": "embedding", "index": i, "embedding": write(x)} for i, x in enumerate(vectors)]
    return json.dumps({"data": data, "usage": {"total_tokens": count}}).encode()


def answer_requests(channel: Any, batch: int) -> None:
    """Run the service, in a process of its own."""
    bodies = {encoding: make_body(batch, encoding) for encoding in ("base64", "float")}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"]))
            body = bodies["base64" if b"base64" in asked[-100:] or b"base64" in asked[:100] else "float"]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        channel.send(server.server_port)
        server.serve_forever()


def serve_opponent() -> None:
    """Answer `Opponent`: the service, texts, batch, requests at a time, encoding -> milliseconds a text, as ours."""
    from concurrent.futures import ThreadPoolExecutor

    import openai  # pyright: ignore[reportMissingImports]

    def answer(question: Any) -> dict[str, float]:
        url, texts, batch, in_flight, encoding = question
        client = openai.OpenAI(base_url=url, api_key="none")

        def ask(first: int) -> np.ndarray:
            reply = client.embeddings.create(
                model="instant", input=texts[first : first + batch], encoding_format=encoding
            )
            read = (lambda x: np.frombuffer(base64.b64decode(x), "<f4")) if encoding == "base64" else np.array
            return np.array([read(item.embedding) for item in sorted(reply.data, key=lambda item: item.index)])

        wall, own = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(in_flight) as pool:
            rows = sum(len(vectors) for vectors in pool.map(ask, range(0, len(texts), batch)))
        assert rows == len(texts)
        wall, own = time.perf_counter() - wall, time.process_time() - own
        return {"ms": 1000 * wall / rows, "cpu_ms": 1000 * own / rows}

    serve(openai.__version__, answer)


class Ours:
    """Our client and its cache.

    Attributes:
        how: the keys of `config.runtime.api`.
    """

    def __init__(self) -> None:
        from configs.common import get_config
        from nml_jax.data.embeddings.ask import complete_cache
        from nml_jax.data.embeddings.cache import Cache
        from nml_jax.data.embeddings.service import make_service

        self.how, self._complete, self._cache = get_config().runtime.api, complete_cache, Cache
        self._find = lambda url: make_service(url, "instant", 0)

    def ask(self, url: str, texts: list[str], encoding: str) -> dict[str, float]:
        """Ask for the texts into an empty cache. Return milliseconds a text, of wall time and of this process's CPU."""
        with tempfile.TemporaryDirectory() as folder:
            self.how.update({"cache": folder, "encoding": encoding})
            wall, own = time.perf_counter(), time.process_time()
            self._run(url, texts)
            wall, own = time.perf_counter() - wall, time.process_time() - own
        return {"ms": 1000 * wall / len(texts), "cpu_ms": 1000 * own / len(texts)}

    def _run(self, url: str, texts: list[str]) -> Any:
        count = lambda some: [10.0] * len(some)  # noqa: E731
        return self._complete(self._find(url), self.how, texts, what="train", name=str, count_tokens=count)

    def fill(self, folder: Path, texts: list[str]) -> None:
        """Write a cache with vectors of the texts."""
        service, rng = self._find(ELSEWHERE), np.random.default_rng(0)
        cache = self._cache(folder, service)
        with cache.writing():
            for first in range(0, len(texts), BLOCK):
                some = texts[first : first + BLOCK]
                cache.append(service.hash_texts(some), rng.standard_normal((len(some), WIDTH), np.float32))

    def load(self, folder: Path, texts: list[str]) -> dict[str, float]:
        """Read the vectors of texts that are all in the cache. Return seconds, of wall time and of our CPU."""
        self.how.cache = str(folder)
        service, rows = self._find(ELSEWHERE), 0
        wall, own = time.perf_counter(), time.process_time()
        cache = self._run(ELSEWHERE, texts)
        for first in range(0, len(texts), BLOCK):
            rows += len(cache.read(cache.find(service.hash_texts(texts[first : first + BLOCK]), verify=False)))
        assert rows == len(texts)
        return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - own}


def print_median(what: str, rounds: list[dict[str, float]], wall: str, own: str, unit: str) -> None:
    """Print the medians of wall time and of CPU time over the rounds."""
    medians = (statistics.median(each[key] for each in rounds) for key in (wall, own))
    print(f"{what}: {next(medians):.3f} {unit}, {next(medians):.3f} {unit} of CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few texts")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--openai-python", default="", help="a Python that has openai and NumPy")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve_opponent()
    asked, stored = (640, 2000) if args.quick else (6400, 100_000)
    opponent = Opponent(args.openai_python, __file__, needs="openai and NumPy") if args.openai_python else None
    versions = {"openai": opponent.version} if opponent else {}
    head = print_head(np, versions=versions, texts_asked=asked, texts_loaded=stored, width=WIDTH, repeats=args.repeats)
    results: dict[str, Any] = collections.defaultdict(list)
    ours, (channel, far) = Ours(), multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=answer_requests, args=(far, ours.how.batch), daemon=True
    )
    server.start()
    url = f"http://127.0.0.1:{channel.recv()}/v1"
    texts = [f"text number {i}" for i in range(stored)]
    for _ in range(args.repeats):
        for encoding in ("base64", "float"):
            results[encoding].append(ours.ask(url, texts[:asked], encoding))
            if opponent:
                question = [url, texts[:asked], ours.how.batch, ours.how.in_flight, encoding]
                results[f"{encoding}_openai"].append(opponent.ask(question))
    server.terminate()
    with tempfile.TemporaryDirectory() as folder:
        ours.fill(Path(folder), texts)
        results["load"] = [ours.load(Path(folder), texts) for _ in range(args.repeats)]
    for what, rounds in results.items():
        if what != "load":
            print_median(f"{what}, a text", rounds, "ms", "cpu_ms", "ms")
    print_median(f"{stored:,} cached texts of {WIDTH} numbers", results["load"], "seconds", "cpu_seconds", "s")
    if args.write:
        write_results(RESULTS, head, results)


if __name__ == "__main__":
    main()
