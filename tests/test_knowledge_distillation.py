"""The distillation page: what it prints, draws and claims, and the functions that its readers would copy."""

import gallery
import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
import pytest
from rendered import lines_of
from sklearn.datasets import load_digits

SMALL = ["--images", 2, 3, "--seeds", 2, "--steps", 3]


page = lines_of("knowledge_distillation")


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    return gallery.names_of("knowledge_distillation", *SMALL, "--figures", tmp_path_factory.mktemp("small"))


def table(lines):
    """The table of results: {(images, name): mean, worst and best in per cent}."""
    start = next(i for i, line in enumerate(lines) if line.startswith("images  ")) + 1
    rows = [line.split(maxsplit=1) for line in lines[start:start + 9]]
    return {(int(each), rest.rsplit(None, 3)[0]): gallery.numbers(rest) for each, rest in rows}


def value_of(lines, start):
    """The numbers of the one line that starts with `start`."""
    line, = (line for line in lines if line.startswith(start))
    return gallery.numbers(line[len(start):])


@pytest.mark.site
def test_the_taught_student_beats_the_other(page):
    """In one number: about 7 points more with five images per digit, and more with every seed."""
    lines = page
    mean, least, most = gallery.numbers(lines[lines.index("gain with 5 images per digit:") + 1])
    assert 5 < mean < 10
    assert 2 < least <= mean <= most < 15


@pytest.mark.site
def test_teaching_pays_most_where_images_are_few(page):
    results = table(page)
    gains = {way: [results[each, way][0] - results[each, "labels only"][0] for each in (2, 5, 20)]
             for way in ("teacher only", "both")}
    for gain in gains.values():
        assert min(gain[:2]) > 4
        assert 0.5 < gain[2] < min(gain[:2])
    for mean, worst, best in results.values():
        assert worst <= mean <= best
    means = {way: [results[each, way][0] for each in (2, 5, 20)] for way in ("labels only", "teacher only", "both")}
    assert all(np.all(np.diff(rising) > 0) for rising in means.values())
    np.testing.assert_allclose(means["teacher only"], means["both"], atol=1.5)
    assert means["teacher only"][0] > means["labels only"][1] - 2
    assert means["teacher only"][1] > means["labels only"][2] - 2


@pytest.mark.site
def test_it_is_the_teacher_and_its_temperature(page):
    labels, softened, cold, warm = (value_of(page, name) for name in (
        "labels  ", "smoothed labels", "teacher, T = 1", "teacher, T = 4"))
    assert softened[0] < labels[0] + 1, "even softness should teach nothing"
    assert labels[0] + 1 < cold[0] < warm[0] - 2
    assert warm[1] < cold[1] < labels[1] < softened[1], "nats from the teacher"


@pytest.mark.site
def test_every_divergence_teaches(page):
    """All three reach the teacher's reading within two points, each by a training of its own."""
    found = [value_of(page, name) for name in ("KL(teacher ‖ student)", "KL(student ‖ teacher)", "Jensen-Shannon")]
    assert found[0] == value_of(page, "teacher, T = 4")
    right, nats = np.transpose(found)
    assert right.min() > 91 and np.ptp(right) < 2
    assert nats.max() < 0.2


@pytest.mark.site
def test_gluon_cvs_call_is_the_same(page):
    """The two lines of the page agree, and hold what the formula gives."""
    first = next(i for i, line in enumerate(page) if line.startswith("["))
    assert page[first] == page[first + 1]
    pred, scores = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), np.array([[5.0, 1.0, 0.0], [0.0, 2.0, 4.0]])

    def softmax(z):
        return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)

    p, q = softmax(scores / 4), softmax(pred / 4)
    hard = -np.log(softmax(pred)[[0, 1], [0, 2]])
    expected = 0.5 * hard + 0.5 * 16 * (p * np.log(p / q)).sum(axis=1)
    np.testing.assert_allclose([float(x) for x in page[first].strip("[]").split()], expected, atol=6e-5)


@pytest.mark.parametrize("divergence", ["reverse_kl", "js"])
def test_the_divergence_is_that_which_is_asked_for(inside, divergence, rng):
    teacher, student = rng.randn(2, 6, 10)
    loss = inside["make_loss"](1.0, 0.0, divergence=divergence)
    p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (teacher, student))
    mixture = (p + q) / 2
    expected = {"reverse_kl": q * np.log(q / p),
                "js": (p * np.log(p / mixture) + q * np.log(q / mixture)) / 2}[divergence].sum(axis=1)
    found = loss(inside["array"](student), inside["array"](np.zeros(6)), inside["array"](teacher))
    np.testing.assert_allclose(found.asnumpy(), expected, rtol=1e-9)


