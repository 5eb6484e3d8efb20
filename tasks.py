#!/usr/bin/env python3
"""Set the project up and run it: ``python3 tasks.py tutorial | docs | test | bench | lint``.

Each command makes a virtual environment beside this file if need be, installs the package with what its tasks use,
and runs. Only the standard library is needed. Arguments after the command go to the tool that it runs.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SITE = ROOT / "docs" / "_build" / "html"
OLDEST, NEWEST = "3.8", "3.11"
LIBRARIES = {"libgomp.so.1": "libgomp1", "libquadmath.so.0": "libquadmath0"}  # what MXNet links to: Debian's package
QUICK_NOTICE = "Only the walkthrough was run. <code>python3 tasks.py docs</code> runs every page."

# Run by each interpreter that might do: the only honest way to know one (a pyenv shim exists and may still fail).
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
    """What stands in the way, in a sentence for the user."""


def probe(executable):
    """Ask an interpreter about itself; None if it does not run."""
    try:
        answer = subprocess.run([str(executable), "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                timeout=60, check=True)
        return json.loads(answer.stdout.decode())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def fits(python):
    """Tell whether MXNet 1.9.1 runs on this Python."""
    return python is not None and numbers(OLDEST) <= numbers(minor(python)) <= numbers(NEWEST)


def interpreters():
    """All fitting interpreters of this machine, oldest first: on PATH, or installed by pyenv or uv."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    pyenvs = {folder.parent for folder in folders if folder.name == "shims"}
    pyenvs |= {Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()}
    for manager in [pyenv / "versions" for pyenv in sorted(pyenvs)] + [Path("~/.local/share/uv/python").expanduser()]:
        folders += sorted(manager.glob("*/bin"))
    names = [f"python3.{last}" for last in range(numbers(OLDEST)[1], numbers(NEWEST)[1] + 1)]
    found = [probe(folder / name) for folder in folders for name in names if os.access(str(folder / name), os.X_OK)]
    return sorted(filter(fits, found), key=lambda python: numbers(python["version"]))


def choose_python(wanted=None):
    """Find the interpreter to work with: the one asked for, or the running one, or else the newest that fits."""
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
            f"MXNet 1.9.1 needs a Python from {OLDEST} to {NEWEST}, this is {running['version']} and no other is here: "
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
    """Condense the contents of files, and of all files in folders, into one line; what was generated does not count."""
    total = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            generated = {"__pycache__", "_build", "gallery", "generated"} & set(file.relative_to(ROOT).parts)
            if file.is_file() and not generated and file.suffix != ".so":
                total.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return total.hexdigest()


