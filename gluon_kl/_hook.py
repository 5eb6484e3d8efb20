"""The hook that makes a plain ``import mxnet`` work: a ``.pth`` file, which Python reads whenever it starts."""

import inspect
import os
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

NAME = "gluon_kl_hook.pth"


class Failure(Exception):
    """The reason why the hook cannot be installed or removed, as a sentence."""


class Hook:
    """An entry of ``sys.meta_path``. When MXNet is imported, it patches the names that MXNet needs.

    It imports nothing before. This source is written into the ``.pth`` file and runs there by itself, even if gluon_kl
    was uninstalled.
    """

    def find_spec(self, name, path=None, target=None):
        if name != "mxnet":
            return None
        import importlib.util
        import os
        home = importlib.util.find_spec("gluon_kl")  # an import would import MXNet
        if home is None or not home.submodule_search_locations:
            return None
        file = os.path.join(home.submodule_search_locations[0], "_lend.py")
        if not os.path.isfile(file):  # another release of gluon_kl
            return None
        spec = importlib.util.spec_from_file_location("gluon_kl._lend", file)  # never None: the file is there
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        try:
            spec.loader.exec_module(module)  # type: ignore[union-attr]
        except ImportError:  # no NumPy: MXNet says so itself
            return None
        finder = module.lend()
        return finder and finder.find_spec(name, path, target)


def line():
    """Return the content of the file. Python runs each line of it by itself, so it is one line."""
    source = inspect.getsource(Hook) + "\nimport sys\nsys.meta_path.insert(0, Hook())\n"
    return f"import sys; exec({source!r}, {{'__name__': 'gluon_kl_hook'}})\n"


def folders():
    """Return the folders of this environment whose ``.pth`` files are read; the one to write to comes first."""
    shared = [sysconfig.get_path("purelib")]
    own = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    package = str(Path(__file__).resolve().parent)
    return own + shared if any(package.startswith(os.path.join(folder, "")) for folder in own) else shared + own


def check_home():
    """Raise an error if gluon_kl is not installed, but only found in the current folder."""
    look = "import importlib.util as util; raise SystemExit(not util.find_spec('gluon_kl'))"
    if subprocess.run([sys.executable, "-c", look], cwd=os.path.dirname(sys.executable)).returncode:
        raise Failure("gluon_kl was found in the current folder only, so a hook would not find it from other folders: "
                      "`pip install .` (or `pip install -e .`) installs it in this environment")


def install():
    """Write the hook; return a sentence that says what was done."""
    check_home()
    problems = []
    for folder in folders():
        file = Path(folder, NAME)
        try:
            if file.exists() and file.read_text(encoding="utf-8") == line():
                return f"{file} is there already: a plain `import mxnet` works in this environment."
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(line(), encoding="utf-8")
        except OSError as error:
            problems.append(f"{file} cannot be written ({error.strerror})")
        else:
            return (f"Wrote {file}: from now on a plain `import mxnet` works in this environment. "
                    "`python -m gluon_kl --remove-hook` removes it.")
    raise Failure(f"{'; '.join(problems)}: run this as a user who may write there, or in a virtual environment")


def remove():
    """Remove the hook; return a sentence that says what was done."""
    removed = []
    for folder in folders():
        file = Path(folder, NAME)
        try:
            file.unlink()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise Failure(f"{file} cannot be removed ({error.strerror}): run this as a user who may write there"
                          ) from None
        removed.append(str(file))
    if not removed:
        return f"There is no hook to remove: no {NAME} in {' or '.join(folders())}."
    return f"Removed {' and '.join(removed)}."
