"""The page "Which divergence?": its numbers against a search over all bells, in NumPy alone."""

import re

import numpy as np
import pytest
from rendered import printed

pytestmark = pytest.mark.site

PLACES = np.linspace(-8, 8, 65)


def bells(centres, widths):
    weights = np.exp(-0.5 * ((PLACES - centres[..., None]) / widths[..., None]) ** 2) + 1e-300
    return weights / weights.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


@pytest.fixture(scope="module")
def said(site):
    return printed(site, "which_divergence")


def test_the_best_fits_are_the_best_of_all_bells(said):
    centres, widths = np.meshgrid(np.linspace(-4, 1, 201), np.linspace(0.5, 4, 141), indexing="ij")
    model = bells(centres, widths)
    target = 0.6 * bells(np.array(-3.0), np.array(0.7)) + 0.4 * bells(np.array(3.0), np.array(1.0))
    mixture = (model + target) / 2
    found = {name: min(map(float, re.findall(re.escape(name) + r"\s+(?:left|middle|right)\s+(\d+\.\d{4})", said)))
             for name in ("KL(p ‖ q)", "Jensen-Shannon", "KL(q ‖ p)")}
    for name, values in {"KL(p ‖ q)": kl(target, model), "KL(q ‖ p)": kl(model, target),
                         "Jensen-Shannon": (kl(target, mixture) + kl(model, mixture)) / 2}.items():
        assert found[name] == pytest.approx(values.min(), abs=5e-4)


def test_disjoint_supports(said):
    assert re.findall(r"^\w*DivLoss\s+(\S+)", said, re.MULTILINE) == ["inf", "0.6931", "inf"]


def test_temperature_keeps_the_gradient(said):
    rows = np.array(re.findall(r"^ ?(\d+) +(\d\.\d{4}) +(\d\.\d{4})$", said, re.MULTILINE), dtype=float)
    assert list(rows[:, 0]) == [1, 2, 5, 10, 20]
    np.testing.assert_allclose(rows[:, 1] * rows[:, 0] ** 2, rows[:, 2], rtol=0.02)
    assert rows[:, 2].max() < 2 * rows[:, 2].min()
