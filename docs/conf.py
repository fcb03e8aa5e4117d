"""Documentation: pages in Markdown, the API from docstrings, tables from the registry."""

from __future__ import annotations

import sys
from pathlib import Path

import vit_pytorch

sys.path.insert(0, str(Path(__file__).parent))

project = "vit_pytorch"
author = copyright = "the proven-vit maintainers"
release = version = vit_pytorch.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "model_tables",
    "paper_groups",
    "proof_tables",
    "command_reference",
    "figures",
    "page_html",
    "python_reference",
]
html_theme = "furo"
html_title = "vit_pytorch"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
exclude_patterns = ["_build", "_static"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

apidoc_modules = [
    {
        "path": "../vit_pytorch",
        "destination": "api",
        "separate_modules": True,
        "module_first": True,
        "automodule_options": {"members", "show-inheritance"},
    }
]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# A class that a package hands on has two names.
suppress_warnings = ["ref.python"]
# Single backquotes are code in the docstrings.
default_role = "code"
