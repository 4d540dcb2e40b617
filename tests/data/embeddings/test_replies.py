"""Test what is made of a service's replies."""

import base64
import email.utils
import json
import time

import numpy as np
import pytest

from nml_jax.data.embeddings.replies import Again, Halve, Reply, read_reply, read_wait
from nml_jax.data.embeddings.service import make_service, read_key
from nml_jax.errors import UserError

URL, KEY = "http://host/v1/embeddings", "sk-secret"


def read(body, *, status: int = 200, count: int = 2, width: int = 0, **headers: str):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_reply(Reply(status, headers, content), count, width, KEY, URL)


def items(*vectors, indices=None):
    return {"data": [{"index": i, "embedding": v} for i, v in zip(indices or range(9), vectors, strict=False)]}


def test_vectors_are_in_the_order_of_their_index():
    a, b = np.array([1.5, -2, 3e-30], np.float32), np.array([0, 1, 0.1], np.float32)
    for first, second in ((a.tolist(), b.tolist()), (base64.b64encode(a.tobytes()).decode(), b.tolist())):
        answer = read(items(second, first, indices=[1, 0]) | {"usage": {"total_tokens": 7}}, width=3)
        np.testing.assert_array_equal(answer.vectors, [a, b])
        assert answer.vectors.dtype == np.float32
        assert answer.tokens == 7
    assert read(items([1, 0], [0, 2])).tokens is None


def test_numbers_are_read_exactly():
    drawn = np.random.default_rng(0).integers(0, 2**32, (2, 500), np.uint32).view(np.float32)
    drawn[~np.isfinite(drawn)] = 1
    np.testing.assert_array_equal(read(items(*drawn.tolist())).vectors, drawn)
    written = ["0.1", "1e-400", "16777217.0000000001", "-0", "3", "5e-324", "3.4028234e38", "0.30000000000000004"]
    body = f'{{"data": [{{"index": 0, "embedding": [{", ".join(written)}]}}]}}'.encode()
    np.testing.assert_array_equal(read(body, count=1).vectors, np.array([[float(x) for x in written]], np.float32))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (items([1.0]), "1 vectors for 2 texts"),
        (items([1.0], [1.0], [1.0]), "3 vectors for 2 texts"),
        (items([1.0], [1.0], indices=[1, 1]), "not 0 to 1, each once"),
        (items([1.0], [1.0], indices=[0, 2]), "not 0 to 1, each once"),
        (items([1.0], [1.0], indices=[0, True]), "has the index True"),
        ({"data": [{"embedding": [1.0]}, {"index": 1, "embedding": [1.0]}]}, "has the index None"),
        ({"data": [1, 2]}, "has the index None"),
        (items([1.0], [1.0, 2.0]), "vectors of 1 and 2 numbers"),
        (items([], []), "vectors of 0 numbers"),
        (items([1.0, 2.0], [1.0, 2.0]), "vectors of 2 and 3 numbers"),
        (items([1.0, 0, 0], [0.0, 0, 0]), "all zeros"),
        (b'{"data": [{"index": 0, "embedding": [NaN, 1, 1]}, {"index": 1, "embedding": [1, 1, 1]}]}', "not finite"),
        (items([1e39, 0, 0], [1.0, 0, 0]), "not finite"),
        (b'{"data": [{"index": 0, "embedding": [1e999, 1, 1]}, {"index": 1, "embedding": [1, 1, 1]}]}', "not finite"),
        (items([1.0], [1.0], indices=[0, 2**70]), "has the index|not 0 to 1, each once"),
        (items(["1.0"] * 3, [1.0] * 3), "not a list of numbers"),
        (items([[1.0]] * 3, [1.0] * 3), "not a list of numbers"),
        (items(None, [1.0] * 3), "not a list of numbers"),
        (items("????", [1.0] * 3), "is damaged"),
        (items("AAAA", [1.0] * 3), "is damaged"),
        ({"error": f"no {KEY}"}, r"no list of data: no \(key\)"),
        ([], "no list of data"),
        (b"<html>", "answers with a page"),
    ],
)
def test_a_wrong_reply_is_an_error(body, words: str):
    with pytest.raises(UserError, match=words) as caught:
        read(body, width=3 if "3" in words or "zeros" in words or "finite" in words else 0)
    assert KEY not in str(caught.value)


