"""Run a tutorial, or its definitions alone, for a test to look inside."""

import ast
import runpy
import sys
from pathlib import Path
from unittest import mock

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
PHONE = 44  # characters of output that fit a screen 390 pixels wide
TUTORIALS = sorted(path.stem for path in (ROOT / "tutorials").glob("*.py") if path.stem not in ("plots", "launch"))


def names_of(name, *arguments):
    """Run tutorials/`name`.py in this process; the names that it defines."""
    script = str(ROOT / "tutorials" / f"{name}.py")
    with mock.patch.object(sys, "argv", [script, *map(str, arguments)]), \
            mock.patch.object(sys, "path", [str(ROOT / "tutorials"), *sys.path]), plt.rc_context():
        names = runpy.run_path(script, run_name="__main__")
        plt.close("all")
    return names


def definitions(name, *arguments):
    """The names that tutorials/`name`.py defines down to its options, and the functions and constants below them.

    Nothing is trained or drawn: for what has to start processes or takes long, and has left its results on the page.
    """
    script = ROOT / "tutorials" / f"{name}.py"
    tree = ast.parse(script.read_text("utf-8"))
    reads_options = next(i for i, node in enumerate(tree.body) if isinstance(node, ast.Assign)
                         and getattr(node.targets[0], "id", None) in ("options", "sizes"))
    tree.body[reads_options + 1:] = [
        node for node in tree.body[reads_options + 1:]
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))
        or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant))]
    names = {"__name__": "__main__", "__file__": str(script)}
    with mock.patch.object(sys, "argv", [str(script), *map(str, arguments)]), \
            mock.patch.object(sys, "path", [str(ROOT / "tutorials"), *sys.path]), plt.rc_context():
        exec(compile(tree, str(script), "exec"), names)
    return names


def numbers(line):
    """All numbers of a line of output, percentages as they are written."""
    found = []
    for word in line.replace("%", " ").replace(",", " ").split():
        try:
            found.append(float(word))
        except ValueError:
            continue
    return found
