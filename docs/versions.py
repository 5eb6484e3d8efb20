"""One answer on every MXNet: the divergence of the walkthrough's example, by MXNet's own loss and by ours.

Run by hand, ``python docs/versions.py``: each version is fetched without what it requires, put into a folder of its
own, and asked in a process of its own. Prints the table of versions.rst. A test holds the row of the MXNet at hand.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ["1.7.0.post2", "1.8.0.post0", "1.9.0", "1.9.1"]
HEADER = ["MXNet", "its own", "ours", "ours, ``\"sum\"``", "fused"]
ASK = """
import gluon_kl
import json
import mxnet as mx
from gluon_kl import native

pred, label = mx.nd.log(mx.nd.array([[0.2, 0.5, 0.2, 0.1]])), mx.nd.array([[0.3, 0.4, 0.1, 0.2]])
losses = mx.gluon.loss.KLDivLoss(), gluon_kl.KLDivLoss(), gluon_kl.KLDivLoss(reduction="sum")
values = ["%.4f" % loss(pred, label).asscalar() for loss in losses]
print(json.dumps([mx.__version__, *values, "yes" if native.is_available() else "no"]))
"""


def row(*folders):
    """Ask the MXNet that is found first in `folders`, or else where this Python looks."""
    path = os.pathsep.join(map(str, [*folders, ROOT]))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ASK], stdout=subprocess.PIPE, text=True, check=True,
                          env=dict(os.environ, PYTHONPATH=path))
    return json.loads(done.stdout.strip().split("\n")[-1])


def fetched(version):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder,
                        f"mxnet=={version}"], check=True)
        return row(folder)


def table(rows):
    lines = []
    for cells in [HEADER, *rows]:
        lines += [("   * - " if i == 0 else "     - ") + cell for i, cell in enumerate(cells)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(map(fetched, VERSIONS)))
