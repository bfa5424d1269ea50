"""Sphinx builds the documentation from this folder and from the docstrings: `make docs`."""

from __future__ import annotations

import paraminit_ext

project = "paraminit_ext"
author = "The paraminit_ext authors"
copyright = author  # noqa: A001
version = release = paraminit_ext.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # a package whose name has hyphens
]
exclude_patterns = ["_build"]
nitpicky = True
# Types of torch and of the standard library, whose pages are not at hand while this is built.
# Types of fields that are not described on a page of their own.
nitpick_ignore = [
    ("py:class", f"paraminit_ext.models.{name}")
    for name in ("deferred._Module", "compare.Values", "steps.Step", "steps.Draw", "layout.Geometry")
]
nitpick_ignore_regex = [("py:.*", r"(torch|collections|os|pathlib|typing|contextlib|numpy|matplotlib)\..*")]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings: list[str] = []

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"paraminit_ext {release}"
html_static_path: list[str] = []
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0969da", "color-brand-content": "#0969da"},
    "dark_css_variables": {"color-brand-primary": "#58a6ff", "color-brand-content": "#58a6ff"},
}

linkcheck_timeout = 20
