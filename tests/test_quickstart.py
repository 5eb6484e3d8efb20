"""The page Quickstart: each block runs alone on both paths, prints what the page shows, and teaches its network."""

import contextlib
import functools
import io
import re
import textwrap

import gallery
import mxnet as mx
import numpy as np
import pytest

PAGE = gallery.ROOT / "docs" / "quickstart.rst"
BLOCK = re.compile(r"\.\. code-block:: (\w+)\n(?:   :.*\n)*\n((?:   .*\n|\n)+)")
LOOP = 30  # lines of a block at most: 15 of data, networks and imports, 15 of the loop


def sections():
    """Code and shown output of each section, by its title."""
    text = PAGE.read_text("utf-8")
    titles = list(re.finditer(r"^(\S.*)\n-{3,}\n", text, re.MULTILINE))
    ends = [title.start() for title in titles[1:]] + [len(text)]
    found = {}
    for title, end in zip(titles, ends):
        (kind, code), (shown_as, shown) = BLOCK.findall(text[title.end():end])
        assert (kind, shown_as) == ("python", "text")
        found[title.group(1)] = textwrap.dedent(code).strip(), textwrap.dedent(shown).strip()
    return found


SECTIONS = sections()


@functools.lru_cache(maxsize=None)
def run(code, path):
    """Run a block as a program of its own, once on each path; what it printed, and its names."""
    mx.random.seed(0)
    np.random.seed(0)
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "quickstart.rst", "exec"), names)
    return printed.getvalue().strip(), names


def words(text):
    """Words as they are, numbers as numbers."""
    return [float(word) if re.fullmatch(r"-?[\d.]+(?:e-?\d+)?", word) else word
            for word in re.split(r"[\s\[\]]+", text)]


@pytest.mark.parametrize("title", SECTIONS)
def test_a_block_prints_what_is_shown(title, path):
    code, shown = SECTIONS[title]
    printed, _ = run(code, path)
    expected = [word if isinstance(word, str) else pytest.approx(word, rel=0.05, abs=1e-4) for word in words(shown)]
    assert words(printed) == expected


@pytest.mark.parametrize("title", SECTIONS)
def test_a_block_is_short_and_fits_a_phone(title):
    lines = SECTIONS[title][0].split("\n")
    loop = next((i for i, line in enumerate(lines) if line.startswith("for ")), 0)
    assert len(lines) <= LOOP and len(lines) - loop <= 15
    assert max(map(len, lines)) <= 50


@pytest.mark.parametrize("title", ["Distil a teacher", "Leave out padding", "Train a VAE", "Watch bits while training"])
def test_the_loss_falls(title, path):
    printed, _ = run(SECTIONS[title][0], path)
    first, last = (words(line)[1] for line in (printed.split("\n")[0], printed.split("\n")[-1]))
    assert last < 0.6 * first


def test_padding_is_left_out(path):
    code, _ = SECTIONS["Leave out padding"]
    spoilt = code.replace("label = table.take(tokens)", "label = table.take(tokens)\nlabel = nd.where("
                          "mask.expand_dims(2).broadcast_like(label), label, label * float('nan'))")
    assert spoilt != code
    assert run(spoilt, path)[0] == run(code, path)[0]


def test_a_vae_by_the_defaults_collapses(path):
    """What the warning says: the same loop without `reduction` ends with latent variables that carry nothing."""
    code, _ = SECTIONS["Train a VAE"]
    assert code.count('(reduction="sum")') == 2
    by_default = code.replace('reduction="sum"', "")
    carried = [run(source, path)[1]["kl"].mean().asscalar() for source in (code, by_default)]
    assert carried[0] > 2 and carried[1] < 0.05
