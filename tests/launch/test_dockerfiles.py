"""Test the Dockerfiles without building them: copied files exist, installed packages are pinned."""

import re
import shlex

import pytest

from tests.launch.shell import LAUNCH, ROOT

FILES = sorted(LAUNCH.glob("docker/Dockerfile.*"))


def instructions(text: str) -> list[tuple[str, str]]:
    """Split a Dockerfile to (instruction, arguments), without comments and with continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", text))
    pairs = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(name, rest) for name, rest in pairs]


def test_there_are_two():
    assert [path.suffix for path in FILES] == [".cuda", ".tpu"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_dockerfile(path):
    steps = instructions(path.read_text("utf-8"))
    names = [name for name, _ in steps]
    known = {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
    assert set(names) <= known
    assert names[0] == "FROM"
    assert not re.search(r":latest$", dict(steps)["FROM"])
    copied = {source for name, rest in steps if name == "COPY" for source in shlex.split(rest)[:-1]}
    assert all((ROOT / source).exists() for source in copied), copied
    assert {"nml_jax", "configs", "constraints.txt", "setup.py"} <= copied
    # libraries come before the code, so that an edit does not install them again; the last user is not root
    install = next(i for i, (name, rest) in enumerate(steps) if name == "RUN" and "pip install" in rest)
    code = next(i for i, (name, rest) in enumerate(steps) if name == "COPY" and rest.startswith("nml_jax "))
    assert install < code < names.index("USER") < names.index("ENTRYPOINT")
    assert dict(steps)["USER"] not in ("root", "0")
    words = shlex.split(steps[install][1])
    assert words[words.index("-c") + 1] == "constraints.txt"
    assert {"tpu": "jax[tpu]", "cuda": "jax[cuda12]"}[path.suffix[1:]] in words
    assert steps[code + 1 : code + 3] == [("ARG", 'REVISION=""'), ("RUN", 'echo "$REVISION" > REVISION')]
    assert dict(steps)["ENTRYPOINT"] == '["python", "-m", "nml_jax.main"]'
