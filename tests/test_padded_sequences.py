"""The page on padded sequences: what it prints, draws and claims, and the functions that its readers would copy."""

import gallery
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from rendered import lines_of

page = lines_of("padded_sequences")


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    return gallery.names_of("padded_sequences", "--seeds", 1, "--steps", 2, "--hidden", 8,
                            "--figures", tmp_path_factory.mktemp("small"))


def value_of(lines, start):
    """The numbers of the one line that starts with `start`."""
    line, = (line for line in lines if line.startswith(start))
    return gallery.numbers(line[len(start):].strip(" []"))


def softmax(z):
    weights = np.exp(z - z.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def kl(label, pred):
    p, q = softmax(label), softmax(pred)
    return (p * np.log(p / q)).sum(axis=-1)


@pytest.mark.site
def test_weights_leave_padding_out_whatever_it_holds(page):
    alone = value_of(page, "each cut to length:")
    assert value_of(page, "with the weights:") == value_of(page, "NaN in the padding:") == alone
    assert value_of(page, "padding counted:") != alone
    assert value_of(page, "its gradient:") == [0]


@pytest.mark.site
def test_the_printed_means_are_those_of_the_formula(page):
    random = np.random.RandomState(1)
    pred, label = random.randn(2, 6, 5), random.randn(2, 6, 5)
    nats = kl(label, pred)
    cut = [nats[0, :4].mean(), nats[1, :2].mean()]
    np.testing.assert_allclose(value_of(page, "with the weights:"), cut, atol=6e-5)
    np.testing.assert_allclose(value_of(page, "padding counted:"), nats.mean(axis=1), atol=6e-5)


@pytest.mark.site
def test_counting_padding_looks_better_and_is_worse(page):
    """The number of the page: the true divergence of both kinds of students, and their own loss."""
    (true, own), (true_padded, own_padded) = (value_of(page, name) for name in KINDS)
    assert true == own
    assert own_padded < 0.9 * own, "padding should make the mean small"
    assert true_padded > 1.04 * true, "and letters should suffer"


KINDS = ("padding left out", "padding counted  ")


@pytest.mark.site
def test_the_teacher_has_learned_something(page):
    held_out, = value_of(page, "held out:")
    blind, = value_of(page, "uniform guess:")
    assert blind == pytest.approx(np.log(28), abs=0.005)
    assert 1.5 < held_out < 2.1


@pytest.mark.site
def test_they_part_within_words(page):
    by_letter = [value_of(page, f"letter {k}")[0] for k in range(1, 7)]
    assert max(by_letter[:2]) < min(by_letter[3:])


def test_arguments_are_obeyed(inside):
    assert vars(inside["sizes"]).keys() >= {"seeds", "steps", "hidden", "figures"}
    assert list(inside["results"]) == list(inside["KINDS"])
    assert {values.shape for values in inside["results"].values()} == {(1, 1, 2)}


def test_phrases_are_the_licence(inside):
    """Every word of the text is there, in order, but for those shorter than a phrase may be."""
    words = " ".join(inside["phrases"]).split()
    text = (gallery.ROOT / "LICENSE").read_text().lower().replace("'", "")
    place = 0
    for word in words:
        place = text.index(word, place) + len(word)
    assert len(words) > 0.97 * len([word for word in text.replace(".", " ").split() if word.isalpha()])
    assert max(map(len, inside["phrases"])) <= 40


def test_fill_ends_each_phrase_with_a_full_stop(inside):
    letters, lengths = inside["fill"](["ab", "c d"])
    assert letters.tolist() == [[2, 3, 0, 0], [4, 1, 5, 0]]
    assert lengths.tolist() == [3, 4]


def test_held_out_phrases_are_held_out(inside):
    rows = np.concatenate([inside["seen"], inside["held_out"]])
    assert sorted(rows) == list(range(len(inside["phrases"])))


def test_mask_is_one_within_and_zero_behind(inside):
    width = inside["letters"].shape[1]
    assert inside["mask"](np.array([1, width])).asnumpy().tolist() == [[1] + [0] * (width - 1), [1] * width]
    np.testing.assert_array_equal(inside["valid"].sum(axis=1), inside["lengths"])


def test_nobody_reads_ahead(inside):
    """The scores for a letter do not depend on it, nor on what follows."""
    letters = inside["letters"][:4].copy()
    net = inside["students"]["padding left out", 0]
    first = net(inside["before"](letters)).asnumpy()
    letters[:, 5:] = 7
    second = net(inside["before"](letters)).asnumpy()
    np.testing.assert_array_equal(first[:, :6], second[:, :6])
    assert not np.array_equal(first[:, 6:], second[:, 6:])


def test_padding_teaches_nothing(inside):
    """Whatever the labels of padding are, a student trained under the mask is the same; without it, another."""
    changed = inside["teacher_logits"].copy()
    changed[inside["valid"] == 0] += np.arange(28)

    def student(labels, counted):
        net = inside["make_reader"](8, seed=1)
        inside["fit"](net, inside["loss"], labels, counted, rate=0.01, seed=0)
        return net(inside["unread"]).asnumpy()

    valid, everywhere = inside["valid"], inside["everywhere"]
    np.testing.assert_array_equal(student(inside["teacher_logits"], valid), student(changed, valid))
    assert not np.array_equal(student(inside["teacher_logits"], everywhere), student(changed, everywhere))


def test_distances_are_means_over_what_counts(inside):
    net, rows = inside["students"]["padding left out", 0], inside["held_out"]
    nats = kl(inside["teacher_logits"][rows], net(inside["unread"]).asnumpy())
    valid = inside["valid"][rows]
    expected = [((nats * valid).sum(axis=1) / valid.sum(axis=1)).mean(), nats.mean()]
    found = inside["distances"](net, inside["valid"], inside["everywhere"])
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_mixed_with_the_text(inside):
    """The last lines: half cross-entropy, half the teacher at temperature 2, times 4, per letter."""
    rows = inside["few"]
    pred = inside["students"]["padding left out", 0](inside["before"](inside["letters"][rows])).asnumpy()
    true = np.take_along_axis(np.log(softmax(pred)), inside["letters"][rows].astype(int)[..., None], axis=2)[..., 0]
    nats = (-true + 4 * kl(inside["teacher_logits"][rows] / 2, pred / 2)) / 2
    valid = inside["valid"][rows]
    expected = (nats * valid).sum(axis=1) / valid.sum(axis=1)
    np.testing.assert_allclose(inside["values"].asnumpy(), expected, rtol=1e-9)


def test_draw_phrases_shades_letters_and_hatches_padding(inside):
    _, ax = plt.subplots()
    shades = inside["plots"].draw_phrases(ax, ["ab.", "c."], np.array([[0.0, 1.0, 0.5, 9.0], [0.25, 0.75, 9.0, 9.0]]))
    drawn = np.ma.filled(shades.get_array().reshape(2, 3), np.nan)
    np.testing.assert_array_equal(drawn, [[0, 1, 0.5], [0.25, 0.75, np.nan]])
    assert shades.get_clim()[0] == 0
    letters = [(text.get_text(), *text.get_position()) for text in ax.texts if len(text.get_text()) == 1]
    assert letters == [("a", 0.5, 0.5), ("b", 1.5, 0.5), (".", 2.5, 0.5), ("c", 0.5, 1.5), (".", 1.5, 1.5)]
    hatched = [patch for patch in ax.patches if patch.get_width()]
    assert [(patch.get_x(), patch.get_width(), bool(patch.get_hatch())) for patch in hatched] == [(2, 1, True)]
    assert to_rgb(shades.cmap(0.0)) == (1, 1, 1)
    plt.close("all")


def test_draw_true_and_own_dashes_what_differs(inside):
    _, ax = plt.subplots()
    same = np.array([[[2.0, 2.0], [1.0, 1.0]]])
    other = np.array([[[2.0, 1.0], [1.5, 0.5]], [[4.0, 1.0], [2.5, 0.5]]])
    inside["plots"].draw_true_and_own(ax, [0, 20], {"one": same, "other": other})
    assert [(line.get_ydata().tolist(), line.get_linestyle()) for line in ax.lines] == [
        ([2, 1], "-"), ([3, 2], "-"), ([1, 0.5], "--")]
    assert ax.lines[1].get_color() == ax.lines[2].get_color() != ax.lines[0].get_color()
    plt.close("all")
