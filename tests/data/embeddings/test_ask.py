"""Test how a service is asked, with one on this machine that fails in every way."""

import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from configs.common import get_config
from nml_jax.data.embeddings import limits
from nml_jax.data.embeddings.ask import complete_cache
from nml_jax.data.embeddings.cache import Cache
from nml_jax.data.embeddings.service import make_service
from nml_jax.errors import UserError

TESTS = Path(__file__).parents[2]
scene = SimpleNamespace(**runpy.run_path(str(TESTS / "scenes" / "embeddings_server.py")))
TEXTS = [f"text {i} ü" for i in range(50)]
QUICK = {"batch": 8, "pause": 0.01, "retries": 3, "timeout": 5.0, "longest_pause": 2.0}


@pytest.fixture
def server() -> Iterator[Any]:
    with scene.serve() as server:
        yield server


def ask(server: Any, folder: Path, texts: list[str] = TEXTS, dimensions: int = 0, **keys: Any) -> np.ndarray:
    how = get_config().runtime.api
    how.update({**QUICK, "cache": str(folder), **keys})
    service = make_service(server.url, "small", dimensions)
    tokens = {"what": "train", "name": lambda i: f"row {i}", "count_tokens": lambda some: [10.0] * len(some)}
    cache = complete_cache(service, how, texts, **tokens)
    return cache.read(cache.find(service.hash_texts(texts)))


def check(found: np.ndarray, texts: list[str] = TEXTS) -> None:
    np.testing.assert_array_equal(found, [scene.embed(text) for text in texts])


