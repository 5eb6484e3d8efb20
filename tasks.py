#!/usr/bin/env python3
"""Set the project up and run it: ``python3 tasks.py COMMAND``.

Each command makes a virtual environment beside this file if necessary, installs what it uses, and runs. Only the
standard library is needed.
"""

import argparse
import configparser
import errno
import fcntl
import hashlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SITE = ROOT / "docs" / "_build" / "html"
LIBRARY = "gluon_kl/native/_kernels.so"
OLDEST, NEWEST = "3.8", "3.13"
MXNET = "1.9.1"
LIBRARIES = {"libgomp.so.1": "libgomp1", "libquadmath.so.0": "libquadmath0"}  # that MXNet needs, and Debian's packages
QUICK_NOTICE = ("Only the walkthrough was run. <code>python3 tasks.py docs</code> runs every page."
                # The other tutorials have no figures, and the gallery would show a placeholder for each.
                "<style>.sphx-glr-thumbcontainer img:not([src*=kl_divergence]) { display: none; }</style>")

# Each interpreter that may be suitable runs this: a pyenv shim, for example, exists but may still fail.
PROBE = f"""
import ctypes, json, os, sys
try:
    import venv
    from ensurepip import version  # Debian splits it off
except ImportError:
    venv = None
def absent(library):
    try:
        ctypes.CDLL(library)
    except OSError:
        return True
    return False
print(json.dumps({{
    "version": ".".join(map(str, sys.version_info[:3])),
    "executable": os.path.realpath(sys.executable),
    "venv": venv is not None,
    "libraries": [library for library in {list(LIBRARIES)} if absent(library)],
}}))
"""


class CannotRun(Exception):
    """The reason why the command cannot run, as a sentence for the user."""


