"""Run the examples. Code that needs PyTorch is only compiled; the embeddings API is a fake server."""

import csv
import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from nml_jax.data.features.files import check_alike, open_features

TEXTS = [f'text {i}, "quoted" ü' for i in range(7)]
NAMES = ["dog", "cat", "dog", "cow", "cat", "dog", "cow"]


def embed(text: str) -> list[float]:
    return [len(text) / 8, float(text[5]), -1.5]


class Server(HTTPServer):
    """A fake embeddings endpoint. Each reply has the next status of `replies`, or 200 if none is left."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[int] = []
        self.asked: list[list[str]] = []
        self.keys: set[str | None] = set()
        self.url = f"http://127.0.0.1:{self.server_port}/v1/embeddings"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert query["model"] == "small"
        self.server.asked.append(query["input"])
        self.server.keys.add(self.headers["Authorization"])
        status = self.server.replies.pop(0) if self.server.replies else 200
        data = [{"index": i, "embedding": embed(text)} for i, text in enumerate(query["input"])]
        body = json.dumps({"data": data[::-1]} if status == 200 else {"error": "busy"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def example(root: Path) -> ModuleType:
    return load_module(root / "examples" / "export_features.py")


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_texts(path: Path, rows: list[tuple[str, str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([("text", "label"), *rows])
    return str(path)


@pytest.fixture
def arguments(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return arguments of the subcommand api for the texts above, three at a time."""
    monkeypatch.setenv("A_KEY", "abc")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    table = write_texts(tmp_path / "texts.csv", list(zip(TEXTS, NAMES, strict=True)))
    options = ["--model=small", "--key=A_KEY", "--batch=3", "--retries=2", "--wait=0.01"]
    return ["api", server.url, table, f"{tmp_path}/out.safetensors", *options]


def check(path: Path) -> None:
    found = open_features(f"{path}/out.safetensors")
    np.testing.assert_array_equal(found.read()[:, 0], np.array([embed(text) for text in TEXTS], np.float32))
    assert found.class_names == ("cat", "cow", "dog")
    assert found.labels.tolist() == [2, 0, 2, 1, 0, 2, 1]
    assert sorted(p.name for p in path.iterdir()) == ["out.safetensors", "texts.csv"]


def test_api_in_batches_after_a_busy_reply(example: ModuleType, server: Server, arguments: list[str], tmp_path: Path):
    server.replies = [429, 200, 503, 500]
    example.main(arguments)
    check(tmp_path)
    first, second, third = TEXTS[:3], TEXTS[3:6], TEXTS[6:]
    assert server.asked == [first, first, second, second, second, third]
    assert server.keys == {"Bearer abc"}


def check_refused(capsys: pytest.CaptureFixture, words: str, program: ModuleType, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        program.main(arguments)
    assert re.search(f"error: .*{words}.*\n  cure: ", capsys.readouterr().err)


def test_api_resumes(example: ModuleType, server: Server, arguments: list[str], tmp_path: Path, capsys):
    server.replies = [200, 503, 503, 503]
    check_refused(capsys, r"503.*busy", example, arguments)
    part = tmp_path / "out.safetensors.part"
    part.write_text(part.read_text()[:-4])  # killed while it wrote
    server.asked.clear()
    example.main(arguments)
    check(tmp_path)
    assert server.asked == [TEXTS[2:5], TEXTS[5:]]


def test_api_keeps_parts_of_other_texts_apart(
    example: ModuleType, server: Server, arguments: list[str], tmp_path: Path, capsys
):
    server.replies = [200, 401]
    check_refused(capsys, "401", example, arguments)
    assert len(server.asked) == 2  # a wrong key is not tried again
    write_texts(tmp_path / "texts.csv", [("other", "cat")])
    check_refused(capsys, "belongs to other texts", example, arguments)


def test_classes_of_an_earlier_file(example: ModuleType, arguments: list[str], tmp_path: Path, capsys):
    example.main(arguments)
    command, url, _, _, *options = arguments
    table = write_texts(tmp_path / "test.csv", [("text 3", "dog"), ("text 4", "cow")])
    like = f"--like={tmp_path}/out.safetensors"
    example.main([command, url, table, f"{tmp_path}/test.safetensors", *options, like])
    test = open_features(f"{tmp_path}/test.safetensors")
    assert test.labels.tolist() == [2, 1]
    check_alike(open_features(f"{tmp_path}/out.safetensors"), test)
    write_texts(tmp_path / "test.csv", [("text 3", "hen")])
    check_refused(
        capsys, "no classes hen", example, [command, url, table, f"{tmp_path}/test.safetensors", *options, like]
    )


def test_a_table_without_texts(example: ModuleType, arguments: list[str], tmp_path: Path, capsys):
    (tmp_path / "texts.csv").write_text("sentence,label\nhello,1\n")
    check_refused(capsys, "columns text and label", example, arguments)
    (tmp_path / "texts.csv").unlink()
    check_refused(capsys, r"texts\.csv cannot be read", example, arguments)


@pytest.mark.parametrize("command", ["timm", "open_clip", "hf", "api"])
def test_every_subcommand_explains_itself(example: ModuleType, command: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="0"):
        example.main([command, "--help"])
    assert "OUT" in capsys.readouterr().out


def test_sentences_as_features(root: Path, tmp_path: Path, capsys):
    program = load_module(root / "examples" / "text_features.py")
    rows = [(f"word{i} word{i % 3} again", "ab"[i % 2]) for i in range(20)]
    for folder in ("train", "other"):
        (tmp_path / folder).mkdir()
    train, test = write_texts(tmp_path / "train" / "d.csv", rows), write_texts(tmp_path / "other" / "e.csv", rows[:5])
    program.main([f"{tmp_path}/out", train, test, "--dim", "4"])
    found = [open_features(f"{tmp_path}/out/{name}.safetensors") for name in "de"]
    assert [(len(each), each.dim, each.class_names) for each in found] == [(20, 4, ("a", "b")), (5, 4, ("a", "b"))]
    np.testing.assert_array_equal(found[0].read()[:5], found[1].read())
    same = write_texts(tmp_path / "other" / "d.csv", rows[:5])
    words = r"d\.csv and a file before it would both become d\.safetensors"
    check_refused(capsys, words, program, [f"{tmp_path}/new", train, same])
    check_refused(capsys, r"none\.csv cannot be read", program, [f"{tmp_path}/new", f"{tmp_path}/none.csv"])
    check_refused(capsys, "--dim must be at least 1, got 0", program, [f"{tmp_path}/new", train, "--dim", "0"])
    check_refused(
        capsys,
        "empty vocabulary",
        program,
        [f"{tmp_path}/new", write_texts(tmp_path / "e.csv", [("", "a"), (" ", "b")])],
    )
    assert not (tmp_path / "new").exists()
    few = write_texts(tmp_path / "few.csv", [("one two", "a"), ("two three", "b"), ("four", "a")])
    program.main([f"{tmp_path}/few", few])  # asks for 256 features
    assert open_features(f"{tmp_path}/few/few.safetensors").dim == 3
    assert "3 features, not 256" in capsys.readouterr().err
