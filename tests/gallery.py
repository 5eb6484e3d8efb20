"""Run a tutorial: as its reader would, or for a test to look inside."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
PHONE = 44  # characters of output that fit a screen 390 pixels wide


def run(name, folder, *arguments):
    """Run tutorials/`name`.py in `folder`, a place that has nothing to do with it; what it wrote to both outputs."""
    command = [sys.executable, str(ROOT / "tutorials" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=str(folder), env=dict(os.environ, PYTHONPATH=str(ROOT)), timeout=300,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def names_of(name, *arguments):
    """Run tutorials/`name`.py in this process; the names that it defines."""
    script = str(ROOT / "tutorials" / f"{name}.py")
    with mock.patch.object(sys, "argv", [script, *map(str, arguments)]), \
            mock.patch.object(sys, "path", [str(ROOT / "tutorials"), *sys.path]), plt.rc_context():
        names = runpy.run_path(script, run_name="__main__")
        plt.close("all")
    return names


def stale(drawn):
    """Names of the figures in a folder that differ from the committed ones."""
    return [figure.name for figure in sorted(drawn.iterdir())
            if figure.read_bytes() != (ROOT / "figures" / figure.name).read_bytes()]


def numbers(line):
    """All numbers of a line of output, percentages as they are written."""
    found = []
    for word in line.replace("%", " ").replace(",", " ").split():
        try:
            found.append(float(word))
        except ValueError:
            continue
    return found
