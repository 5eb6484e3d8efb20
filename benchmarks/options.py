"""The options of run.py, which tasks.py reads before anything is installed: standard library only."""

import argparse
import sys
from pathlib import Path


def parser(description="Measure gluon_kl beside MXNet, torch and JAX.", prog=None):
    made = argparse.ArgumentParser(prog=prog, description=description,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rows", nargs="+", metavar="NAME", help="only rows whose name contains one of these")
    made.add_argument("--list", action="store_true", help="print the names of the rows")
    made.add_argument("--quick", action="store_true", help="tiny arrays and short turns, to see that everything works")
    made.add_argument("--rounds", type=int, default=7, help="turns of each competitor in each row (default 7)")
    made.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="interpreter that has torch and JAX")
    made.add_argument("--out", type=Path, metavar="FOLDER", help="where tables and plot go (default: figures, if "
                                                                 "every row is measured)")
    made.add_argument("--draw", action="store_true", help="draw the plot from the existing tables")
    return made