@pytest.mark.site
def test_a_teacher_labels_what_nobody_labelled(page):
    mean, = value_of(page, "1197 images:")
    worst, best = value_of(page, "worst and best seed:")
    teacher, = value_of(page, "accuracy, held out:")
    assert 94.5 < worst <= mean <= best < teacher + 1
    assert worst > table(page)[5, "teacher only"][2]


@pytest.mark.site
def test_the_teacher_hardly_doubts_until_it_is_warmed(page):
    seen, = value_of(page, "accuracy, training:")
    assert seen > 99.5
    cold, = value_of(page, "T = 1:")
    warm, = value_of(page, "T = 4:")
    assert cold < 2 < 20 < warm


def test_arguments_are_obeyed(inside):
    assert vars(inside["sizes"]).keys() >= {"images", "seeds", "steps", "hidden", "temperature", "figures"}
    assert {name: values.shape for name, values in inside["results"].items()} == dict.fromkeys(
        ("labels only", "teacher only", "both"), (2, 2, 2))


def test_nothing_held_out_is_learned_from(inside):
    """The two parts are the whole data set, every image once and with its own digit."""
    images, digits = load_digits(return_X_y=True)
    parts = [(inside["images"], inside["digits"]), (inside["held_out_images"], inside["held_out_digits"])]
    assert [len(part) for part, _ in parts] == [1197, 600]
    found = [(*image, digit) for part, labels in parts for image, digit in zip((part * 16).tolist(), labels)]
    assert sorted(found) == sorted((*image, digit) for image, digit in zip(images.tolist(), digits))


def test_few_images_are_as_many_of_each_digit(inside):
    chosen = inside["few_images"](4, seed=1)
    assert len(set(chosen)) == 40
    assert np.bincount(inside["digits"][chosen]).tolist() == [4] * 10
    assert chosen.tolist() == inside["few_images"](4, seed=1).tolist() != inside["few_images"](4, seed=2).tolist()


@pytest.mark.parametrize("source, ignored", [("labels only", "teacher"), ("teacher only", "label")])
def test_students_learn_from_their_source_alone(inside, source, ignored):
    """Whatever stands in for the other source, the student is the same; both together are not ignored."""
    chosen = inside["few_images"](2, seed=0)
    images, digits, scores = (inside[name][chosen] for name in ("images", "digits", "teacher_logits"))
    changed = (digits, -scores) if ignored == "teacher" else ((digits + 1) % 10, scores)

    def student(name, digits, scores):
        mx.random.seed(3)
        net = inside["make_network"](8)
        inside["fit"](net, inside["STUDENTS"][name], images, digits, scores, steps=4, rate=0.01, seed=0)
        return net(inside["array"](images)).asnumpy()

    assert np.array_equal(student(source, digits, scores), student(source, *changed))
    assert not np.array_equal(student("both", digits, scores), student("both", *changed))


def test_the_first_batch_is_checked(inside):
    scores = inside["teacher_logits"][:20]
    probabilities = inside["array"](scores).softmax().asnumpy()
    net = inside["make_network"](8)
    with pytest.raises(ValueError, match="teacher_pred"):
        inside["fit"](net, inside["STUDENTS"]["teacher only"], inside["images"][:20], inside["digits"][:20],
                      probabilities, steps=1, rate=0.01, seed=0)


def test_distance_is_the_divergence(inside):
    teacher, student = inside["teacher_held_out"], np.random.RandomState(0).randn(600, 10)
    p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (teacher - teacher.max(), student))
    expected = (p * np.log(p / q)).sum(axis=1).mean()
    assert inside["distance_to_teacher"](student) == pytest.approx(expected, rel=1e-6)
    assert inside["distance_to_teacher"](teacher) == 0


def test_draw_seeds_shows_every_seed(inside):
    _, ax = plt.subplots()
    groups = {"one": np.array([[1.0, 3.0], [4.0, 8.0]]), "two": np.array([[2.0, 2.0], [5.0, 5.0]])}
    inside["plots"].draw_seeds(ax, [2, 20], groups)
    inside["plots"].draw_level(ax, 7.0, "level", ":")
    assert [line.get_ydata().tolist() for line in ax.lines[:4]] == [[1, 3, 4, 8], [2, 6], [2, 2, 5, 5], [2, 5]]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["2", "20"]
    assert ax.get_legend_handles_labels()[1] == ["one", "two"]
    assert [text.get_text() for text in ax.texts] == ["level"]
    assert len({line.get_marker() for line in ax.lines[:4]}) == 2, "told apart without colour"
    plt.close("all")