def probe(executable):
    """Return what an interpreter says about itself; None if it does not run."""
    try:
        answer = subprocess.run([str(executable), "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                timeout=60, check=True)
        return json.loads(answer.stdout.decode())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def fits(python):
    """Tell whether MXNet runs on this Python."""
    return python is not None and numbers(OLDEST) <= numbers(minor(python)) <= numbers(NEWEST)


def interpreters():
    """Return all suitable interpreters on PATH, or installed by pyenv or uv, the oldest first."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    pyenvs = {folder.parent for folder in folders if folder.name == "shims"}
    pyenvs |= {Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()}
    for manager in [pyenv / "versions" for pyenv in sorted(pyenvs)] + [Path("~/.local/share/uv/python").expanduser()]:
        folders += sorted(manager.glob("*/bin"))
    names = [f"python3.{last}" for last in range(numbers(OLDEST)[1], numbers(NEWEST)[1] + 1)]
    found = [probe(folder / name) for folder in folders for name in names if os.access(str(folder / name), os.X_OK)]
    return sorted(filter(fits, found), key=lambda python: numbers(python["version"]))


def choose_python(wanted=None):
    """Find the interpreter to use: the one asked for, or the running one, or else the newest suitable one."""
    running = probe(sys.executable)
    if wanted is None and fits(running):
        return running
    if wanted in (None, "oldest", "newest"):
        found = interpreters()
    elif os.sep in wanted:
        found = list(filter(fits, [probe(wanted)]))
    else:
        found = [python for python in interpreters() if wanted in (python["version"], minor(python))]
    if found:
        return found[0 if wanted == "oldest" else -1]
    if wanted in (None, "oldest", "newest"):
        raise CannotRun(
            f"gluon_kl needs a Python from {OLDEST} to {NEWEST}, this is {running['version']} and no other is here: "
            f"`curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv python install {NEWEST}` "
            "puts one where this command finds it.")
    raise CannotRun(f"--python must be 'oldest', 'newest', a version such as 3.9 that is on this machine, or the "
                    f"path of a Python from {OLDEST} to {NEWEST} that runs, not {wanted!r}.")


def numbers(version):
    """Turn "3.10" into (3, 10), which sorts."""
    return tuple(map(int, version.split(".")))


def minor(python):
    """Return the version of an interpreter without its last number, as in 3.10."""
    return python["version"].rpartition(".")[0]


def check_machine(python):
    """Name every system package that is missing, with the command that installs them all."""
    packages = [LIBRARIES[library] for library in python["libraries"]]
    if not python["venv"]:
        packages.insert(0, f"python{minor(python)}-venv")
    if packages:
        sudo = "sudo " if os.geteuid() else ""
        raise CannotRun(f"This machine lacks {', '.join(packages)}: "
                        f"`{sudo}apt-get update && {sudo}apt-get install -y {' '.join(packages)}` installs what is "
                        "missing on Debian and Ubuntu.")


def digest(*paths):
    """Return a hash of files, and of all files in folders, without generated files."""
    total = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            generated = {"__pycache__", "_build", "gallery", "generated"} & set(file.relative_to(ROOT).parts)
            if file.is_file() and not generated and file.suffix != ".so":
                total.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return total.hexdigest()


def operator_sources():
    """All files on which the compiled operator depends."""
    native = (ROOT / LIBRARY).parent
    return sorted(file for pattern in ("*.h", "*.cc", "build_flags.py") for file in native.rglob(pattern))


def requirements(command):
    """What pip must install for a command, from the extras of setup.cfg; and the package, if the command uses it."""
    setup = configparser.ConfigParser()
    setup.read(str(ROOT / "setup.cfg"), encoding="utf-8")
    extra = {"tutorial": "docs", "bench": "tutorial"}.get(command, command)
    wanted = [line for line in setup["options.extras_require"][extra].splitlines() if line]
    return wanted if command in ("lint", "wheel") else [*wanted, "requests<3", "graphviz<0.9", "-e", "."]


def exactly(package, version):
    """Write a requirement for pip: "1.8.0" also accepts 1.8.0.post0, and the path of a wheel stays a path."""
    if version and version.endswith(".whl"):
        return str(Path(version).resolve())
    pinned = f"{version}.*" if version and re.fullmatch(r"[\d.]+", version) else version
    return f"{package}=={pinned}" if version else package


def ready_made():
    """Tell whether there is a compiled operator of these sources; one from a wheel in dist is copied."""
    library, sources = ROOT / LIBRARY, operator_sources()
    newest = max(file.stat().st_mtime for file in [ROOT / "setup.py", *sources])
    if library.exists() and library.stat().st_mtime > newest:
        return True
    for file in sorted((ROOT / "dist").glob("*.whl")):
        with zipfile.ZipFile(str(file)) as archive:
            held = set(archive.namelist())
            names = {str(source.relative_to(ROOT)): source for source in sources}
            if {LIBRARY, *names} <= held and all(archive.read(name) == names[name].read_bytes() for name in names):
                unpacked = library.with_suffix(".new")  # a process may have the old one loaded
                unpacked.write_bytes(archive.read(LIBRARY))
                unpacked.replace(library)
                return True
    return False


def set_up(python, folder, command, mxnet=MXNET, numpy=None):
    """Return the interpreter of the virtual environment in `folder`, which is made or updated if necessary.

    One stamp names the Python, MXNet and NumPy for which the environment was made. One stamp for each command says
    what was last installed for it. Each is written at the end, so that an interrupted step is repeated.
    """
    inside, made = folder / "bin" / "python", folder / "stamp"
    installed = folder / f"stamp-{command}"
    identity = f"{python['executable']} {python['version']} {exactly('mxnet', mxnet)} {exactly('numpy', numpy)}"
    content = digest(*(ROOT / name for name in ("setup.cfg", "setup.py", "pyproject.toml")), *operator_sources())
    current = inside.exists() and made.exists() and made.read_text() == identity
    if current and installed.exists() and installed.read_text() == content:
        return inside
    check_machine(python)
    wanted = requirements(command)
    compiles = "-e" in wanted and not ready_made()
    print(f"Setting up {folder.name}: up to 250 MB to fetch and 900 MB on disk"
          f"{', and the C++ operator to compile' if compiles else ''}; {'4 to 6 minutes' if compiles else '1 to 2'}"
          f"{'' if compiles else ' minutes'} on two cores. Later runs start at once.", flush=True)
    if not current:
        step(f"Making {folder.name} with Python {python['version']}",
             [python["executable"], "-m", "venv", "--clear", folder])
        made.write_text(identity)
    # Python compiles the modules that it imports; compiling all installed ones would take a third of the time.
    pip = [inside, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", "--progress-bar", "off"]
    if "-e" in wanted:
        # MXNet comes first, without its requirements: these exclude newer NumPys, and the operator needs its headers.
        step(f"Installing MXNet {mxnet}", [*pip, "--no-deps", exactly("mxnet", mxnet)])
    step(f"Installing {'gluon_kl and ' if '-e' in wanted else ''}what `{command}` uses",
         [*pip, exactly("numpy", numpy), *wanted])
    installed.write_text(content)
    return inside


def step(title, command, environ=None):
    """Run a long command, which reports its own progress."""
    print(f"{title} ...", flush=True)
    code = subprocess.call([str(part) for part in command], cwd=str(ROOT), env=environ)
    if code:
        raise CannotRun(f"{title} failed with exit code {code}.")


def site_digest(python):
    """Return a hash of everything that the rendered site is made from."""
    parts = [ROOT / name for name in ("gluon_kl", "tutorials", "docs", "figures", "CHANGELOG.md", "setup.cfg")]
    return f"{Path(python).parent} {digest(*parts)}"


def build_site(python, only=""):
    """Render the site and run the tutorials whose file name contains `only`; do nothing if nothing has changed.

    Every build starts from an empty folder, so that no figure or page without a source stays. If several processes
    need the site, one builds it and the others wait.
    """
    SITE.parent.mkdir(parents=True, exist_ok=True)
    with open(str(SITE.parent / "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = SITE.parent / "stamp"
        known = stamp.read_text().split("\n") if stamp.exists() else []
        if known[:1] == [site_digest(python)] and known[1] in ("", only):
            return
        # A new folder, because the old site must stay if this build fails.
        fresh = SITE.with_name("unfinished")
        for generated in (fresh, ROOT / "docs" / "gallery", ROOT / "docs" / "generated"):
            shutil.rmtree(str(generated), ignore_errors=True)
        options = ["-D", f"sphinx_gallery_conf.filename_pattern={only}",
                   "-D", f"html_theme_options.announcement={QUICK_NOTICE}"] if only else []
        if " " in str(ROOT):  # the gallery warns of a space, but no link breaks
            options += ["-D", "suppress_warnings=sphinx_gallery.space_in_filename"]
        step("Running the walkthrough and rendering it" if only else "Running every tutorial and rendering the site",
             [python, "-m", "sphinx", "-W", "--keep-going", "-n", "--no-color", *options, "docs", fresh],
             # The tutorials make small arrays; MXNet's usual engine hands each to another thread: half as long again.
             {"MXNET_ENGINE_TYPE": "NaiveEngine", **os.environ})
        shutil.rmtree(str(SITE), ignore_errors=True)
        fresh.rename(SITE)
        stamp.write_text(f"{site_digest(python)}\n{only}")


def tutorial(python, arguments):
    """Train and render the walkthrough only."""
    build_site(python, "kl_divergence")
    print(f"Open {(SITE / 'gallery' / 'kl_divergence.html').as_uri()}")


def docs(python, arguments):
    """Run every tutorial and render the whole site."""
    build_site(python)
    print(f"Open {(SITE / 'index.html').as_uri()}")


def test(python, arguments):
    """Run every test, those of the rendered site included, on all cores. Arguments are pytest's."""
    # One process runs all tests of a file, which share fixtures. MXNet's threads would take another process's core.
    # Tests start Python more than a hundred times: without bytecode files each would compile MXNet's modules.
    environ = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    code = subprocess.call([str(python), "-m", "pytest", "-n", "auto", "--dist", "loadfile", *arguments],
                           cwd=str(ROOT), env=environ)
    why = native_missing(python)
    if why:
        print(f"\n*** This run was WITHOUT the native operator: {why} ***")
    return code or (1 if why and os.environ.get("CI") else 0)


def native_missing(python):
    """Why the fused operator was not used, or an empty string; MXNet before 1.9 cannot load it."""
    if os.environ.get("GLUON_KL_NATIVE") == "0":
        return ""  # the user turned it off
    ask = ("from gluon_kl import native; import mxnet; "
           "print('' if native.is_available() or mxnet.__version__ < '1.9' else native.why_not())")
    answer = subprocess.run([str(python), "-c", ask], cwd=str(ROOT), capture_output=True, text=True)
    return (answer.stdout if answer.returncode == 0 else answer.stderr).strip().split("\n")[-1]


def bench(python, arguments):
    """Measure gluon_kl beside MXNet, torch and JAX; those that are not installed are left out."""
    return subprocess.call([str(python), "benchmarks/run.py", *arguments], cwd=str(ROOT))


def lint(python, arguments):
    """Check style and types. Arguments are ruff's."""
    codes = [subprocess.call([str(python), "-m", *tool], cwd=str(ROOT))
             for tool in (["ruff", "check", *arguments, "."], ["mypy"])]
    return max(codes)


def wheel(python, arguments):
    """Write an sdist and one wheel for every Python to dist, and check them."""
    shutil.rmtree(str(ROOT / "dist"), ignore_errors=True)
    # This compiler links for an old glibc, and the result needs no C++ library at run time.
    zig = f"{shlex.quote(str(python))} -m ziglang c++ -target x86_64-linux-gnu.2.17"
    tools = {"CC": zig, "CXX": zig, "LDSHARED": f"{zig} -shared", "LDCXXSHARED": f"{zig} -shared"}
    step("Building gluon_kl", [python, "-m", "build", "--no-isolation"],
         dict(os.environ, GLUON_KL_RELEASE="1", **tools))
    made = sorted((ROOT / "dist").iterdir())
    step("Checking it", [python, "-m", "twine", "check", "--strict", *made])
    for file in made:
        print(file.relative_to(ROOT))


COMMANDS = {command.__name__: command for command in (tutorial, docs, test, bench, lint, wheel)}
TAKE_ARGUMENTS = ("test", "lint", "bench")


def environment(asked, python):
    """Return the name of the virtual environment for these options, such as .venv or .venv-3.9-mxnet1.8.0."""
    parts = [minor(python)] if asked.python else []
    parts += [name + (Path(version).name.split("-")[1] if version.endswith(".whl") else version)
              for name, version in (("mxnet", asked.mxnet), ("numpy", asked.numpy)) if version]
    return "-".join([".venv", *parts])


def read_command_line(argv):
    """Read the command line; refuse wrong arguments here, not after minutes of set-up."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] COMMAND ...", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n" + "\n".join(f"  {name:9} {command.__doc__}" for name, command in COMMANDS.items()))
    parser.add_argument("--python", metavar="X", help="a path, a version such as 3.9, 'oldest' or 'newest' "
                        "(default: this Python if it fits, or else the newest)")
    parser.add_argument("--mxnet", metavar="Y", help=f"a version of MXNet, or the path of its wheel (default: {MXNET})")
    parser.add_argument("--numpy", metavar="Z", help="a version of NumPy, such as 1.26 (default: the newest that "
                        "fits); each combination has its own environment, such as .venv-3.9-mxnet1.8.0")
    parser.add_argument("command", nargs="?", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.command is None:
        parser.print_help()
    elif asked.command == "bench":
        options = runpy.run_path(str(Path(__file__).parent / "benchmarks" / "options.py"))
        options["parser"](prog=f"{parser.prog} bench").parse_args(asked.arguments)  # exits if it refuses
    elif {"-h", "--help"} & set(asked.arguments):
        print(f"{parser.prog} {asked.command}: {COMMANDS[asked.command].__doc__}")
        asked.command = None
    elif asked.arguments and asked.command not in TAKE_ARGUMENTS:
        parser.error(f"{asked.command} takes no arguments, and was given {' '.join(asked.arguments)}; options of "
                     f"{parser.prog} come before the command")
    return asked


def main(argv=None):
    """Read the command line, set up, run; return the exit code."""
    asked = read_command_line(argv)
    if asked.command is None:
        return 0
    try:
        if not sys.platform.startswith("linux"):
            raise CannotRun(f"gluon_kl supports Linux, not {sys.platform}.")
        python = choose_python(asked.python)
        inside = set_up(python, ROOT / environment(asked, python), asked.command, asked.mxnet or MXNET, asked.numpy)
        return COMMANDS[asked.command](inside, asked.arguments) or 0
    except CannotRun as reason:
        print(reason, file=sys.stderr)
        return 1
    except OSError as error:
        reasons = {errno.ENOSPC: "the disk is full", errno.EROFS: "this checkout can only be read",
                   errno.EACCES: "this checkout can only be read"}
        if error.errno not in reasons:
            raise
        print(f"{error.filename or ROOT}: {reasons[error.errno]}. Work in a copy where there is room to write: "
              f"`{asked.command}` makes files in {ROOT}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nStopped. What was installed or built before this step is kept, what this step was making is not "
              f"used: `python3 {shlex.quote(sys.argv[0])} {asked.command}` goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
