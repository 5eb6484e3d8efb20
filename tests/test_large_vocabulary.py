"""The page on large vocabularies: its measurements, its stored teacher, and what it prints."""

import mmap
import re

import gallery
import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from rendered import printed


@pytest.fixture(scope="module")
def page():
    """What the page defines; what it measures and trains is on the rendered one."""
    return gallery.definitions("large_vocabulary")


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.skipif(mx.__version__ < "1.9", reason="MXNet's own loss took means of all elements before 1.9")
def test_losses_compute_the_same(page):
    logits, label = page["make_inputs"](3, 50)
    values = [page["take_step"](loss, logits, label).asnumpy() for loss in page["make_losses"]().values()]
    p, q = (softmax(x.asnumpy().astype("float64")) for x in (label.log(), logits))
    np.testing.assert_allclose(values, [(p * np.log(p / q)).sum(1)] * 2, rtol=1e-5)


def test_a_step_is_measured_for_each_loss(page):
    losses = page["make_losses"]()
    copies, seconds = page["measure"](losses, page["make_inputs"](4, 50), turns=2)
    assert list(copies) == list(seconds) == list(losses) and min(seconds.values()) > 0


def test_memory_is_this_process_in_bytes(page):
    held = page["memory"]("VmRSS")
    more = np.frombuffer(mmap.mmap(-1, 64_000_000))  # an array of NumPy's may take memory that an earlier test freed
    more.fill(1)
    grown = page["memory"]("VmRSS") - held
    assert 60e6 < grown < 70e6 <= page["memory"]("VmHWM"), len(more)


def test_the_best_tokens_are_stored(page, rng):
    logits = rng.normal(size=(5, 9))
    index, value = (x.asnumpy() for x in page["store"](nd.array(logits), 3))
    order = np.argsort(-logits, axis=1)[:, :3]
    assert index.dtype == np.int32
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(np.exp(value), np.take_along_axis(softmax(logits), order, 1), rtol=1e-5)


def data(page, tokens=60, seed=3):
    random = np.random.default_rng(seed)
    teacher = page["make_teacher"](tokens, random, width=4)
    return teacher, page["draw_states"](64, random, width=4), page["draw_states"](40, random, width=4)


def test_a_student_that_knows_nothing_is_uniform(page):
    """Its distance is log(tokens) less the teacher's entropy; it always says the first token."""
    teacher, _, unseen = data(page)
    logits = teacher(unseen).asnumpy().astype("float64")
    p = softmax(logits)
    accuracy, distance = page["judge"](page["make_student"](60, width=4), teacher, unseen)
    assert distance == pytest.approx((np.log(60) + (p * np.log(p)).sum(1)).mean(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == 0).mean()


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "drop"])
def test_a_student_learns_from_what_was_stored(page, tail):
    teacher, states, unseen = data(page)
    untrained = page["judge"](page["make_student"](60, width=4), teacher, unseen)
    student = page["make_student"](60, width=4)
    took = page["train"](student, page["make_loss"](8, tail), states, page["store"](teacher(states), 8), 60, 16)
    assert took > 0
    accuracy, distance = page["judge"](student, teacher, unseen)
    assert accuracy > untrained[0] + 0.2
    assert tail != "bucket" or distance < untrained[1] / 2


def test_with_all_tokens_the_bucket_is_the_dense_loss(page):
    """Stored or not, the student is the same."""
    teacher, states, unseen = data(page)
    found = []
    for k, stored in ((None, [teacher(states)]), (60, page["store"](teacher(states), 60))):
        student = page["make_student"](60, width=4)
        page["train"](student, page["make_loss"](k), states, stored, 30, 16)
        found.append(page["judge"](student, teacher, unseen))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3)


@pytest.fixture(scope="module")
def said(site):
    return printed(site, "large_vocabulary")


@pytest.mark.site
def test_page_shows_that_more_tokens_teach_more(said):
    rows = [gallery.numbers(line.replace("k =", "").replace("all tokens", ""))
            for line in said.splitlines() if re.match(r"k = \d+ +[\d.]+ +\d+ ms|all tokens ", line)]
    assert len(rows) == 4
    for column, sign in ((-4, 1), (-2, 1), (-1, -1)):
        values = [sign * row[column] for row in rows]
        assert values == sorted(set(values)), values


@pytest.mark.site
def test_page_shows_what_the_operator_saves(said):
    if "fused operator: in use" not in said:
        pytest.skip("the page was made without the fused operator, which alone saves memory and time")
    rows = [[float(number) for number in found] for found in
            re.findall(r"^(?:MXNet's own|gluon_kl) +([\d.]+) +(\d+) ms$", said, re.MULTILINE)]
    (own_copies, own_time), (copies, took) = rows
    assert copies < 0.5 < 2.5 < own_copies
    assert own_time > 1.5 * took
