"""The page Troubleshooting: each snippet does what stands below it, wrong or mended."""

import contextlib
import io
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "troubleshooting.rst"
# These change the process that they run in, or start others.
ALONE = {"AMP", "DataLoader workers"}
OF_THE_OPERATOR = {"Slow"}
BLOCK = re.compile(r"\.\. code-block:: (\w+)\n((?:   :.*\n)*)\n((?:   .*\n|\n)+)")


def sections():
    """The text of each section by its title; that of the page holds what all others go on from."""
    text = PAGE.read_text()
    titles = list(re.finditer(r"^(\S.*)\n([=-])\2{2,}\n", text, re.MULTILINE))
    ends = [title.start() for title in titles[1:]] + [len(text)]
    return {title.group(1): text[title.end():end] for title, end in zip(titles, ends)}


def snippets(text):
    """Every piece of Python with the output that the page shows below it, "" for none."""
    blocks = [(kind, textwrap.dedent(body).strip()) for kind, _, body in BLOCK.findall(text)]
    for (kind, body), (next_kind, shown) in zip(blocks, blocks[1:] + [("", "")]):
        if kind == "python":
            yield body, shown if next_kind == "text" else ""


def played(title):
    """Run a section after the first lines of the page; what each snippet printed or raised beside what is shown."""
    texts, names = sections(), {}
    first = next(iter(texts))
    for part in dict.fromkeys([first, title]):
        for source, shown in snippets(texts[part]):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                try:
                    exec(compile(source, f"{title}, troubleshooting.rst", "exec"), names)
                except Exception as error:
                    print(f"{type(error).__name__}: {error}")
            yield source, out.getvalue(), shown


def import_error(source):
    """What `import gluon_kl` says after `source`, in a process of its own."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", f"{source}\nimport gluon_kl"], cwd=str(ROOT),
                          timeout=120, text=True, capture_output=True)
    return done.stderr.strip().split("\n")[-1]


@pytest.mark.parametrize("row, source", list(enumerate([
    "import sys, types, numpy; sys.modules['mxnet'] = types.ModuleType('mxnet'); sys.version_info = (3, 13, 0)",
    "import sys, numpy; sys.version_info = (3, 14, 0)",
    "import numpy; numpy.__version__ = '3.0.0'",
    "import sys, importlib.util as util; util.find_spec = lambda *_: None",
    "import sys, numpy; sys.path.insert(0, 'MXNET')",
])), ids=["order", "Python", "NumPy", "no MXNet", "libgomp1"])
def test_what_the_import_says_is_on_the_page(row, source, tmp_path):
    rows = re.findall(r"^   \* - \"(.*)\"\n     - (.*)$", sections()["Python or NumPy too new"], re.MULTILINE)
    said, paste = (text.replace("``", "`") for text in rows[row])
    package = tmp_path / "mxnet"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')")
    error = import_error(source.replace("MXNET", str(tmp_path)))
    assert said in error
    for command in re.findall(r"`((?:pip|apt-get) .*?)`", paste):
        assert command in error or "cpu" in command or command == "pip install --no-deps mxnet", error


def lines(text):
    return [line.rstrip() for line in text.strip().splitlines()]


def compare(title):
    for source, found, shown in played(title):
        assert lines(found) == lines(shown), f"{source}\n\ngives\n\n{found}\nand not\n\n{shown}"


@pytest.mark.parametrize("title", [title for title in sections() if title not in ALONE])
def test_snippets_do_what_they_show(title, path):
    if title in OF_THE_OPERATOR and path != "native":
        pytest.skip("it shows that the operator is there")
    compare(title)


@pytest.mark.parametrize("title", sorted(ALONE))
def test_snippets_do_what_they_show_alone(title, request):
    if title == "AMP":
        request.getfixturevalue("bfloat16_layers")
    source = f"import sys; sys.path[:0] = ['tests', '.']; from test_troubleshooting import compare; compare({title!r})"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", source], cwd=str(ROOT), timeout=120, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":  # prints what the page should show
    for title in sys.argv[1:] or sections():
        print(f"== {title}")
        for source, found, _ in played(title):
            print(textwrap.indent(source, "    "), f"--\n{found}", sep="\n")
