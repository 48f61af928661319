"""How Sphinx makes the site; `make site` stages the sources and calls it (build.py)."""

import re
import tomllib
from pathlib import Path

import mbls

project = "mbls"
author = "the mbls contributors"
version = release = mbls.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
]

# The notebooks' outputs are those that are stored in them, and the tests hold them to the code.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
# Source files are linked as such: they are copied beside the page.
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
toc_object_entries_show_parents = "hide"
napoleon_custom_sections = [("Shape", "notes_style")]
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "mbls"
html_static_path = ["static", "_build/static"]
html_favicon = "static/favicon.svg"
html_css_files = ["mbls.css"]
html_js_files = [(name, {"defer": "defer"}) for name in ("explorers.js", "predictions.js", "print.js")]
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": True,
    "use_fullscreen_button": False,
}
# Buttons that open a page's notebook in Colab and Binder; left out while no address is set.
settings = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
if repository := settings["project"].get("urls", {}).get("Repository"):
    html_theme_options |= {
        "repository_url": repository,
        "repository_branch": "main",
        "use_repository_button": True,
        "launch_buttons": {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
            "notebook_interface": "jupyterlab",
        },
    }
html_copy_source = True
html_show_sourcelink = False
html_show_sphinx = False


def _escape_stars(app, what, name, obj, options, lines):
    """Shapes such as (B, *spatial) are no emphasis."""
    lines[:] = [
        re.sub(r"(?<![\\*\w])(\*{1,2})(?=[a-z_]+\b(?!\*))", lambda star: "\\" + "\\".join(star[1]), line)
        for line in lines
    ]


def setup(app):
    app.connect("autodoc-process-docstring", _escape_stars, priority=1)
