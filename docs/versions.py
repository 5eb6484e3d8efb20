"""The divergence of the walkthrough's example on every MXNet, by MXNet's own loss and by ours.

Run it by hand, ``python docs/versions.py WHEEL``, with a wheel of MXNet 2.0.0, which is not on PyPI. Each version is
downloaded without its requirements into a separate folder, and runs in a separate process. The script writes
versions.csv, which versions.rst shows. Tests check the row of the installed MXNet.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).resolve().with_suffix(".csv")
VERSIONS = ["1.7.0.post2", "1.8.0.post0", "1.9.0", "1.9.1", "2.0.0b1"]
HEADER = ["MXNet", "its own ``KLDivLoss``", "gluon_kl", 'gluon_kl, ``reduction="sum"``']
ASK = """
import gluon_kl
import json
import mxnet as mx

F = mx.np if mx.__version__.startswith("2.") else mx.nd
pred, label = F.log(F.array([[0.2, 0.5, 0.2, 0.1]])), F.array([[0.3, 0.4, 0.1, 0.2]])
losses = mx.gluon.loss.KLDivLoss(), gluon_kl.KLDivLoss(), gluon_kl.KLDivLoss(reduction="sum")
version = mx.__version__.replace("beta", "b").split("+")[0]
print(json.dumps([version, *("%.4f" % loss(pred, label).asnumpy().item() for loss in losses)]))
"""


def row(*folders):
    """The row of the MXNet that is found first in `folders`, or else by this Python."""
    path = os.pathsep.join(map(str, [*folders, ROOT]))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ASK], stdout=subprocess.PIPE, text=True, check=True,
                          env=dict(os.environ, PYTHONPATH=path))
    return json.loads(done.stdout.strip().split("\n")[-1])


def fetched(version):
    """The row of a version of MXNet that is downloaded, or of a wheel."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = version if version.endswith(".whl") else f"mxnet=={version}"
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, wanted],
                       check=True)
        return row(folder)


def table():
    """Read the rows of versions.csv, its header first."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


if __name__ == "__main__":
    rows = [HEADER, *map(fetched, [*VERSIONS, sys.argv[1]])]
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
