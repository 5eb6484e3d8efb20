"""README: its example prints what it shows, its links lead somewhere, and what it warns of is so."""

import contextlib
import io
import re

import gluon_kl

import mxnet as mx
import numpy as np
import pytest
from gallery import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_prints_what_is_shown(path):
    source, shown = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.DOTALL).groups()
    assert len(source.splitlines()) <= 12
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "README.md", "exec"), {})
    assert printed.getvalue() == shown


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\((.*?)\)", README) if not link.startswith("http")]
    assert len(links) > 5
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_version_is_that_of_the_package():
    assert f"Version {gluon_kl.__version__}" in README


def test_every_loss_is_in_the_table():
    named = re.findall(r"^\| `(\w+)`", README, re.MULTILINE)
    assert sorted(named) == sorted(name for name in gluon_kl.__all__ if name.endswith("Loss"))


@pytest.mark.parametrize("page", ["README.md", "docs/contract.rst", "docs/troubleshooting.rst", "docs/quickstart.rst",
                                  "gluon_kl/bernoulli.py", "gluon_kl/gaussian.py"])
def test_the_defaults_of_a_vae_are_warned_of(page, path):
    """Of what is read first, each says it; and that is how it is."""
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert "BernoulliKLLoss" in text and "averages over the pixels" in text and "collapse" in text
    pixels, scores = mx.nd.ones((2, 784)), mx.nd.zeros((2, 784))
    by_default, added = (gluon_kl.BernoulliKLLoss(**kwargs)(scores, pixels).asnumpy()
                         for kwargs in ({}, {"reduction": "sum"}))
    np.testing.assert_allclose(784 * by_default, added, rtol=1e-6)
    mean, log_variance = mx.nd.ones((2, 20)), mx.nd.zeros((2, 20))
    np.testing.assert_allclose(gluon_kl.GaussianKLLoss()(mean, log_variance).asnumpy(), 10, rtol=1e-6)
