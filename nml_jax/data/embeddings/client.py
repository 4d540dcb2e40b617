"""Send requests to an embeddings service, each from a thread of its own."""

import json
import queue
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import urllib3

from nml_jax.data.embeddings.replies import Again, Reply
from nml_jax.data.embeddings.service import Service, hide
from nml_jax.errors import UserError

CHUNK = 2**16  # bytes that are read at a time
FINAL = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")  # faults of TLS that do not pass
ROOM = 2**20  # bytes of a reply for each text, at most; the longest vectors need a third


class Client:
    """The connections to a service.

    The key goes to the service alone: redirects are not followed, and proxies are used for https, which they cannot
    read, and not for http.

    Args:
        key: sent as a bearer token; "": none.
        connections: most requests at a time.
        timeout: seconds for a request as a whole.
        encoding: of the vectors, base64 or float.
    """

    def __init__(self, service: Service, key: str, *, connections: int, timeout: float, encoding: str):
        self.service, self._key, self._timeout, self._encoding = service, key, timeout, encoding
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "nml_jax"}
        self._headers |= {"Authorization": f"Bearer {key}"} if key else {}
        host = urlsplit(service.url).hostname or ""
        proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get("https")
        limits: dict[str, Any] = {"maxsize": connections, "block": True}
        if proxy and service.url.startswith("https:"):
            self._pool: urllib3.PoolManager = urllib3.ProxyManager(proxy, **limits)
        else:
            self._pool = urllib3.PoolManager(**limits)

    def post(self, texts: Sequence[str]) -> Reply:
        """Ask for the vectors of texts.

        Raises:
            Again: there was no whole reply in time.
            UserError: the certificate of the host is not valid.
        """
        body = {"model": self.service.model, "input": list(texts), "encoding_format": self._encoding}
        body |= {"dimensions": self.service.dimensions} if self.service.dimensions else {}
        end = time.monotonic() + self._timeout
        url, reached = self.service.url, False
        try:
            reply = self._pool.urlopen(
                "POST", url, body=json.dumps(body).encode(), headers=self._headers, redirect=False, retries=False,
                preload_content=False, timeout=urllib3.Timeout(total=self._timeout),
            )  # fmt: skip
            reached = True
            try:
                content = self._read(reply, end, ROOM * (len(texts) + 1))
            except BaseException:
                reply.close()  # what is left unread must not be taken for the next reply
                raise
            reply.release_conn()
            return Reply(reply.status, {name.lower(): value for name, value in reply.headers.items()}, content)
        except urllib3.exceptions.SSLError as e:
            if not any(word in str(e) for word in FINAL):
                raise Again(f"{url}: {_shorten(e, self._key)}", reached=reached) from e
            raise UserError(f"{url}: {hide(str(e), self._key)}", "check --config.api.url and its certificate") from e
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.NameResolutionError) as e:
            raise Again(f"{url} cannot be reached: {_shorten(e, self._key)}", reached=False) from e
        except (urllib3.exceptions.HTTPError, OSError) as e:
            raise Again(f"{url}: {_shorten(e, self._key)}", reached=reached) from e

    def _read(self, reply: urllib3.BaseHTTPResponse, end: float, most: int) -> bytes:
        """Return the body of a reply.

        Raises:
            Again: it takes too long, or is too long.
        """
        parts, size = [], 0
        while part := reply.read1(CHUNK):
            parts.append(part)
            size += len(part)
            if size > most:
                raise Again(f"{self.service.url} answers more than {most:,} bytes")
            if time.monotonic() > end:
                raise Again(f"{self.service.url} takes more than {self._timeout:g} seconds for a reply")
        return b"".join(parts)


def _shorten(error: Exception, key: str) -> str:
    """Return an error of the library in words, without the object that it begins with, or its cause said twice."""
    words = error.args[0] if isinstance(error, urllib3.exceptions.ProtocolError) and error.args else error
    return hide(str(words).rpartition(">: ")[2] or type(error).__name__, key)


class Threads:
    """Threads that carry out calls. They end with the program, whatever they wait for.

    Args:
        count: of threads.
        call: what they do with each task.
    """

    def __init__(self, count: int, call: Callable[[Any], Any]):
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._call, self._count = call, count
        for _ in range(count):
            threading.Thread(target=self._work, daemon=True, name="embeddings").start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                result: Any = self._call(task)
            except Exception as e:  # whoever takes the result raises it
                result = e
            self._results.put((task, result))

    def put(self, task: Any) -> None:
        """Give the threads something to do."""
        self._tasks.put(task)

    def take(self, timeout: float | None) -> tuple[Any, Any] | None:
        """Return a task and its result, or the exception that it ended with; None after `timeout` seconds."""
        try:
            return self._results.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        """End the threads after their tasks."""
        for _ in range(self._count):
            self._tasks.put(None)
