"""``python -m gluon_kl``: runs a program that imports MXNet first, on a Python or NumPy that is too new for MXNet."""

import argparse
import builtins
import os
import runpy
import sys
import types
import zipfile
from importlib.machinery import SourceFileLoader

from gluon_kl import _hook

EPILOG = """\
examples:
  python -m gluon_kl -m gluonts.shell train       a module, as `python -m` would
  python -m gluon_kl train.py --epochs 3          a script, as `python` would
  python -m gluon_kl "$(command -v sockeye-train)" --help
                                                  a console program

If the program spawns processes instead of forking them, they start a new Python: only the hook works there.
"""


def parse(arguments):
    """Return the function to call and its arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m gluon_kl", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s (-m MODULE | -c COMMAND | SCRIPT) [ARGUMENT ...]\n"
              "       %(prog)s (--install-hook | --remove-hook)",
        description="Run a program that imports MXNet first. On Python 3.12 or newer, or with NumPy 1.24 or\n"
                    "newer, MXNet 1.x cannot be imported by itself: gluon_kl patches the names that it needs.\n"
                    "SCRIPT is a file, or a folder or zip file that holds a __main__.py.")
    group = parser.add_mutually_exclusive_group()
    for name, call, text in [
            ("-m", run_module, "run the module whose name follows"), ("-c", run_command, "run the code that follows"),
            ("--install-hook", _hook.install, "write a .pth file into this environment, so that a plain `import mxnet` "
             "works there"), ("--remove-hook", _hook.remove, "remove that file")]:
        group.add_argument(name, dest="call", action="store_const", const=call, default=run_script, help=text)
    # The program's own arguments may have any form, so argparse must not see them.
    ours = next((i + (text in ("-m", "-c")) for i, text in enumerate(arguments)
                 if text in ("-m", "-c") or not text.startswith("-")), len(arguments))
    call, rest = parser.parse_args(arguments[:ours]).call, arguments[ours:]
    if call in (_hook.install, _hook.remove):
        if rest:
            parser.error(f"a hook takes no argument, such as {rest[0]!r}")
    elif not rest:
        parser.error("say what to do: -m MODULE, -c COMMAND, SCRIPT, --install-hook or --remove-hook")
    return call, rest


def new_main(**names):
    """Replace ``__main__`` by a new module of the program, and keep it: threads and pickles look there."""
    main = types.ModuleType("__main__")
    main.__dict__.update({"__builtins__": builtins, **names})
    sys.modules["__main__"] = main
    return main.__dict__


def run_module(name, *arguments):
    sys.argv = ["-m", *arguments]
    new_main()
    runpy._run_module_as_main(name)  # type: ignore[attr-defined]  # what `python -m` itself calls; the public ones take their __main__ away again


def run_command(source, *arguments):
    sys.argv = ["-c", *arguments]
    set_first_path("")
    exec(compile(source, "<string>", "exec"), new_main())


def run_script(path, *arguments):
    sys.argv = [path, *arguments]
    if os.path.isdir(path) or zipfile.is_zipfile(path):
        set_first_path(path)
        new_main()
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]
        return
    loader = SourceFileLoader("__main__", os.path.abspath(path))
    try:
        source = loader.get_data(loader.path)
    except OSError as error:
        print(f"python -m gluon_kl: can't open file {loader.path!r}: [Errno {error.errno}] {error.strerror}",
              file=sys.stderr)
        sys.exit(2)
    set_first_path(os.path.dirname(os.path.realpath(path)))
    exec(loader.source_to_code(source, loader.path), new_main(__file__=loader.path, __loader__=loader, __cached__=None))


def set_first_path(folder):
    """Set the first entry of ``sys.path`` as Python does, unless its options forbid that (-I, -P)."""
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path[0] = folder


def main(arguments):
    """Run the command; return an exit code, or a message for standard error."""
    call, rest = parse(arguments)
    if call not in (_hook.install, _hook.remove):
        call(*rest)
        return 0
    try:
        print(call())
    except _hook.Failure as failure:
        return str(failure)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
