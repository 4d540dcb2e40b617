"""The import floors and the nevers of the design, by AST."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "nml_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Floor of every module or folder; imports go down, or stay within a folder.
FLOORS = {
    "main": 8,
    "stages": 7,
    "reporting": 6,
    "classifier": 5, "diagnosis": 5,
    "training": 4, "evals": 3,
    "objectives": 2, "models": 2, "data": 2,
    "noise": 1, "spectrum": 1, "runtime": 1, "log": 1, "settings": 1, "goodput": 2,
    "processes": 0,
    "stopping": 0,
    "errors": -1,
    "__init__": 9,
}  # fmt: skip

# A library and the only places that may import it.
WALLS = {
    "flax": ("models/",),
    "grain": ("data/",),
    "tensorflow_datasets": ("data/",),
    "cv2": ("data/",),
    "PIL": ("data/",),
    "simplejpeg": ("data/",),
    "orbax": ("training/checkpoint.py",),
    "matplotlib": ("reporting/figures.py",),
    "torch": (),
    "tensorflow": (),
    "pickle": (),
}


def imports(tree: ast.AST) -> list[str]:
    """Dotted names of everything imported anywhere in a module."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def violations(source: str, part: str, where: str) -> list[str]:
    """What a module's source does against the design."""
    tree, out = ast.parse(source), []
    for name in imports(tree):
        root, *rest = name.split(".")
        if root == "nml_jax" and rest and rest[0] in FLOORS and rest[0] != part and FLOORS[rest[0]] >= FLOORS[part]:
            out.append(f"imports {name}, which is not below {part}")
        if root in WALLS and not any(where.startswith(place) for place in WALLS[root]):
            out.append(f"imports {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called.split(".")[-1] in ("pmap", "pjit", "eval"):
                out.append(f"calls {called}")
            if called.endswith("make_mesh") and called.startswith("jax") and "axis_types" not in words:
                out.append("calls jax.make_mesh without axis_types")
            if "axis_name" in words or words.get("allow_pickle") == "True":
                out.append(f"calls {called} with {words}")
            if (
                called.startswith(("np.random.", "numpy.random."))
                and "(" not in called
                and not called.endswith(("default_rng", "Generator", "SeedSequence", "PCG64", "Philox"))
            ):
                out.append(f"calls {called}: a global RNG")
            if called == "config.get" or called.endswith("config.get"):
                out.append(f"calls {called}: defaults stand in configs/common.py")
            if called.endswith("extractall"):
                out.append(f"calls {called}")
            if called.endswith("config.update") and node.args and "x64" in ast.unparse(node.args[0]):
                out.append("sets jax_enable_x64 globally")
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(n, ast.Pass) for n in node.body)
            if node.type is None or silent:
                out.append(f"line {node.lineno}: silent or bare except")
        if isinstance(node, ast.With) and any(ast.unparse(item.context_expr) == "mesh" for item in node.items):
            out.append("uses `with mesh:`")
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_floors_and_nevers(path: Path):
    where = path.relative_to(PACKAGE).as_posix()
    assert violations(path.read_text("utf-8"), part_of(path), where) == []


@pytest.mark.parametrize(
    "source",
    [
        "import nml_jax.stages.tune",
        "from nml_jax import main",
        "import flax.linen as nn",
        "from orbax.checkpoint import v1",
        "jax.pmap(f)",
        "jax.make_mesh((1,), ('data',))",
        "np.random.seed(0)",
        "np.load(p, allow_pickle=True)",
        "config.get('x', 1)",
        "try:\n    f()\nexcept ValueError:\n    pass",
        "with mesh:\n    f()",
        "lax.psum(x, axis_name='data')",
        "jax.config.update('jax_enable_x64', True)",
    ],
)
def test_each_never_is_noticed(source: str):
    assert violations(source, "data", "training/loop.py")


def test_the_loop_stays_readable():
    assert len((PACKAGE / "training" / "loop.py").read_text().splitlines()) < 220


def test_every_part_has_a_floor():
    assert {part_of(path) for path in FILES} == set(FLOORS)