def set_up(python, folder):
    """Return the interpreter of the virtual environment in `folder`, made or brought up to date if need be.

    A stamp is written last, so that an environment left half made (an interrupted install, a venv without pip) is
    recognised and made anew.
    """
    stamp, inside = folder / "stamp", folder / "bin" / "python"
    identity = f"{python['executable']} {python['version']}"
    sources = [ROOT / name for name in ("setup.cfg", "setup.py", "pyproject.toml")]
    sources += [file for file in sorted((ROOT / "gluon_kl" / "native").glob("*")) if file.suffix in (".h", ".cc")]
    content = f"{identity}\n{digest(*sources)}\n"
    known = stamp.read_text() if stamp.exists() and inside.exists() else ""
    if known == content:
        return inside
    check_machine(python)
    if known.split("\n")[0] != identity:
        shutil.rmtree(folder, ignore_errors=True)
        step(f"Making {folder.name} with Python {python['version']}",
             [python["executable"], "-m", "venv", folder])
    else:
        stamp.unlink()
    step(f"Installing gluon_kl and its tools into {folder.name} (a minute or two)",
         [inside, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", "-e", ".[dev]"])
    stamp.write_text(content)
    return inside


def step(title, command):
    """Run a long command, showing its latest line as it goes; when it fails, show what it said."""
    print(f"{title} ...", flush=True)
    began = shown = time.monotonic()
    terminal, width = sys.stdout.isatty(), shutil.get_terminal_size().columns
    lines = []
    with subprocess.Popen([str(part) for part in command], cwd=str(ROOT), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        for line in filter(None, map(str.strip, process.stdout)):
            lines.append(line)
            now = time.monotonic()
            if terminal:
                print(f"\r\033[K{f'{now - began:5.0f} s  {line}'[:width - 1]}", end="", flush=True)
            elif now - shown > 15:
                print(f"{now - began:5.0f} s  {line[:100]}", flush=True)
                shown = now
    if terminal:
        print("\r\033[K", end="")
    if process.returncode:
        print("\n".join(lines[-40:]))
        raise CannotRun(f"{title} failed with exit code {process.returncode}: the lines above say why.")
    print(f"{time.monotonic() - began:5.0f} s  done", flush=True)


def site_digest(python):
    """Condense all that the rendered site is made of."""
    parts = [ROOT / name for name in ("gluon_kl", "tutorials", "docs", "figures", "CHANGELOG.md", "setup.cfg")]
    return f"{Path(python).parent} {digest(*parts)}"


def build_site(python, only="", arguments=()):
    """Render the site, running the tutorials whose file name holds `only`; skipped while nothing has changed.

    Every build starts from nothing: a figure or a page that no source makes any more would otherwise live on.
    """
    stamp = SITE.parent / "stamp"
    known = stamp.read_text().split("\n") if stamp.exists() else []
    if known[:1] == [site_digest(python)] and known[1] in ("", only) and not arguments:
        return
    for generated in (SITE.parent, ROOT / "docs" / "gallery", ROOT / "docs" / "generated"):
        shutil.rmtree(generated, ignore_errors=True)
    options = ["-D", f"sphinx_gallery_conf.filename_pattern={only}",
               "-D", f"html_theme_options.announcement={QUICK_NOTICE}"] if only else []
    step("Running the walkthrough and rendering it" if only else "Running every tutorial and rendering the site",
         [python, "-m", "sphinx", "-W", "--keep-going", "-n", "--no-color", *options, *arguments, "docs", SITE])
    stamp.write_text(f"{site_digest(python)}\n{only}")


def tutorial(python, arguments):
    """Train and render the walkthrough alone: docs/_build/html/index.html."""
    build_site(python, "kl_divergence", arguments)
    print(f"Open {(SITE / 'index.html').relative_to(ROOT)} in a browser.")


def docs(python, arguments):
    """Run every tutorial and render the whole site."""
    build_site(python, "", arguments)
    print(f"Open {(SITE / 'index.html').relative_to(ROOT)} in a browser.")


def test(python, arguments):
    """Run every test, those of the rendered site included."""
    code = subprocess.call([str(python), "-m", "pytest", *arguments], cwd=str(ROOT))
    why = native_missing(python)
    if why:
        print(f"\n*** This run was WITHOUT the native operator: {why} ***")
    return code or (1 if why and os.environ.get("CI") else 0)


def native_missing(python):
    """Why the fused operator did not take part, or an empty string."""
    if os.environ.get("GLUON_KL_NATIVE") == "0":
        return ""  # asked for, so nothing is missing
    ask = "from gluon_kl import native; print('' if native.is_available() else native.why_not())"
    answer = subprocess.run([str(python), "-c", ask], cwd=str(ROOT), capture_output=True, text=True)
    return (answer.stdout if answer.returncode == 0 else answer.stderr).strip().split("\n")[-1]


def bench(python, arguments):
    """Measure gluon_kl beside MXNet, torch and JAX; of these, what is not installed is left out."""
    return subprocess.call([str(python), "benchmarks/run.py", *arguments], cwd=str(ROOT))


def lint(python, arguments):
    """Check style and types."""
    codes = [subprocess.call([str(python), "-m", *tool], cwd=str(ROOT))
             for tool in (["ruff", "check", *arguments, "."], ["mypy"])]
    return max(codes)


COMMANDS = {command.__name__: command for command in (tutorial, docs, test, bench, lint)}


def main(argv=None):
    """Read the command line, set up, run; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:9} {command.__doc__}" for name, command in COMMANDS.items()))
    parser.add_argument("--python", metavar="X", help="a path, a version such as 3.9, 'oldest' or 'newest'; "
                        "its environment is .venv-3.9, say (default: this Python if it fits, in .venv)")
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on, as in: test -k page")
    asked = parser.parse_args(argv)
    try:
        if not sys.platform.startswith("linux"):
            raise CannotRun(f"gluon_kl supports Linux, not {sys.platform}.")
        python = choose_python(asked.python)
        folder = f".venv-{minor(python)}" if asked.python else ".venv"
        return COMMANDS[asked.command](set_up(python, ROOT / folder), asked.arguments) or 0
    except CannotRun as reason:
        print(reason, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
