"""Read the replies of an embeddings service: vectors, or what is wrong and whether asking again can help."""

import base64
import binascii
import contextlib
import email.utils
import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson

from nml_jax.data.embeddings.service import NO_KEY, hide
from nml_jax.errors import UserError

AGAIN = (408, 409, 425, 429)  # and 500 and above: the same request may succeed later
HALVE = (400, 413, 422)  # fewer texts, or the others among them, may succeed
SHOWN = 300  # characters of a service's own message that are shown
CHECK = "check --config.api.url and the service; what was answered before is kept"


class Reply(NamedTuple):
    """An answer of a service as it came. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Answer(NamedTuple):
    """The vectors of a request's texts, float32 [N, D] in their order, and the tokens that the service counted."""

    vectors: np.ndarray
    tokens: int | None


class Again(Exception):
    """A request failed in a way that may pass. `wait`: seconds that the service asks to wait; None: it does not say.

    reached: whether the service could be reached at all.
    """

    def __init__(self, cause: str, wait: float | None = None, reached: bool = True):
        super().__init__(cause)
        self.wait, self.reached = wait, reached


class Halve(Exception):
    """A service refused these texts together."""


def read_reply(reply: Reply, count: int, width: int, key: str, url: str) -> Answer:
    """Return the vectors in a reply.

    Args:
        count: texts that were sent.
        width: numbers per vector; 0: not known yet.
        key, url: the key, which is never shown, and the address.

    Raises:
        Again: the service is busy, or its reply was cut.
        Halve: it refused the texts.
        UserError: asking again does not help.
    """
    if reply.status == 200:
        return read_vectors(_parse(reply, url), count, width, url, key)
    words, code = _find_message(reply.body)
    said = f": {hide(words, key)[:SHOWN]}" if words.strip() else ""
    cause = f"{url} answers {reply.status}{said}"
    if code == "insufficient_quota":
        raise UserError(cause, "the account has no credit left: add some; what was answered before is kept")
    if reply.status in AGAIN or reply.status >= 500:
        raise Again(cause, read_wait(reply.headers))
    if reply.status in HALVE:
        raise Halve(cause)
    if 300 <= reply.status < 400:
        target = hide(reply.headers.get("location", "nowhere"), key)[:SHOWN]
        raise UserError(
            f"{url} redirects to {target}, where texts and key are not sent", "give the address itself as api.url"
        )
    cures = {401: f"check the key: {NO_KEY}", 403: f"check what the key may do: {NO_KEY}",
             404: "check --config.api.url and --config.api.model"}  # fmt: skip
    raise UserError(cause, cures.get(reply.status, CHECK))


def read_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait that a service asks for: in milliseconds, in seconds, or as a date. None: it does not.

    A time in the past is 0; what is none of these does not count.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            wait = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if np.isfinite(wait):
            return max(wait, 0.0)
    try:
        return max(email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
    except (KeyError, ValueError, TypeError):
        return None


def _parse(reply: Reply, url: str) -> Any:
    with contextlib.suppress(orjson.JSONDecodeError):
        return orjson.loads(reply.body)
    try:  # some services write NaN, which is not JSON; it is refused below, as a number that is not finite
        return json.loads(reply.body)
    except (ValueError, RecursionError) as e:
        if reply.body.lstrip()[:1] == b"<" or "html" in reply.headers.get("content-type", ""):
            raise UserError(
                f"{url} answers with a page, not with vectors", "give the address of an embeddings endpoint as api.url"
            ) from e
        raise Again(f"{url} answers what is not JSON, or only a part of it") from e


def _find_message(body: bytes) -> tuple[str, str]:
    """Return the message of an error, and its code or type; "" for what is not there."""
    text = body[: 2**16].decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ("a page" if text.lstrip().startswith("<") else text), ""
    found = next((found[name] for name in ("error", "detail", "message") if found.get(name)), found) if isinstance(
        found, dict) else found  # fmt: skip
    if isinstance(found, dict):
        codes = [str(found.get(name)) for name in ("code", "type")]
        code = "insufficient_quota" if "insufficient_quota" in codes else ""
        return str(found.get("message") or json.dumps(found)), code
    return str(found), ""


def read_vectors(content: Any, count: int, width: int, url: str, key: str = "") -> Answer:
    """Return the vectors of a reply's JSON in the order of their index.

    Raises:
        UserError: there are more or fewer than `count`, an index is missing or doubled, or a vector has another width,
            a value that is not finite, or only zeros.
    """

    def refuse(what: str) -> UserError:
        return UserError(f"{url}: {what}", CHECK)

    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        words = hide(_find_message(json.dumps(content).encode())[0], key)[:SHOWN]
        raise refuse(f"the reply has no list of data: {words}")
    if len(data) != count:
        raise refuse(f"{len(data)} vectors for {count} texts")
    places: list[Any] = [item.get("index") if isinstance(item, dict) else None for item in data]
    if missing := [place for place in places if type(place) is not int]:
        raise refuse(f"a vector has the index {missing[0]!r}, which says not whose it is")
    if sorted(places) != list(range(count)):
        raise refuse(f"the indices of {count} vectors are not 0 to {count - 1}, each once")
    vectors = [_decode(item.get("embedding"), refuse) for item in data]
    widths = sorted({len(vector) for vector in vectors} | ({width} if width else set()))
    if len(widths) > 1 or widths == [0]:
        raise refuse(f"vectors of {' and '.join(map(str, widths))} numbers, which should be of one width")
    out = np.empty((count, widths[0]), np.float32)
    with np.errstate(over="ignore"):  # infinite then, which is refused
        out[places] = vectors
    if not np.isfinite(out).all():
        raise refuse("a vector has a value that is not finite")
    if not out.any(1).all():
        raise refuse("a vector is all zeros")
    return Answer(out, _count_tokens(content))


def _decode(embedding: Any, refuse: Any) -> np.ndarray:
    """Return a vector: from a list of numbers, or from little-endian float32 in base64."""
    try:
        if isinstance(embedding, str):
            return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
        vector = np.array(embedding)
    except (ValueError, binascii.Error) as e:
        raise refuse("an embedding is damaged") from e
    if vector.dtype.kind not in "fi" or vector.ndim != 1:
        raise refuse("an embedding is not a list of numbers")
    return vector


def _count_tokens(content: Mapping[str, Any]) -> int | None:
    usage = content.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    return tokens if type(tokens) is int and tokens >= 0 else None