def test_what_may_pass_is_asked_again():
    for status in (408, 409, 425, 429, 500, 502, 503, 529):
        with pytest.raises(Again, match=f"answers {status}: busy") as caught:
            read_reply(Reply(status, {"retry-after": "3"}, b'{"error": {"message": "busy"}}'), 2, 0, KEY, URL)
        assert caught.value.wait == 3
    for body in (b'{"data": [{"ind', b"", b"["):
        with pytest.raises(Again, match="not JSON"):
            read(body)


def test_what_does_not_pass_is_not():
    for status, cure in ((401, "key"), (403, "key"), (404, "api.url"), (301, "api.url"), (418, "api.url")):
        with pytest.raises(UserError) as caught:
            read({"detail": f"wrong {KEY}\nin two lines"}, status=status, location="http://other/")
        assert cure in caught.value.cure
        assert KEY not in str(caught.value)
    for error in ({"code": "insufficient_quota"}, {"type": "insufficient_quota", "code": None}):
        with pytest.raises(UserError, match="answers 429") as caught:
            read({"error": {"message": "pay", **error}}, status=429)
        assert "credit" in caught.value.cure
    for status in (400, 413, 422):
        with pytest.raises(Halve, match=f"answers {status}: too long"):
            read({"message": "too long"}, status=status)


def test_how_long_to_wait():
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert read_wait({"retry-after": "2.5"}) == 2.5
    assert read_wait({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert 28 < (read_wait({"retry-after": later}) or 0) <= 30
    assert read_wait({"retry-after": "Mon, 01 Jan 2024 00:00:00 GMT"}) == 0
    assert read_wait({"retry-after": "-4"}) == 0
    for headers in ({}, {"retry-after": "soon"}, {"retry-after": "inf"}, {"retry-after-ms": "nan"}):
        assert read_wait(headers) is None


def test_addresses():
    for given, url in (("https://API.host/v1", "https://api.host/v1/embeddings"),
                       ("http://h:80/v1/embeddings/", "http://h:80/v1/embeddings"),
                       ("https://h/x?api-version=1", "https://h/x/embeddings?api-version=1")):  # fmt: skip
        assert make_service(given, "m", 0).url == url
    for given, words in (("", "api.url is empty"), ("host/v1", "is not the address"), ("ftp://h", "is not the address"),
                         ("http://", "is not the address"), ("http://h:x/", "is not the address"),
                         ("http://me:pw@h", "holds a name"), ("http://h?api_key=1", "holds a name")):  # fmt: skip
        with pytest.raises(UserError, match=words) as caught:
            make_service(given, "m", 0)
        assert "pw" not in str(caught.value)
    with pytest.raises(UserError, match=r"api\.model is empty"):
        make_service("http://h", "", 0)


def test_keys():
    found = {"A_KEY": f" {KEY}\n", "EMPTY": "", "ODD": "a b", "OPENAI_API_KEY": "theirs"}
    assert read_key("A_KEY", URL, found) == KEY
    assert read_key("", URL, found) == ""  # another host does not get OpenAI's key
    assert read_key("", "https://api.openai.com/v1/embeddings", found) == "theirs"
    for name, words in (("NONE", "is not set"), ("EMPTY", "is not set"), ("ODD", "holds blanks"),
                        (KEY, "is not the name"), ("abcDEF123", "is not the name")):  # fmt: skip
        with pytest.raises(UserError, match=words) as caught:
            read_key(name, URL, found)
        assert name not in str(caught.value)
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        read_key("", "https://api.openai.com/v1/embeddings", {})
