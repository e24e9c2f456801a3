"""How Sphinx builds the pages and the API reference: CONTRIBUTING.md has the command."""

from __future__ import annotations

import re
from typing import Any

import flowreg_gpu

project = "flowreg_gpu"
author = "flowreg_gpu developers"
release = version = flowreg_gpu.__version__

extensions = ["sphinx.ext.autodoc", "numpydoc", "myst_parser"]
root_doc = "README"
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "sidebar_width": "260px", "description": "Motion correction of movies"}
html_show_sphinx = html_show_copyright = False

myst_heading_anchors = 3
default_role = "code"  # single backticks in docstrings: names of parameters, mostly
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

# References are checked (-n) within this package. Types of NumPy and of the standard library cannot be looked up
# without a network, and names that are private, or stand for themselves in annotations, have no page.
nitpick_ignore_regex = [
    ("py:.*", r"(numpy|np|collections|abc|os|types|pathlib|typing)\..*"),
    ("py:.*", r".*\._\w+"),
    ("py:.*", r"(NDArray|DTypeLike|ArrayLike|Tables|Any|Path|TracebackType|Callable|Mapping|Sequence)"),
]

# Links to files of the repository that are no pages; tests/docs/test_pages.py checks all links, these too.
suppress_warnings = ["myst.xref_missing"]


def add_contents(app: Any, docname: str, source: list[str]) -> None:
    """Make the table of contents from the links of the front page, so that there is one list of pages."""
    if docname == root_doc:
        pages = re.findall(r"\]\(((?!\.\.)[\w/-]+)\.(?:md|rst)\)", source[0])
        source[0] += "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
