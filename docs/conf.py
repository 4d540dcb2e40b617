"""How Sphinx builds these pages: `make docs`. Nothing is fetched, and every warning is an error."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import nml_jax  # noqa: E402

project = "nml_jax"
author = "the authors of nml_jax"
copyright = "the authors of nml_jax, Apache-2.0"
version = release = nml_jax.__version__

extensions = ["extensions", "myst_nb", "sphinx.ext.napoleon"]
exclude_patterns = ["**.ipynb_checkpoints"]
html_math_renderer = "mathml"

myst_enable_extensions = ["attrs_inline", "dollarmath"]
myst_heading_anchors = 3

# The notebooks run, once for each change of their source. `make docs` says where what they printed is kept,
# and sets NML_RUN to a run that they open.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 200
nb_merge_streams = True

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes and units stand in the docstrings
napoleon_numpy_docstring = False

html_theme = "sphinx_book_theme"
html_title = "nml_jax"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
