"""The configuration of the site: Sphinx, and sphinx-gallery to run the tutorials."""

import importlib.util
import sys
from pathlib import Path

import gluon_kl

from docutils import nodes

sys.path.insert(0, str(Path(__file__).parent))  # for reading_order and downloads

project = "gluon_kl"
author = "the gluon_kl authors"
copyright = "the gluon_kl authors, under the Apache License 2.0"
version = release = gluon_kl.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",  # numpydoc leaves out a section that it does not know, such as Inputs
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "downloads",
    "myst_parser",  # for CHANGELOG.md
]
exclude_patterns = ["_build", "gallery/backreferences", "templates"]
templates_path = ["templates"]
nitpick_ignore_regex = [  # their inventories would have to be downloaded
    (r"py:.*", r"(mxnet|mx|numpy|np)\..*"),
]

autosummary_generate = True
toc_object_entries_show_parents = "hide"  # with its class in front, a method is cut off
autodoc_typehints = "none"  # the docstrings name the types
napoleon_google_docstring = False
napoleon_use_param = napoleon_use_rtype = False
napoleon_custom_sections = [("Inputs", "params_style"), ("Outputs", "params_style")]

# The site contains everything that it needs. From MathJax, which comes in a Python package, this is one file of 24 MB,
# because its SVG needs no fonts. (As a Sphinx extension, that package would copy all of its fonts.)
mathjax_files = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
mathjax_path = "tex-svg.js"
mathjax3_config = {"svg": {"fontCache": "local"}}

sphinx_gallery_conf = {
    "examples_dirs": "../tutorials",
    "gallery_dirs": "gallery",
    "filename_pattern": "",
    "ignore_pattern": r"(plots|launch)\.py",
    "within_subsection_order": "reading_order.position",
    "minigallery_sort_order": "reading_order.position",
    "run_stale_examples": True,  # a changed loss must not leave its old numbers on the page
    "abort_on_example_error": True,
    "write_computation_times": False,  # that page would load its table from the network
    "image_srcset": ["2x"],
    "thumbnail_size": (480, 480),
    "remove_config_comments": True,
    "show_memory": False,
    "min_reported_time": 1e9,
    "download_all_examples": False,
    "show_signature": False,
    "backreferences_dir": "gallery/backreferences",
    "doc_module": ("gluon_kl",),
    "reference_url": {"gluon_kl": None},
}

html_theme = "pydata_sphinx_theme"
html_title = "KL divergence for MXNet Gluon"  # follows each page's own in <title>; the header shows the logo's text
html_static_path = ["static", str(mathjax_files / mathjax_path)]
html_favicon = "static/icon.svg"
html_context = {"default_mode": "auto"}
html_css_files = ["site.css", "tutorial.css"]
html_js_files = [("sliders.js", {"defer": "defer"}), ("tables.js", {"defer": "defer"})]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_use_index = False  # no link leads to it: the search and the page "API" replace it
WITHOUT_SIDEBAR = ("index", "quickstart", "contract", "moving", "changelog", "benchmarks", "troubleshooting",
                   "versions")
html_sidebars = {page: [] for page in WITHOUT_SIDEBAR}
html_theme_options = {
    "logo": {"text": "gluon_kl"},
    "navigation_with_keys": False,
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": [],
    "back_to_top_button": False,  # it floats above buttons and sliders
    "show_toc_level": 1,
    "pygments_dark_style": "github-dark-high-contrast",  # the default one has bright yellow comments
}


def example_first(app, what, name, obj, options, lines):
    """Move the section Examples of a docstring in front of the others, because most readers look for the call."""
    starts = [i for i, line in enumerate(lines[1:]) if line and set(line) == {"-"} and len(line) == len(lines[i])]
    sections = {lines[i]: lines[i:end] for i, end in zip(starts, starts[1:] + [len(lines)])}
    if "Examples" in sections:
        examples = sections.pop("Examples")
        lines[starts[0]:] = [*examples, "", *(line for section in sections.values() for line in section)]


def keep_divergences_whole(app, doctree):
    """Prevent line breaks inside "KL(p ‖ q)"."""
    for text in list(doctree.findall(nodes.Text)):
        if " ‖ " in text and not isinstance(text.parent, (nodes.FixedTextElement, nodes.literal)):
            text.parent.replace(text, nodes.Text(text.replace(" ‖ ", "\N{NO-BREAK SPACE}‖\N{NO-BREAK SPACE}")))


def setup(app):
    app.connect("autodoc-process-docstring", example_first, priority=400)  # before napoleon, which is at 500
    app.connect("doctree-read", keep_divergences_whole)
