"""The Python-version guard and the optional C++ operator; everything else is in setup.cfg."""

import sys

if not (3, 8) <= sys.version_info[:2] <= (3, 11):
    # No f-string: whoever gets here may have a Python that cannot even read one.
    sys.exit(
        "gluon_kl needs Python 3.8 to 3.11, where Apache MXNet 1.9.1 runs, and this is Python {}.{}: "
        "make a virtual environment with one of those and install again.".format(*sys.version_info[:2])
    )

import importlib.util
import os
import platform
import runpy
from concurrent.futures import ThreadPoolExecutor
from distutils.errors import CompileError

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = "gluon_kl/native/"
# Read as a file: importing the package would import MXNet.
BUILD = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), NATIVE, "build_flags.py"))
FLAGS, ISA_FLAGS = BUILD["FLAGS"], BUILD["ISA_FLAGS"]


def sources():
    return [NATIVE + name for name in ["op.cc", *BUILD["kernel_sources"](platform.machine())]]


def mxnet_headers():
    spec = importlib.util.find_spec("mxnet")  # found, not imported: that takes seconds
    if spec is None:
        raise FileNotFoundError("MXNet is not installed where gluon_kl is built")
    home = os.path.dirname(spec.origin)
    found = [os.path.join(home, *parts) for parts in (("include", "mxnet"), ("include",), ("src",))]
    for path in (os.path.join(found[0], "lib_api.h"), os.path.join(found[2], "lib_api.cc")):
        if not os.path.exists(path):
            raise FileNotFoundError("this MXNet carries no " + os.path.basename(path))
    return found


class BuildOperator(build_ext):
    """Compiles each source with its own flags, side by side. A failure is noted for `native.why_not`, not raised."""

    def run(self):
        in_tree = self.inplace or getattr(self, "editable_mode", False)
        self.note = os.path.join("" if in_tree else self.build_lib, NATIVE, "build_failed.txt")
        super().run()

    def build_extension(self, ext):
        if os.path.exists(self.note):
            os.remove(self.note)
        try:
            self.headers = mxnet_headers()
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = [item for made in pool.map(self.compile_one, ext.sources) for item in made]
            target = self.get_ext_fullpath(ext.name)
            self.compiler.link_shared_object(objects, target, target_lang="c++", extra_postargs=["-pthread"])
        except Exception as error:
            os.makedirs(os.path.dirname(self.note), exist_ok=True)
            with open(self.note, "w", encoding="utf-8") as file:
                file.write(f"{type(error).__name__}: {error}\n")
            raise CompileError(str(error)) from error  # what `optional` forgives

    def compile_one(self, source):
        return self.compiler.compile(
            [source],
            output_dir=self.build_temp,
            include_dirs=self.headers,
            extra_postargs=FLAGS + ["-pthread"] + ISA_FLAGS.get(os.path.basename(source), []),
        )


setup(
    ext_modules=[Extension("gluon_kl.native._kernels", sources(), optional=True, language="c++")],
    cmdclass={"build_ext": BuildOperator},
)
