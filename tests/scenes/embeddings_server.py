"""An embeddings service on this machine that does what it is told: delays, errors, replies that are cut or wrong.

`python tests/scenes/embeddings_server.py LOG` runs one that is hostile by itself, prints its port, and writes
lines to LOG: when a request came and for which texts, and the texts that it has answered whole.
"""

import base64
import contextlib
import json
import random
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

WIDTH = 8


def embed(text: str, width: int = WIDTH) -> np.ndarray:
    """Return the vector of a text: float32 [width], of any length, never zero."""
    drawn = np.random.default_rng(list(text.encode()) or [0])
    return drawn.standard_normal(width).astype(np.float32)


class Server(ThreadingHTTPServer):
    """A service at a free port.

    Attributes:
        script: what to do with the next requests, one after another; see `Handler.act`. Then it answers.
        asked: the texts of each request; came: when; queries: their JSON; keys: their headers of authorization.
        most: texts of a request above which it answers 413.
    """

    daemon_threads = True
    request_queue_size = 100

    def __init__(self, **fields: Any):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Any] = []
        self.asked: list[list[str]] = []
        self.came: list[float] = []
        self.queries: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.lock, self.most, self.refused, self.log = threading.Lock(), 10**9, "", ""
        self.random = random.Random()
        self.__dict__.update(fields)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """Print nothing when a client is gone."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts, server = query["input"], self.server
        with server.lock:
            server.asked.append(texts)
            server.came.append(time.time())
            server.queries.append(query)
            server.keys.add(self.headers["Authorization"])
            step = server.script.pop(0) if server.script else None
            if server.log:
                step = draw(server.random)
                self.write_log({"came": time.time(), "asked": texts})
        self.act(step, texts, query)

    def write_log(self, line: dict[str, Any]) -> None:
        with open(self.server.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def act(self, step: Any, texts: list[str], query: dict[str, Any]) -> None:
        """Do a step: None (answer), a status, (status, headers, body), or a function of the handler and the data."""
        if step is None and len(texts) > self.server.most:
            step = 413
        if step is None and self.server.refused and self.server.refused in "".join(texts):
            step = (400, {}, {"error": {"message": f"cannot read this, key {self.headers['Authorization']}"}})
        if isinstance(step, int):
            step = (step, {}, {"error": {"message": "told so"}})
        if isinstance(step, tuple):
            status, headers, body = step
            self.reply(status, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)
            return
        data = [{"index": i, "embedding": write(embed(text), query)} for i, text in enumerate(texts)]
        body = {"object": "list", "data": data, "model": query["model"], "usage": {"total_tokens": 3 * len(texts)}}
        if step is not None and (body := step(self, body)) is None:
            return
        self.reply(200, json.dumps(body).encode(), {})
        if self.server.log:
            self.write_log({"answered": texts})

    def reply(self, status: int, body: bytes, headers: dict[str, str], cut: int = 0) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) - cut])
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def write(vector: np.ndarray, query: dict[str, Any]) -> Any:
    """Return a vector as the query wants it."""
    if query.get("encoding_format") == "base64":
        return base64.b64encode(vector.tobytes()).decode()
    return vector.tolist()


def reverse(_: Handler, body: dict[str, Any]) -> dict[str, Any]:
    """Answer in the other order."""
    return {**body, "data": body["data"][::-1]}


def hang_up(handler: Handler, _: Any) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()


def cut(handler: Handler, body: dict[str, Any]) -> None:
    """Send half an answer, then close the connection."""
    content = json.dumps(body).encode()
    handler.reply(200, content, {}, cut=len(content) // 2)
    handler.close_connection = True
    handler.connection.close()


def dawdle(seconds: float) -> Any:
    """Return a step that answers late."""

    def step(_: Handler, body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(seconds)
        return body

    return step


def draw(rng: random.Random) -> Any:
    """Return a hostile step, or None in two of three cases."""
    late = {"retry-after-ms": str(rng.randrange(30))}
    busy: list[Any] = [(429, late, {}), 500, 503, 408, hang_up, cut, reverse, dawdle(rng.random() / 20)]
    return rng.choice(busy) if rng.random() < 0.4 else None


@contextlib.contextmanager
def serve(**fields: Any) -> Iterator[Server]:
    """Run a service in a thread."""
    with Server(**fields) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


if __name__ == "__main__":
    with Server(log=sys.argv[1]) as hostile:
        print(hostile.server_port, flush=True)
        hostile.serve_forever()
