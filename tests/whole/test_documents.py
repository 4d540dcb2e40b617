"""The documents tell the truth: commands and Python run, links lead somewhere, no config key is left out."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from ml_collections import ConfigDict
from PIL import Image

import nml_jax
from configs import common
from tests.scenes import clip_experiment, digits_experiment, leaving, programs
from tests.scenes.documents import DOCS, ELSEWHERE, PAGES, ROOT, anchors, blocks, commands, launches, prose

COMMANDS = [line for line in commands() if not launches(line) and not line.startswith(ELSEWHERE)]
INSTALLS = [line for line in COMMANDS if line.startswith("pip ")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder that looks like a checkout, with photos in it, where commands may write."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "Makefile", "setup.py", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "runs").mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for name in ("ant", "bee"):
            (folder / "my_photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "my_photos" / split / name / f"{i}.jpg")
    for name, seed in (("train", 0), ("test", 1), ("other", 2)):
        draw = np.random.default_rng(seed)
        labels = np.arange(60) % 3
        np.savez(folder / f"{name}.npz", features=draw.normal(size=(60, 8)) + 4 * np.eye(3, 8)[labels], labels=labels)
    words = ["".join(word) for word in rng.choice(list("abcdefghijklmnop"), (400, 5))]
    clip_experiment.write_tar(folder / "my_pairs" / "00000.tar", [
        {"png": clip_experiment.image("red", "square", rng), "txt": " ".join(rng.choice(words, 20)).encode()}
        for _ in range(48)
    ])  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def digits_run(checkout: Path) -> None:
    """The run runs/digits/noise=0.3,seed=0 of the pages."""
    digits_experiment.launch(checkout / "runs" / "digits", stages=("pretrain",))


@pytest.fixture(scope="module")
def vit_run(checkout: Path) -> None:
    """The run runs/image_folder_vit/noise=0,seed=0 of the pages."""
    leaving.make_run(checkout / "runs" / "image_folder_vit" / "noise=0,seed=0", **leaving.TINY["vit"])


@pytest.fixture(scope="module")
def features_run(checkout: Path) -> None:
    """The run runs/features/seed=0 of the pages."""
    from tests.stages.test_features import launch

    files = {f"features.{key}": str(checkout / f"{key}.npz") for key in ("train", "test")}
    launch(checkout / "runs" / "features", **files, **{"tune.epochs": 1, "tune.methods": ("nmtune",)})


def test_there_are_commands():
    assert not any("@@" in prose(page) for page in PAGES)
    assert len(COMMANDS) >= 15
    assert {"make demo", "make test"} <= set(COMMANDS)


def tried(line: str) -> str:
    """What is run in place of a command: make is asked what it would do, main does a dry run."""
    if line.startswith("make "):
        return f"{line} -n"
    if line.startswith("python -m nml_jax.main ") and "--dry_run" not in line:
        return f"{line} --dry_run"
    return line


# A dry run traces every block, ten seconds for a model of full size. One block of each kind shows whether it runs.
ONE_BLOCK = {
    "vitb16_in1k.py": ("--config.model.depth=1",),
    "clip_vitb16.py": ("--config.model.depth=1", "--config.model.text_depth=1"),
    "clip_r50.py": ("--config.model.blocks=(1,1,1,1)", "--config.model.text_depth=1"),
    "resnet50_in1k.py": ("--config.model.blocks=(1,1,1,1)",),
}


@pytest.mark.parametrize("line", dict.fromkeys(tried(line) for line in COMMANDS if line not in INSTALLS))
@pytest.mark.parametrize("size", ["one block", pytest.param("full", marks=pytest.mark.slow)])
def test_command(line: str, size: str, checkout: Path, request: pytest.FixtureRequest):
    smaller = [flag for name, flags in ONE_BLOCK.items() if name in line for flag in flags]
    if size == "full" and not smaller:
        pytest.skip("has no larger size")
    if size == "one block" and "--dry_run" in line:
        line = shlex.join([*shlex.split(line), *smaller])
    words = shlex.split(line)
    if words[:3] == ["python", "-m", "nml_jax.report"]:
        request.getfixturevalue("digits_run")
    if words[:3] == ["python", "-m", "nml_jax.export"] and "digits" in line:
        request.getfixturevalue("digits_run")
    if "image_folder_vit/" in line:
        request.getfixturevalue("vit_run")
    elif words[:3] == ["python", "-m", "nml_jax.predict"]:
        request.getfixturevalue("features_run")
    if words[0] == "python":
        words[0] = sys.executable
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    run = programs.run if words[1] == "-m" else subprocess.run
    done = run(words, cwd=checkout, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [text for _, text in blocks("python")])
def test_python(code: str, checkout: Path, monkeypatch, request: pytest.FixtureRequest):
    if "runs/digits/" in code:
        request.getfixturevalue("digits_run")
    monkeypatch.chdir(checkout)
    exec(compile(code, "a document", "exec"), {})


# ---- installing ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def extras() -> set[str]:
    text = (ROOT / "setup.py").read_text("utf-8")
    return set(re.findall(r'^        "(\w+)": \[', text, re.MULTILINE))


def test_installs_name_extras_that_exist(extras: set[str]):
    shown = {extra for line in INSTALLS for extra in re.findall(r"\[(\w+)\]", line)}
    assert shown == {"cuda", "tpu"} <= extras
    for line in INSTALLS:
        assert line.startswith("pip install -c constraints.txt -e "), line


def test_every_extra_is_explained(extras: set[str]):
    text = (DOCS / "get_started.md").read_text("utf-8")
    assert extras == {name for name in extras if f"`{name}`" in text}


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == nml_jax.__version__
    assert citation["license"] == "Apache-2.0"


# ---- pages and links -------------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text("utf-8")
    trees = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    listed = {line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")}
    pages = [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    assert listed | {"index"} == {page.relative_to(DOCS).with_suffix("").as_posix() for page in pages}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path, keys: Mapping[str, Any]):
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        generated = {key.replace(".", "-") for key in keys} if file.name == "config.md" else set()
        assert not anchor or anchor in anchors(file) | generated | {key.rpartition("-")[0] for key in generated}, target


# ---- how to add something -------------------------------------------------------------------------------------------

DIFFS = [text for _, text in blocks("diff")]


@pytest.mark.parametrize("diff", DIFFS, ids=lambda diff: re.findall(r"b/nml_jax/(.*)\.py", diff)[-1])
def test_a_diff_fits_the_code(diff: str):
    words = ["git", "apply", "--check", "-"]
    done = subprocess.run(words, input=diff, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_what_the_diffs_add_works(tmp_path: Path):
    for name in ("nml_jax", "configs", "launch", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for diff in DIFFS:
        subprocess.run(["git", "apply", "-"], input=diff, cwd=tmp_path, text=True, check=True, timeout=60)
    code = (
        "from pathlib import Path; from tests.scenes.digits_experiment import launch;"
        "added = {'objective.name': 'brier', 'model.name': 'perceptron', 'model.width': None, 'model.blocks': None,"
        "         'noise_kind': 'neighbour', 'tune.methods': ('linear', 'drift')};"
        "launch(Path('runs'), **added); launch(Path('other'), dry_run=True, **{'downstream.tasks': ('stl10',)});"
        "from tests.scenes import detect_experiment;"
        "detect_experiment.launch(Path('boxes'), **{'detect.systems': ('centre',), 'model.blocks': (1,) * 4})"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Drift" in (tmp_path / "runs" / "report.html").read_text("utf-8")
    assert "Centres" in (tmp_path / "boxes" / "report.html").read_text("utf-8")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    general = ("models/detection", "whole/test_detection_meshes.py", "whole/test_platforms.py")
    words = ["-q", "-m", "slow or not slow", "-k", "centre and not centred", *(f"tests/{name}" for name in general)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900
    )
    assert "7 passed" in done.stdout, done.stdout


# ---- config keys -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config_keys() -> ModuleType:
    if str(DOCS) not in sys.path:
        sys.path.append(str(DOCS))
    return importlib.import_module("config_keys")


@pytest.fixture(scope="module")
def keys() -> Mapping[str, Any]:
    return dict(flat(common.get_config()))


def flat(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_every_key_is_documented(config_keys: ModuleType, keys: Mapping[str, Any]):
    shown = [key for section in config_keys.read_keys(config_keys.COMMON.read_text("utf-8")) for key in section.keys]
    assert [key.name for key in shown] == [*dict.fromkeys(key.name for key in shown)]
    assert {key.name for key in shown} == set(keys)
    assert [key.name for key in shown if not (key.meaning and key.default)] == []


def test_every_key_that_is_named_exists(keys: Mapping[str, Any]):
    sections = {key.rpartition(".")[0] for key in keys} - {""}
    roots = "|".join(sorted({section.split(".")[0] for section in sections}))
    for page in PAGES:
        text = page.read_text("utf-8")
        named = re.findall(r"--config\.([\w.]+)=", text) + re.findall(rf"`((?:{roots})\.[\w.]+\w)`", text)
        for name in named:
            known = name in {*keys, *sections} or name.startswith("sweep.") or name == "key"
            assert known or name.endswith(".safetensors"), f"{page}: {name}"


def test_comments_stand_in_the_table_as_they_are(config_keys: ModuleType):
    source = (
        "def get_config():\n"
        "    config = ConfigDict()\n"
        "    # Above.\n"
        "    config.rate = 0.5  # a share | of *all*\n"
        "\n"
        "    # A section.\n"
        "    part = config.part = ConfigDict()\n"
        "    part.size = placeholder(int)  # None: as it is\n"
        "    part.inner = ConfigDict()  # each\n"
        "    part.inner.on = True  # whether\n"
    )
    top, part, inner = config_keys.read_keys(source)
    assert top.keys == [("rate", "0.5", "Above. a share | of *all*")]
    assert (part.name, part.meaning) == ("part", "A section.")
    assert part.keys == [("part.size", "None (int)", "None: as it is")]
    assert (inner.meaning, inner.keys) == ("each", [("part.inner.on", "True", "whether")])


# ---- the program -----------------------------------------------------------------------------------------------------


def test_help_is_complete_and_imports_nothing_heavy():
    code = (
        "import sys; from nml_jax import main; main.run(['main', '--help']);"
        "assert not {'jax', 'numpy', 'flax', 'tensorflow_datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for flag in ("--config", "--workdir", "--[no]dry_run", "--force"):
        assert flag in done.stdout


@pytest.mark.slow
def test_make_docs(tmp_path: Path):
    """Every page builds without a warning, the notebooks run, and no page needs anything from elsewhere."""
    program = Path(sys.executable).parent
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    words = ["make", "docs", "-o", ".venv/.installed-docs", f"BIN={program}", f"BUILD={tmp_path}"]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((tmp_path / "html").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text("utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//', text), page
        assert not re.findall(r'<link[^>]+href="(?:https?:)?//', text), page
    assert "SVE" in (tmp_path / "html" / "notebooks" / "reload_checkpoint.html").read_text("utf-8")


@pytest.mark.slow
def test_a_wheel_runs_anywhere(tmp_path: Path):
    """The wheel carries the configs, and a config in the working directory comes first."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tmp_path / "site")}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", ROOT, source], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, source], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True, timeout=300)
    (tmp_path / "here" / "configs").mkdir(parents=True)
    own = "from configs import digits\n\ndef get_config():\n    return digits.get_config()\n"
    (tmp_path / "here" / "configs" / "mine.py").write_text(own)
    for config in ("digits", "mine"):
        line = ["-m", "nml_jax.main", f"--config=configs/{config}.py", "--config.noise=0.05", "--dry_run"]
        done = subprocess.run(
            [sys.executable, *line], cwd=tmp_path / "here", env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert "noise=0.05,seed=2" in done.stdout
