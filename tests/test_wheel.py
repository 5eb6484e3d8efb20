"""How the package is built and installed: setup.py, its metadata, and the wheel that `tasks.py wheel` makes."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile

from gluon_kl import native

import pytest

import tasks

ROOT = tasks.ROOT
LOOP = '''
import gluon_kl
import mxnet as mx, numpy as np
from gluon_kl import native

random = np.random.RandomState(1)
data, weight = random.randn(256, 8).astype("float32"), random.randn(8, 4).astype("float32")
label = np.exp(data.dot(weight))
label /= label.sum(axis=1, keepdims=True)
net = mx.gluon.nn.Dense(4)
net.initialize()
net.hybridize()
trainer = mx.gluon.Trainer(net.collect_params(), "adam", {"learning_rate": 0.05})
batches = mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(data, label), 32)
loss = gluon_kl.KLDivLoss(from_logits=False, reduction="sum")
history = []
for _ in range(10):
    history.append(0)
    for data, soft_label in batches:
        with mx.autograd.record():
            divergence = loss(net(data), soft_label)
        divergence.backward()
        trainer.step(len(data))
        history[-1] += divergence.sum().asscalar() / 256
assert history[-1] < history[0] / 10, history
print("NumPy", np.__version__, "MXNet", mx.__version__, native.why_not() or native.info()["isa"])
'''


# setup.py


def in_a_copy(tmp_path, *arguments, code=0, **environment):
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(str(ROOT / name), str(tmp_path))
    if not (tmp_path / "gluon_kl").exists():
        shutil.copytree(str(ROOT / "gluon_kl"), str(tmp_path / "gluon_kl"),
                        ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run([sys.executable, "-W", "ignore", *arguments], cwd=str(tmp_path), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment})
    assert done.returncode == code, done.stdout
    return done.stdout


BROKEN = dict.fromkeys(("CC", "CXX", "LDSHARED", "LDCXXSHARED"), "/nowhere/compiler")
needs_setuptools = pytest.mark.skipif(
    None in map(importlib.util.find_spec, ("setuptools", "wheel")), reason="without setuptools or wheel")


@needs_setuptools
def test_an_install_without_a_compiler_says_why_it_has_no_operator(tmp_path):
    in_a_copy(tmp_path, "setup.py", "build_ext", "--inplace", "--force", **BROKEN)
    native = tmp_path / "gluon_kl" / "native"
    assert "/nowhere/compiler" in (native / "build_failed.txt").read_text()
    assert not list(native.glob("*.so"))
    said = in_a_copy(tmp_path, "-c", "from gluon_kl import native; print(native.is_available(), native.why_not())")
    assert said.startswith("False it could not be built when gluon_kl was installed: CompileError: ")
    assert "`apt-get install g++`" in said


@needs_setuptools
def test_a_release_without_a_compiler_fails(tmp_path):
    said = in_a_copy(tmp_path, "setup.py", "bdist_wheel", code=1, GLUON_KL_RELEASE="1", **BROKEN)
    assert "/nowhere/compiler" in said
    assert not (tmp_path / "dist").exists()


@needs_setuptools
@pytest.mark.parametrize("wanted, fits", [(b"GLIBC_2.2.5 GLIBC_2.16", True), (b"GLIBC_2.2.5 GLIBC_2.34", False),
                                          (b"no glibc at all", False)])
def test_a_release_for_a_newer_glibc_is_refused(tmp_path, wanted, fits):
    (tmp_path / "library.so").write_bytes(b"\\0" + wanted + b"\\0")
    said = in_a_copy(tmp_path, "-c", "import sys, pathlib; sys.argv = ['setup.py', '--name']; import setup\n"
                     "setup.check_glibc(pathlib.Path('library.so'))", code=0 if fits else 1)
    assert ("a release may need glibc (2, 17) at most" in said) != fits


@pytest.mark.parametrize("version", ["(3, 7, 17)", "(3, 14, 0)"])
def test_other_pythons_get_one_sentence(tmp_path, version):
    said = in_a_copy(tmp_path, "-c", f"import sys; sys.version_info = {version}; import setup", code=1)
    major, minor = version.strip("()").split(", ")[:2]
    assert said.strip() == (f"gluon_kl needs Python 3.8 to 3.13, where Apache MXNet has been tried, and this is Python "
                            f"{major}.{minor}: make a virtual environment with one of those and install again.")


def test_one_range_of_pythons_in_all_places():
    from gluon_kl import _mxnet
    oldest, newest = (".".join(map(str, version)) for version in _mxnet.PYTHONS)
    assert oldest == tasks.OLDEST and newest == tasks.NEWEST
    assert tasks.LIBRARIES == _mxnet.LIBRARIES
    metadata = (ROOT / "setup.cfg").read_text()
    assert f"python_requires = >={oldest},<3.{_mxnet.PYTHONS[1][1] + 1}" in metadata
    for minor in range(_mxnet.PYTHONS[0][1], _mxnet.PYTHONS[1][1] + 1):
        assert f"Programming Language :: Python :: 3.{minor}\n" in metadata
    assert str(_mxnet.PYTHONS[0]) in (ROOT / "setup.py").read_text()
    assert str(_mxnet.PYTHONS[1]) in (ROOT / "setup.py").read_text()


# The wheel


@pytest.fixture(scope="module")
def wheel():
    found = sorted((ROOT / "dist").glob("*.whl"))
    if not found:
        pytest.skip("`python3 tasks.py wheel` has not been run")
    assert len(found) == 1
    return found[0]


def test_what_the_wheel_is(wheel):
    import gluon_kl
    assert wheel.name == f"gluon_kl-{gluon_kl.__version__}-py3-none-manylinux_2_17_x86_64.whl"
    with zipfile.ZipFile(str(wheel)) as archive:
        names = archive.namelist()
        metadata = archive.read(f"gluon_kl-{gluon_kl.__version__}.dist-info/METADATA").decode()
    assert [name for name in names if name.endswith(".so")] == ["gluon_kl/native/_kernels.so"]
    assert not any("build_failed" in name or "test" in name for name in names)
    required = [line for line in metadata.split("\n") if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert required == ["Requires-Dist: numpy<3,>=1.17"]  # and no MXNet over a vendor's
    assert "Requires-Python: <3.14,>=3.8" in metadata or "Requires-Python: >=3.8,<3.14" in metadata


@pytest.mark.parametrize("version, numpy", [
    ("3.8", "1.17.3"), ("3.9", None), ("3.11", "2"), ("3.12", None), ("3.13", None)])
def test_the_wheel_alone_trains(wheel, tmp_path, version, numpy):
    """In a new environment, as a user would install it, without a compiler."""
    found = [each for each in tasks.interpreters() if tasks.minor(each) == version]
    if not found:
        pytest.skip(f"there is no Python {version} here")
    subprocess.run([found[-1]["executable"], "-m", "venv", str(tmp_path / "env")], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary", ":all:"]
    environment = {**os.environ, "PATH": "/nowhere"}
    steps = [[f"{wheel}[cpu]", *(["numpy==1.17.3"] if numpy == "1.17.3" else [])]]
    steps += [["--no-deps", "mxnet"]] if version == "3.13" else []
    steps += [["--upgrade", "numpy>=2"]] if numpy == "2" else []  # as whatever else one installs may do
    for step in steps:
        subprocess.run([*pip, *step], check=True, env=environment)
    done = subprocess.run([python, "-W", "error:::gluon_kl", "-c", LOOP], cwd=str(tmp_path), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    words = done.stdout.split()
    assert words[0] == "NumPy" and words[1].startswith(numpy or "") and words[2:4] == ["MXNet", "1.9.1"]
    assert not native.is_available() or words[4] == native.info()["isa"]  # the best that this machine has
