"""The Python-version guard and the optional C++ operator; everything else is in setup.cfg."""

import sys

if not (3, 8) <= sys.version_info[:2] <= (3, 13):
    # No f-string: this line must also run on a Python that cannot read one.
    sys.exit(
        "gluon_kl needs Python 3.8 to 3.13, where Apache MXNet has been tried, and this is Python {}.{}: "
        "make a virtual environment with one of those and install again.".format(*sys.version_info[:2])
    )

import importlib.util
import os
import platform
import re
import runpy
import subprocess
import sysconfig
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70
    try:
        from wheel.bdist_wheel import bdist_wheel
    except ImportError:  # without this package no wheel can be built
        bdist_wheel = object

NATIVE = "gluon_kl/native/"
# Read as a file: importing the package would import MXNet.
BUILD = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), NATIVE, "build_flags.py"))
FLAGS, ISA_FLAGS = BUILD["FLAGS"], BUILD["ISA_FLAGS"]
# For a wheel to publish (`python3 tasks.py wheel`): a missing operator, or one that needs a newer glibc, is an error.
RELEASE = os.environ.get("GLUON_KL_RELEASE") == "1"
GLIBC = (2, 17)


class NoHeaders(Exception):
    """No MXNet with the interface for operators."""


def sources():
    return [NATIVE + name for name in ["op.cc", *BUILD["kernel_sources"](platform.machine())]]


def mxnet_headers(scratch):
    """The include folders of this process's MXNet, of the environment's MXNet, or of one that is downloaded."""
    spec = importlib.util.find_spec("mxnet")  # an import would take seconds
    homes = [Path(spec.origin).parent] if spec is not None and spec.origin else []
    homes.append(Path(sysconfig.get_path("purelib"), "mxnet"))  # an isolated build cannot import this one
    for home in homes:
        if (home / "include" / "mxnet" / "lib_api.h").exists() and (home / "src" / "lib_api.cc").exists():
            break
    else:
        home = fetch_mxnet(scratch)
    return [str(home / folder) for folder in ("include/mxnet", "include", "src")]


def fetch_mxnet(scratch):
    # Not as a build requirement: because of MXNet's own requirements, Python 3.13 and newer cannot install it.
    print("fetching MXNet's wheel for the headers of its operator interface", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--platform=manylinux2014_x86_64",
         "--dest", str(scratch), "mxnet==1.9.1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise NoHeaders("the operator needs MXNet's headers, but MXNet is not installed and could not be downloaded "
                        "(`pip install --no-deps mxnet==1.9.1`): " + done.stdout.strip().split("\n")[-1])
    with zipfile.ZipFile(next(scratch.glob("mxnet-*.whl"))) as wheel:
        wanted = [name for name in wheel.namelist() if name.startswith(("mxnet/include", "mxnet/src"))]
        wheel.extractall(scratch, wanted)
    return scratch / "mxnet"


class BuildOperator(build_ext):
    """Compiles all sources at once, each with its own flags. A failure is written down for `native.why_not`."""

    def run(self):
        self.in_tree = self.inplace or getattr(self, "editable_mode", False)
        self.home = Path("" if self.in_tree else self.build_lib, NATIVE)
        self.note = self.home / "build_failed.txt"
        super().run()

    def get_ext_filename(self, name):
        return os.path.join(*name.split(".")) + ".so"  # it does not depend on Python, so it fits every version

    def fresh(self):
        """Tell whether another environment of this checkout has already compiled it."""
        made_from = [file for pattern in ("*.h", "*.cc", "build_flags.py") for file in Path(NATIVE).glob(pattern)]
        newest = max(file.stat().st_mtime for file in [Path("setup.py"), *made_from])
        target = self.home / "_kernels.so"
        return self.in_tree and not self.force and target.exists() and target.stat().st_mtime > newest

    def build_extension(self, ext):
        if self.fresh():
            return
        target = Path(self.get_ext_fullpath(ext.name))
        for stale in [self.note, *self.home.glob("_kernels*.so")]:
            if stale.exists():
                stale.unlink()
        try:
            os.makedirs(self.build_temp, exist_ok=True)
            self.headers = mxnet_headers(Path(self.build_temp))
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = [item for made in pool.map(self.compile_one, ext.sources) for item in made]
            self.compiler.link_shared_object(objects, str(target), target_lang="c++", extra_postargs=["-pthread", "-s"])
            if RELEASE:
                check_glibc(target)
        except Exception as error:
            self.note.parent.mkdir(parents=True, exist_ok=True)
            remedy = "" if isinstance(error, NoHeaders) else (
                " (a compiler for C++17: `apt-get install g++` on Debian and Ubuntu, then install gluon_kl again)")
            self.note.write_text(f"{type(error).__name__}: {error}{remedy}\n", encoding="utf-8")
            raise CompileError(str(error)) from error  # the error that `optional` ignores

    def compile_one(self, source):
        return self.compiler.compile(
            [source],
            output_dir=self.build_temp,
            include_dirs=self.headers,
            macros=[("GLUON_KL_VERSION", f'"{self.distribution.get_version()}"')],
            extra_postargs=FLAGS + ["-pthread"] + ISA_FLAGS.get(os.path.basename(source), []),
        )


def check_glibc(library):
    wanted = {tuple(map(int, found)) for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", library.read_bytes())}
    if not wanted or max(wanted) > GLIBC:
        raise RuntimeError(f"a release may need glibc {GLIBC} at most, and this library needs "
                           f"{max(wanted, default='none')}")


class Wheel(bdist_wheel):
    """One wheel for every Python, because the library does not depend on Python."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        system = "manylinux_{}_{}_x86_64".format(*GLIBC) if RELEASE else super().get_tag()[2]
        return "py3", "none", system


setup(
    ext_modules=[Extension("gluon_kl.native._kernels", sources(), optional=not RELEASE, language="c++")],
    cmdclass={"build_ext": BuildOperator, "bdist_wheel": Wheel},
)
