"""Imports MXNet, or says why it cannot run."""

import importlib.util
import platform
import sys

from gluon_kl._lend import NEEDED, NUMPY, Version, is_mxnet_2, lend, lent

import numpy as np

PYTHONS = (3, 8), (3, 13)  # the oldest and the newest that the tests are run on
NUMPYS = (1, 17), (2, 5)
MXNETS = ((1, 7), (1, 9)), ((2, 0), (2, 0))  # the oldest and the newest of each line
LIBRARIES = {"libgomp.so.1": "libgomp1", "libquadmath.so.0": "libquadmath0"}  # that MXNet needs, and Debian's packages


# Reasons why MXNet cannot run


def _spelled(version):
    return ".".join(map(str, version))


def _refuse_versions():
    python, oldest, newest = sys.version_info[:2], *PYTHONS
    if not oldest <= python <= newest:
        raise ImportError(
            f"gluon_kl runs on Python {_spelled(oldest)} to {_spelled(newest)}, where MXNet has been tried, and "
            f"this is {_spelled(python)}: make a virtual environment with one of those.")
    oldest, newest = NUMPYS
    if not oldest <= NUMPY < (newest[0] + 1,):
        raise ImportError(
            f"MXNet has been tried with NumPy {_spelled(oldest)} to {_spelled(newest)}, and this is {np.__version__}: "
            f"`pip install 'numpy>={_spelled(oldest)},<{newest[0] + 1}'`.")


def _refuse_absence():
    if "mxnet" in sys.modules:
        return
    spec = importlib.util.find_spec("mxnet")
    if spec is None or spec.origin is None:  # without an origin it is a folder of that name, not a package
        alone = sys.version_info < (3, 13)  # for later versions, MXNet's metadata exclude every NumPy that has a wheel
        how = (f"`pip install 'mxnet>={_spelled(MXNETS[0][0])},<2'`" if alone else
               "`pip install numpy requests 'graphviz<0.9'`, then `pip install --no-deps mxnet`")
        raise ModuleNotFoundError(
            "gluon_kl needs Apache MXNet, in any build, and none is installed: "
            f"{how} installs the build for CPUs.", name="mxnet")


def _lend():
    if NEEDED and lent() is None and not is_mxnet_2():
        if "mxnet" in sys.modules:
            raise ImportError(
                f"With Python {platform.python_version()} and NumPy {np.__version__}, `import gluon_kl` must come "
                "before `import mxnet`, which was imported first: change the order and start Python again.")
        # An import of MXNet that failed leaves incomplete modules behind, without their package.
        for name in [name for name in sys.modules if name.partition(".")[0] == "mxnet"]:
            del sys.modules[name]
    lend()


def _import_mxnet():
    try:
        import mxnet
    except OSError as error:
        missing = [package for library, package in LIBRARIES.items() if library in str(error)]
        if not missing:
            raise
        raise ImportError(f"MXNet needs a library that this machine lacks ({error}): `apt-get install "
                          f"{' '.join(LIBRARIES.values())}` installs it on Debian and Ubuntu.") from error
    except AttributeError as error:
        if NUMPY[:2] <= NUMPYS[1]:
            raise
        raise ImportError(f"MXNet has been tried with NumPy up to {_spelled(NUMPYS[1])}, and {np.__version__} lacks "
                          f"something that it needs ({error}): `pip install 'numpy=={_spelled(NUMPYS[1])}.*'`."
                          ) from error
    if not any(oldest <= Version(mxnet.__version__)[:2] <= newest for oldest, newest in MXNETS):
        oldest, newest = MXNETS[0]
        raise ImportError(
            f"gluon_kl works on MXNet {_spelled(oldest)} to {_spelled(newest)} and 2.0, and this is "
            f"{mxnet.__version__}: `pip install 'mxnet>={_spelled(oldest)},<2'`, or the same for your build of it.")
    return mxnet


_refuse_versions()
_refuse_absence()
_lend()
mxnet = _import_mxnet()
MXNET = Version(mxnet.__version__)

# Differences between MXNet's versions
GLUON_2 = MXNET >= (2,)  # a block has only `forward`, which is traced with real arrays
FAST_SUMS = GLUON_2 and any(  # oneDNN sums rows of float32
    feature.enabled for name, feature in mxnet.runtime.Features().items() if name in ("MKLDNN", "ONEDNN"))
SWAPS_IN_PLACE = GLUON_2 and "b" not in mxnet.__version__.split("+")[0]  # `swapaxes` of 2.0.0, not of 2.0.0b1
LIKE_WANTS_EQUAL_DTYPES = MXNET < (1, 8)  # `broadcast_like` requires equal dtypes on both sides
