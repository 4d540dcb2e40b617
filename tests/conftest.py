"""What all tests share: eight simulated devices, a compilation cache for the session, the repository on the path."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

# Most of the suite's time is compiling, for programs that run once: so, little optimised code, here and in processes
# that tests start. What one compiles the next one reads: a cold suite compiles each program once over all its workers.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)
# On a busy machine eight simulated devices meet late; XLA's default is to abort the process after 40 seconds.
PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
FLAGS = (os.environ.get("XLA_FLAGS", ""), QUICK, "--xla_cpu_parallel_codegen_split_count=1", PATIENT)
os.environ["XLA_FLAGS"] = " ".join(FLAGS).strip()
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# XLA runs programs in a pool of as many threads as there are cores or devices, and a device that waits for the others
# keeps its thread. Two programs at once can fill the pool of eight with waiting devices, and then nobody ever arrives:
# on a busy machine the training of CLIP stood still about every second time. NPROC is the size of the pool.
os.environ["NPROC"] = "64"

# Tests start the program about a hundred times: without bytecode each start compiles the whole package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads absl flags


# The longest files, in this order: begun first, so that no worker is left alone with one at the end.
LONGEST = (
    "tests/whole", "tests/test_main.py", "tests/training", "tests/stages", "tests/tuning", "tests/objectives",
    "tests/reporting", "tests/spectrum", "tests/models", "tests/prepare", "tests/processes", "tests/launch",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files of the suite: the longest first, the others as they were."""

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(ROOT).as_posix()
        return next((i for i, start in enumerate(LONGEST) if path.startswith(start)), len(LONGEST))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture
def mesh():
    """The mesh of all simulated devices."""
    from nml_jax import runtime

    return runtime.make_mesh()


@pytest.fixture
def shared_data() -> Path:
    """Small real datasets beside the checkout, where they are there."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no {os.path.relpath(path, ROOT)}: it is not part of the project")
    return path
