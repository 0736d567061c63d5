"""The site: `sphinx-build -W docs build/site`, which needs no network."""

import os
from importlib import metadata

project = "jlora"
author = "The jlora authors"
copyright = "The jlora authors"
release = metadata.version("jlora")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx"]
exclude_patterns = []
html_theme = "sphinx_book_theme"
html_title = f"jlora {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navbar_persistent": []}  # its search stands in the sidebar as well

default_role = "literal"  # a name in single quotes of ours is code
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
highlight_language = "text"
smartquotes = False  # what is said stays as it is written, --flags above all
autodoc_member_order = "bysource"
napoleon_google_docstring = True
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]
nb_execution_mode = "off"  # its outputs are stored; CI's examples step runs it

# Links into other projects' pages, for those who build with a network: JLORA_DOCS_LINKS=1.
links = {
    "jax": ("https://docs.jax.dev/en/latest/", None),
    "optax": ("https://optax.readthedocs.io/en/latest/", None),
}
intersphinx_mapping = links if os.environ.get("JLORA_DOCS_LINKS") else {}


def whole_sentence(app, what, name, thing, options, lines):
    """Keep napoleon from reading "rows: a file, a folder" below an attribute as its type."""
    if what in ("attribute", "property", "data"):
        lines[:0] = ["..", ""]  # an empty comment: the first line alone is read so


def setup(app):
    """Have Sphinx call it."""
    app.connect("autodoc-process-docstring", whole_sentence, priority=400)  # napoleon's is 500
