"""The page on large vocabularies: its measurements, its training, and what it prints."""

import re

import gallery
import numpy as np
import pytest
from mxnet import nd
from rendered import printed

OWN, OURS = "MXNet's own, ", "gluon_kl, "


@pytest.fixture(scope="module")
def page():
    """What the page defines; what it measures and trains is on the rendered one."""
    return gallery.definitions("large_vocabulary")


def test_subjects_compute_the_same(page, rng):
    pred, label = nd.array(rng.normal(size=(3, 50))), nd.softmax(nd.array(rng.normal(size=(3, 50))))
    values = [page["make_loss"](subject)(pred, label).asnumpy() for subject in page["SUBJECTS"]]
    for value in values[1:]:
        np.testing.assert_allclose(value, values[0], rtol=1e-5)


def test_training_starts_at_the_true_divergence_and_falls(page):
    """The student that knows nothing is uniform: KL to it is log(categories) less the entropy."""
    random = np.random.default_rng(5)
    matrix, bias = (x.asnumpy().astype("float64") for x in page["make_teacher"](300, random))
    logits = random.standard_normal((256, len(matrix)), dtype="float32") @ matrix + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    steps, after = page["train"](40, 32, 300, seed=5)
    assert after[0] == pytest.approx((np.log(300) + (p * np.log(p)).sum(1)).mean(), rel=1e-5)
    assert len(steps) == 40 and after[40] < after[0] / 4


def test_seed_decides(page):
    runs = [page["train"](3, 4, 100, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_a_weighing_that_fails_says_so(page):
    with pytest.raises(RuntimeError, match="ended with code"):
        page["weigh_apart"](["nobody's"], 2, 3)


def test_time_is_taken_in_turns(page):
    """A step of each subject, whose first turn does not count."""
    seconds = page["time_in_turns"](page["SUBJECTS"], 4, 50, turns=2)
    assert list(seconds) == page["SUBJECTS"] and min(seconds.values()) > 0


@pytest.fixture(scope="module")
def said(site):
    return printed(site, "large_vocabulary")


@pytest.mark.site
def test_page_shows_convergence(said):
    after = [float(x) for x in re.findall(r"after +\d+ steps: ([\d.]+) nats", said)]
    assert after[0] == pytest.approx(3.895, abs=0.01)
    assert after[-1] < 0.1
    assert after == sorted(after, reverse=True)


@pytest.mark.site
def test_page_shows_what_the_operator_saves(said):
    if "fused operator: in use" not in said:
        pytest.skip("the page was made without the fused operator, which alone saves memory and time")
    rows = {name: (float(memory), float(speed)) for name, memory, speed in
            re.findall(r"^(MXNet's own, \w+|gluon_kl, \w+) +([\d.]+) +([\d.]+)$", said, re.MULTILINE)}
    assert len(rows) == 4
    for mode in ("eager", "hybridized"):
        (own_memory, own_speed), (memory, speed) = rows[OWN + mode], rows[OURS + mode]
        assert -0.2 < memory < 0.5 < 2.5 < own_memory
        assert speed > 1.5 * own_speed
