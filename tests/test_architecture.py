"""The import floors and the nevers of the design, by AST."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "nml_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# The floors of the house, from the top: a module imports from lower floors, and from its own folder.
FLOORS = [
    ("__init__",),
    ("main", "prepare.__main__", "export.__main__", "predict", "report", "suspects", "tokenizer"),
    ("stages", "export"),
    ("reporting", "assembly", "prepare"),
    ("tuning", "tasks"),
    ("training", "evals", "data"),
    ("models", "runtime", "runs"),
    ("objectives", "processes", "noise", "spectrum", "inputs"),
    ("settings",),
    ("ranges", "stored", "boxes"),
    ("errors", "console", "hashes", "spreadsheet", "arithmetic"),
]
FLOOR = {part: len(FLOORS) - i for i, parts in enumerate(FLOORS) for part in parts}

# A library and the only places that may import it.
WALLS = {
    "flax": ("models/",),
    "grain": ("data/",),
    "tensorflow_datasets": ("data/", "prepare/"),
    "cv2": ("data/", "prepare/"),
    "PIL": ("data/", "prepare/"),
    "simplejpeg": ("data/", "prepare/"),
    "orbax": ("training/checkpoint.py",),
    "matplotlib": ("reporting/figures.py", "reporting/studies/draw.py"),
    "pandas": ("reporting/",),
    "pycocotools": ("evals/detection.py", "data/images/masks.py"),
    "jinja2": ("reporting/",),
    "tokenizers": ("data/text/",),
    "urllib3": ("data/embeddings/",),
    "orjson": ("data/embeddings/",),
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


def part_of(name: str) -> str:
    """The part of the house that a dotted name below nml_jax belongs to; the name itself if it is none."""
    return next((part for part in (".".join(name.split(".")[:2]), name.split(".")[0]) if part in FLOOR), name)


def module_of(path: Path) -> str:
    """The dotted name below nml_jax of a file."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported_modules(path: Path) -> set[str]:
    """The modules of the package that a file imports at all, as dotted names below nml_jax."""
    known = {module_of(file).removesuffix(".__init__") for file in FILES}
    names = [name.removeprefix("nml_jax.") for name in imports(ast.parse(path.read_text("utf-8"))) if "nml_jax" in name]
    return {name if name in known else name.rpartition(".")[0] for name in names} & known


def violations(source: str, part: str, where: str) -> list[str]:
    """What a module's source does against the design."""
    tree, out = ast.parse(source), []
    for name in imports(tree):
        root, *rest = name.split(".")
        other = part_of(".".join(rest))
        if root == "nml_jax" and other in FLOOR and other != part and FLOOR[other] >= FLOOR[part]:
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
    assert violations(path.read_text("utf-8"), part_of(module_of(path)), where) == []


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
    assert {part_of(module_of(path)) for path in FILES} == set(FLOOR)


def find_circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (strongly connected components)."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for other in edges.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen

    reach = {module: reached(module) for module in edges}
    circles = {tuple(sorted(n for n in reach[m] if m in reach[n])) for m in edges if m in reach[m]}
    return [list(circle) for circle in sorted(circles)]


def test_no_two_modules_import_each_other():
    edges = {module_of(path).removesuffix(".__init__"): imported_modules(path) for path in FILES}
    edges = {module: others - {module} for module, others in edges.items() if module != "__init__"}
    assert find_circles(edges) == []
    assert find_circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_folder_holds_more_than_fifteen_files():
    root = PACKAGE.parent
    folders = {path.parent for top in ("nml_jax", "tests") for path in (root / top).rglob("*.py")}
    crowded = {str(f.relative_to(root)): n for f in folders if (n := len(list(f.glob("*.py")))) > 15}
    assert crowded == {}


def test_outside_runs_nobody_names_the_files_of_results():
    named = [path.relative_to(PACKAGE).as_posix() for path in FILES if path.parent.name != "runs" for node in
             ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)
             and node.value in ("rows.jsonl", "run.json")]  # fmt: skip
    assert named == []
