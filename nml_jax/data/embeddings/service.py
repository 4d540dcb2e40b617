"""The address of an embeddings service, how the vectors of its texts are named, and the key that it asks for."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from nml_jax import ranges
from nml_jax.errors import UserError

PAIRS = ("join", "compare")  # what becomes of two texts: one with a line feed between them | features of both vectors
OPENAI = ("api.openai.com", "OPENAI_API_KEY")  # the one host whose key is found without being named
SECRET = re.compile(r"key|token|secret|sig(nature)?$|password", re.IGNORECASE)  # names of a query's values
NO_KEY = "name the environment variable that holds the key with --config.runtime.api.key=NAME"


class Service(NamedTuple):
    """All that the vector of a text depends on, besides the text.

    Fields:
        url: the endpoint that requests go to.
        model: the service's name of the model.
        dimensions: numbers per vector that are asked for; 0: as the service likes.
    """

    url: str
    model: str
    dimensions: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of the fields, hexadecimal."""
        return hashlib.sha256(self._prefix()).hexdigest()

    def hash_texts(self, texts: list[str]) -> list[bytes]:
        """Return the SHA-256, 32 bytes, of the fields together with each text."""
        start, out = hashlib.sha256(self._prefix()), []
        for text in texts:
            own = start.copy()
            own.update(text.encode("utf-8", "surrogatepass"))
            out.append(own.digest())
        return out

    def _prefix(self) -> bytes:
        return json.dumps(list(self)).encode() + b"\n"  # JSON has no line feed, so the text begins after it


def make_service(url: str, model: str, dimensions: int) -> Service:
    """Return the service at an address. "/embeddings" is added unless the path ends so.

    Raises:
        UserError: the address or the model is missing, or the address is not one of http or https, or holds a secret.
    """
    if not url or not model:
        name = "model" if url else "url"
        raise UserError(f"api.{name} is empty", f"set --config.api.{name}, as configs/text_api.py says")
    try:
        parts = urlsplit(url.strip())
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or not url.strip().isprintable() or " " in url.strip():
        raise UserError(
            "api.url is not the address of a service", "give one such as https://api.openai.com/v1, with http or https"
        )
    if parts.username or parts.password or any(SECRET.search(name) for name, _ in parse_qsl(parts.query, True)):
        raise UserError("api.url holds a name, a password or a key", f"take it out, and {NO_KEY}")
    path = parts.path.rstrip("/")
    path = path if path.endswith("/embeddings") else f"{path}/embeddings"
    return Service(urlunsplit((parts.scheme, parts.netloc.lower(), path, parts.query, "")), model, dimensions)


def find_service(config: Any) -> Service:
    """Return the service that a config names; see `make_service`."""
    return make_service(config.api.url, config.api.model, config.api.dimensions)


def describe_features(config: Any) -> dict[str, Any]:
    """Return, as JSON values, all that the features of a text depend on besides the text."""
    return {"kind": "api", **find_service(config)._asdict(), "pairs": config.api.pairs}


def check_ranges(config: Any) -> None:
    """Raise UserError if a value of the sections `api` and `runtime.api` is out of range."""
    api, how = config.api, config.runtime.api
    check_key_name(how.key)
    ranges.require_at_least(0, "api", api, "dimensions")
    ranges.require_at_least(1, "runtime.api", how, "batch", "batch_tokens", "in_flight")
    at_least_0 = ("requests_per_minute", "tokens_per_minute", "retries", "pause", "longest_pause", "price")
    ranges.require_at_least(0, "runtime.api", how, *at_least_0)
    ranges.require_positive("runtime.api", how, "timeout")
    if how.encoding not in ("base64", "float"):
        raise UserError(f"runtime.api.encoding is {how.encoding!r}", "give base64 or float")
    if api.pairs not in PAIRS:
        raise UserError(f"api.pairs is {api.pairs!r}", f"give {' or '.join(PAIRS)}")
    if config.model.name == "api":
        find_service(config)


def read_key(name: str, url: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the key in an environment variable; "" if none is named, except for OpenAI's own host.

    The variable's name is not shown either: the key itself may have been given in its place.

    Raises:
        UserError: `name` cannot be a variable's, or the variable is not set, or holds no key.
    """
    host, usual = OPENAI
    name = name or (usual if urlsplit(url).hostname == host else "")
    if not name:
        return ""
    check_key_name(name)
    shown = usual if name == usual else "the environment variable that runtime.api.key names"
    key = environment.get(name, "").strip()
    if not key:
        raise UserError(f"{shown} is not set", f"export it with the key of {urlsplit(url).hostname}, or {NO_KEY}")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UserError(f"{shown} holds blanks or characters that a key cannot have", "export it again")
    return key


def check_key_name(name: str) -> None:
    """Raise UserError unless a text can be the name of an environment variable. It is not shown."""
    if name and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise UserError(
            "runtime.api.key is not the name of an environment variable (it is not shown, as it may be a key)",
            "export MY_KEY=..., and set --config.runtime.api.key=MY_KEY: the name, in capitals, not the key",
        )


def hide(text: str, key: str) -> str:
    """Return a text on one line, without the key."""
    return " ".join((text.replace(key, "(key)") if key else text).split())
