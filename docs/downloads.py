"""The download of each tutorial: one archive that runs as it is."""

import json
import re
import zipfile
from pathlib import Path

IMPORTED = ("plots.py", "matplotlibrc")  # by every tutorial
ALSO_IMPORTED = {"distributed_training": ("launch.py",)}
# The reStructuredText that sphinx-gallery leaves in a notebook, and the Markdown that replaces it.
MARKDOWN = (
    (r"^\.\. raw:: html\n\n *<details.*?><summary>(.*?)</summary>\n", r"**\1**\n"),
    (r"^\.\. raw:: html\n\n(?: +.*\n)+", ""),
    (r"^<img src=\"file://\.\./.*\n(?: +.*\n)*", ""),  # the first figure, which the notebook draws later
    (r"^\.\. (?:rubric|admonition):: (.*)$", r"**\1**"),
    (r"^\.\. \[(\d+)\] ", r"\n[\1] "),
    (r" ?\[(\d+)\]_", r" [\1]"),
    (r":(?:class|meth|func|doc):`~?(?:gluon_kl\.)?([^`<]*?)(?: <[^`]*>)?`", r"**\1**"),
    (r"(\]\([^()\s]*\))_", r"\1"),
)


def tidied(notebook):
    """Turn the reStructuredText that is left in a notebook into Markdown."""
    content = json.loads(notebook)
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"]) + "\n"
            for pattern, replacement in MARKDOWN:
                text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
            cell["source"] = [text.strip("\n")]
    return json.dumps(content, ensure_ascii=False, indent=1)


def complete_archives(app):
    """Add the files that a tutorial's script and notebook import to its archive."""
    gallery, tutorials = Path(app.srcdir) / "gallery", Path(app.srcdir).parent / "tutorials"
    for tutorial in gallery.glob("*.ipynb"):
        with zipfile.ZipFile(tutorial.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{tutorial.stem}/{tutorial.name}", tidied(tutorial.read_text("utf-8")))
            imported = [tutorials / name for name in (*IMPORTED, *ALSO_IMPORTED.get(tutorial.stem, ()))]
            for file in (tutorial.with_suffix(".py"), *imported):
                archive.write(file, f"{tutorial.stem}/{file.name}")


def offer_archive(app, page, source):
    """Offer only the archive, below the title and at the end: script and notebook need the other files to run."""
    if page.startswith("gallery/") and page != "gallery/index":
        single = r"^ +\.\. container:: sphx-glr-download sphx-glr-download-(python|jupyter)\n\n.*\n"
        text = re.sub(single, "", source[0], flags=re.MULTILINE)
        text = text.replace("Download zipped: ", "Download script, notebook and what they import: ")
        archive = f"{Path(page).name}.zip"
        source[0] = re.sub(r"^(\S.*\n={3,}\n)", rf"\1\n.. rst-class:: download\n\n:download:`Download as script and "
                           rf"notebook <{archive}>`\n", text, count=1, flags=re.MULTILINE)


def setup(app):
    """Connect to Sphinx; the archives are completed after sphinx-gallery has written its own."""
    app.connect("builder-inited", complete_archives, priority=900)
    app.connect("source-read", offer_archive)
    return {"parallel_read_safe": True}