def test_each_text_is_paid_for_once(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", "abc")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # would see the key
    server.script = [scene.reverse, None, scene.reverse]
    check(ask(server, tmp_path, TEXTS[:30] + TEXTS[:9], key="A_KEY"), TEXTS[:30] + TEXTS[:9])
    check(ask(server, tmp_path, TEXTS[20:], key="A_KEY", encoding="float", dimensions=0), TEXTS[20:])
    assert sorted(itertools.chain.from_iterable(server.asked)) == sorted(TEXTS)
    assert max(map(len, server.asked)) == 8
    assert server.keys == {"Bearer abc"}
    monkeypatch.delenv("A_KEY")
    check(ask(server, tmp_path, key="A_KEY"))  # all are there: neither key nor service is needed
    assert {json.dumps({**query, "input": 0}) for query in server.queries} == {
        '{"model": "small", "input": 0, "encoding_format": "base64"}',
        '{"model": "small", "input": 0, "encoding_format": "float"}',
    }
    assert all(b"abc" not in path.read_bytes() for path in tmp_path.iterdir())


def test_other_dimensions_are_other_vectors(server, tmp_path: Path):
    ask(server, tmp_path, TEXTS[:4])
    ask(server, tmp_path, TEXTS[:4], dimensions=8)
    assert [query.get("dimensions") for query in server.queries] == [None, 8]
    with pytest.raises(UserError, match="vectors of 8 and 9 numbers"):
        ask(server, tmp_path, TEXTS[:4], dimensions=9)


@pytest.mark.parametrize(
    "step", [429, 408, 409, 425, 500, 503, (429, {"Retry-After": "0"}, {}), (200, {}, b'{"data": [{"in'), "hang_up",
             "cut"]
)  # fmt: skip
def test_what_may_pass_is_asked_again(server, tmp_path: Path, step):
    server.script = [vars(scene)[step] if isinstance(step, str) else step] * 3
    check(ask(server, tmp_path))
    assert len(server.asked) == 7 + 3


def test_a_service_that_is_too_slow(server, tmp_path: Path):
    server.script = [scene.dawdle(0.6)]
    check(ask(server, tmp_path, timeout=0.3))
    server.script = [drip] * 9
    with pytest.raises(UserError, match=r"more than 0.3 seconds.*asked 2 times"):
        ask(server, tmp_path, ["other"], timeout=0.3, retries=1)


def drip(handler, body) -> None:
    """Send an answer byte by byte."""
    content = json.dumps(body).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    for i in range(len(content)):
        handler.wfile.write(content[i : i + 1])
        handler.wfile.flush()
        time.sleep(0.02)


def test_a_chunked_reply(server, tmp_path: Path):
    def step(handler, body) -> None:
        content = json.dumps(body).encode()
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        parts = (content[i : i + 100] for i in range(0, len(content), 100))
        handler.wfile.write(b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n")

    server.script = [step]
    check(ask(server, tmp_path))


def test_the_service_is_not_asked_before_it_says(server, tmp_path: Path):
    server.script = [(429, {"Retry-After-Ms": "400"}, {})]
    check(ask(server, tmp_path, in_flight=1))
    assert server.came[1] - server.came[0] >= 0.4
    assert server.came[2] - server.came[1] < 0.4
    server.script = [(429, {"Retry-After": "100"}, {})]
    with pytest.raises(UserError, match="asks to wait 100 seconds"):
        ask(server, tmp_path, ["new"])


@pytest.mark.parametrize(
    ("step", "words", "most"),
    [
        (401, "answers 401", 4),
        (404, "answers 404", 4),
        ((429, {}, {"error": {"code": "insufficient_quota"}}), "answers 429", 4),
        ((200, {}, b"<!doctype html>"), "answers with a page", 4),
        (503, "answers 503.*asked 4 times", 16),
        (scene.hang_up, "asked 4 times", 16),
        (lambda _, body: {**body, "data": body["data"][:-1]}, "vectors for", 4),
        (lambda _, body: {**body, "data": [body["data"][0], *body["data"][:-1]]}, "each once", 4),
        (lambda _, body: {**body, "data": [{"embedding": x["embedding"]} for x in body["data"]]}, "has the index", 4),
    ],
)
def test_what_does_not_pass(server, tmp_path: Path, step, words: str, most: int):
    ask(server, tmp_path, TEXTS[:4])
    before = [path.read_bytes() for path in sorted(tmp_path.glob("*.vectors"))]
    server.asked.clear()
    server.script = [step] * 60
    with pytest.raises(UserError, match=words):
        ask(server, tmp_path)
    assert len(server.asked) <= most
    assert [path.read_bytes() for path in sorted(tmp_path.glob("*.vectors"))] == before
    server.script = []
    check(ask(server, tmp_path))


def test_what_is_on_its_way_is_kept_after_an_error(server, tmp_path: Path):
    server.script = [scene.dawdle(0.2), 401]
    with pytest.raises(UserError, match="answers 401"):
        ask(server, tmp_path, in_flight=2)
    asked = len(server.asked)
    assert asked == 2
    check(ask(server, tmp_path))
    assert len(server.asked) == asked + 6  # not 7: the first batch is there


def test_a_text_that_is_refused_is_named_once(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", "abcd")
    server.refused = "text 37 "
    with pytest.raises(UserError) as caught:
        ask(server, tmp_path, batch=32, in_flight=3, key="A_KEY")
    assert caught.value.cause.startswith("row 37, 'text 37 ü', is refused: ")
    assert "abcd" not in str(caught.value)
    assert str(caught.value).count("text 37") == 1
    assert len(server.asked) <= 3 + 2 * 6
    check(ask(server, tmp_path, TEXTS[:37]), TEXTS[:37])


def test_a_request_that_is_too_long_is_halved_and_the_next_ones_are_shorter(server, tmp_path: Path):
    server.most = 5
    check(ask(server, tmp_path, batch=16, in_flight=1))
    assert [len(texts) for texts in server.asked] == [16, 8, 4, 4, 8, 4, 4] + [4] * 8 + [2]


def test_batches_and_minutes_hold_no_more_tokens(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check(ask(server, tmp_path, batch_tokens=35))
    assert {len(texts) for texts in server.asked} == {3, 2}
    monkeypatch.setattr(limits, "MINUTE", 0.3)
    server.asked.clear()
    server.came.clear()
    check(ask(server, tmp_path / "b", TEXTS[:9], tokens_per_minute=45, batch_tokens=10**6, in_flight=1), TEXTS[:9])
    assert [len(texts) for texts in server.asked] == [4, 4, 1]
    came = np.diff(server.came)  # the service counts three a text: 12 + 40 and 12 + 12 + 10
    assert came[0] >= 0.3 > came[1]


def test_no_more_requests_than_allowed(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MINUTE", 0.5)
    server.script = [500, None, 429]
    check(ask(server, tmp_path, batch=5, requests_per_minute=4))
    check(ask(server, tmp_path, ["one", "more"], requests_per_minute=4), ["one", "more"])
    came = np.array(server.came)
    assert len(came) == 13
    assert (came[4:] - came[:-4]).min() >= 0.5


def test_redirects_are_not_followed(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", "abcd")
    with scene.serve() as other:
        for status in (301, 302, 307, 308):
            server.script = [(status, {"Location": f"{other.url}/embeddings?x=abcd"}, {})]
            with pytest.raises(UserError, match=rf"redirects to {other.url}/embeddings\?x=\(key\), where"):
                ask(server, tmp_path, TEXTS[:1], key="A_KEY")
        assert other.asked == []


def test_nobody_is_there(tmp_path: Path):
    for url in ("http://127.0.0.1:9/v1", "http://nowhere.invalid/v1"):
        with pytest.raises(UserError, match=r"cannot be reached.*asked 4 times"):
            ask(SimpleNamespace(url=url), tmp_path, retries=100)


def test_two_programs_ask_for_the_same_texts(server, tmp_path: Path, capsys):
    server.script = [scene.dawdle(0.3)]
    threads = [threading.Thread(target=ask, args=(server, tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(ask(server, tmp_path))
    assert sorted(itertools.chain.from_iterable(server.asked)) == sorted(TEXTS)
    assert "waiting until it ends" in capsys.readouterr().err


CHILD = """
import runpy, sys
from pathlib import Path
from types import SimpleNamespace
url, folder, texts = sys.argv[1], sys.argv[2], [f"text {i}" for i in range(int(sys.argv[3]))]
from nml_jax.data.embeddings.ask import complete_cache
from nml_jax.data.embeddings.service import make_service
how = SimpleNamespace(key="", cache=folder, batch=8, batch_tokens=10**6, in_flight=4, requests_per_minute=3000,
                      tokens_per_minute=0, timeout=5.0, retries=50, pause=0.005, longest_pause=1.0, encoding="base64")
count = lambda some: [1.0] * len(some)
complete_cache(make_service(url, "small", 0), how, texts, what="", name=str, count_tokens=count)
print("done")
"""


def kill_many_times(tmp_path: Path, kills: int, texts: int) -> None:
    """Ask a hostile service, be killed at random moments, and start again, until all is there."""
    log, rng = tmp_path / "log", np.random.default_rng(kills)
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    with subprocess.Popen([sys.executable, str(TESTS / "scenes" / "embeddings_server.py"), str(log)],
                          stdout=subprocess.PIPE, text=True) as server:  # fmt: skip
        assert server.stdout
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        command = [sys.executable, "-c", CHILD, url, str(tmp_path / "cache"), str(texts)]
        service, stored, left, done = make_service(url, "small", 0), 0, kills, False
        while not done:
            lines = len(log.read_text().splitlines()) if log.exists() else 0
            with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
                if left:
                    wait_for_request(log, lines)
                    time.sleep(rng.uniform(0, 0.25))
                    child.send_signal(signal.SIGKILL)
                    left -= 1
                assert child.stdout
                done = "done" in child.stdout.read()
            before = set(Cache(tmp_path / "cache", service)._rows)
            assert len(before) >= stored
            stored = len(before)
            write_line(log, {"stored": sorted(key.hex() for key in before)})
        server.kill()
    check_log(log, service, texts)


def wait_for_request(log: Path, lines: int) -> None:
    for _ in range(500):
        if log.exists() and len(log.read_text().splitlines()) > lines:
            return
        time.sleep(0.01)


def write_line(log: Path, line: dict[str, Any]) -> None:
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")


def check_log(log: Path, service, texts: int) -> None:
    """Check that no text was answered again after its answer was stored, and the requests of each minute."""
    came, stored, answered = [], set(), set()
    for line in map(json.loads, log.read_text().splitlines()):
        came += [line["came"]] if "came" in line else []
        stored |= set(line.get("stored", ()))
        asked = {key.hex() for key in service.hash_texts(line.get("asked", []))}
        assert not asked & stored
        answered |= set(line.get("answered", ()))
    assert answered == {f"text {i}" for i in range(texts)}
    times = np.array(came)
    assert len(times) <= 3000 or (times[3000:] - times[:-3000]).min() >= 60


def test_kills(tmp_path: Path):
    kill_many_times(tmp_path, 3, 300)


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path):
    kill_many_times(tmp_path, 50, 6000)
