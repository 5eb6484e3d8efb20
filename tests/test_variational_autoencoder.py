"""The autoencoder page: what it prints, draws and claims, and the functions that its readers would copy."""

import gallery
import matplotlib.pyplot as plt
import numpy as np
import pytest
from rendered import lines_of

RUNS = ["plain", "annealed", "free nats"]


page = lines_of("variational_autoencoder")


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    return gallery.names_of("variational_autoencoder", "--epochs", 2, "--latent", 3, "--hidden", 16,
                            "--figures", tmp_path_factory.mktemp("small"))


def after(lines, start, count, step=1):
    """Numbers of `count` lines that follow the one that starts with `start`, each `step` lines after the last."""
    first = next(i for i, line in enumerate(lines) if line.startswith(start))
    return [gallery.numbers(line) for line in lines[first + step:first + step * count + 1:step]]


@pytest.fixture(scope="module")
def carried(page):
    """Nats that each dimension carries in the end, one row per run."""
    active = [i for i, line in enumerate(page) if line.startswith("active:")]
    return np.array([gallery.numbers(page[i - 1]) for i in active[:3]])


@pytest.mark.site
def test_the_plain_run_collapses(carried):
    plain = carried[0]
    assert 2 <= np.sum(plain > 0.4) <= 5
    assert np.sum(plain < 0.03) == 8 - np.sum(plain > 0.4), "a dimension is active or has collapsed, and little between"


@pytest.mark.site
def test_free_nats_prevent_the_collapse(page, carried):
    """The number that the page ends in: the least dimension carries about the half nat that is free."""
    least = dict(zip(RUNS, after(page, "nats       smallest at end", 3)))
    assert least["plain"][0] == 0
    assert least["free nats"][0] == carried[2].min() > 0.4
    assert carried[2].max() < 1.2


@pytest.mark.site
def test_annealing_alone_postpones_it(carried):
    active = (carried > 0.1).sum(axis=1)
    assert active[0] <= active[1] < active[2] == 8


@pytest.mark.site
def test_the_decoder_uses_active_dimensions(page, carried):
    costs = np.array(after(page, "nats lost by shuffling each dimension", 3, step=2))
    collapsed = carried[0] < 0.03
    assert (abs(costs[0][collapsed]) < 0.1).all()
    assert (costs[0][~collapsed] > 1).all()
    assert (costs[2] > 0.4).all()


@pytest.mark.site
def test_what_free_nats_cost(page):
    measured = np.array(after(page, "nats        pixels  latent    sum", 3))
    np.testing.assert_allclose(measured[:, 0] + measured[:, 1], measured[:, 2], atol=0.011)
    pixels, latent, bound = measured[2] - measured[0]
    assert pixels < -0.5
    assert latent > 1
    assert 0.3 < bound < 1.5, "better reconstructions are paid for in the bound"


@pytest.mark.site
def test_the_plane_uses_both_dimensions(page):
    active = [i for i, line in enumerate(page) if line.startswith("active:")]
    assert page[active[-1]] == "active: 2 of 2"


def test_arguments_are_obeyed(inside):
    assert vars(inside["sizes"]).keys() >= {"epochs", "latent", "hidden", "free_nats", "seed", "figures"}
    assert [history.shape for _, history in inside["runs"].values()] == [(3, 3)] * 3
    assert inside["rising"].tolist() == [0, 1]


def test_the_runs_start_alike_and_differ_by_the_loss(inside):
    first, last = (np.array([history[epoch] for _, history in inside["runs"].values()]) for epoch in (0, -1))
    assert (first == first[0]).all()
    assert len(np.unique(last[:, 0])) >= 2


def test_pixel_loss_is_the_divergence_of_the_pixels(inside):
    random = np.random.RandomState(0)
    images, scores = random.rand(5, 64), random.randn(5, 64)
    images[0, :3] = 0, 1, 0.5
    ink = 1 / (1 + np.exp(-scores))
    terms = np.zeros((5, 64))
    for share, drawn in ((images, ink), (1 - images, 1 - ink)):
        some = share > 0
        terms[some] += share[some] * np.log(share[some] / drawn[some])
    found = inside["pixel_loss"](inside["array"](scores), inside["array"](images)).asnumpy()
    np.testing.assert_allclose(found, terms.sum(axis=1), rtol=1e-9)
    perfect = inside["array"](np.log(ink / (1 - ink))), inside["array"](ink)
    np.testing.assert_allclose(inside["pixel_loss"](*perfect).asnumpy(), 0, atol=1e-9)


def test_nats_per_dimension_is_the_divergence_to_the_standard_normal(inside):
    net, history = inside["runs"]["plain"]
    held_out = inside["array"](inside["held_out"])
    _, mean, log_variance = net(held_out, inside["array"](np.zeros((600, 3))))
    mean, log_variance = mean.asnumpy(), log_variance.asnumpy()
    expected = (mean**2 + np.exp(log_variance) - 1 - log_variance) / 2
    np.testing.assert_allclose(history[-1], expected.mean(axis=0), rtol=1e-9)


def test_the_draw_has_the_mean_and_the_spread(inside):
    """Noise moves the decoder's input by the standard deviation, no less and no more."""
    net = inside["make_network"](3)
    images, noise = inside["array"](inside["held_out"][:4]), np.random.RandomState(0).randn(4, 3)
    drawing, mean, log_variance = net(images, inside["array"](noise))
    draw = mean.asnumpy() + np.exp(log_variance.asnumpy() / 2) * noise
    np.testing.assert_allclose(drawing.asnumpy(), net.decoder(inside["array"](draw)).asnumpy(), rtol=1e-9)


def test_draw_dimensions_marks_collapsed_dimensions(inside):
    _, ax = plt.subplots()
    inside["plots"].draw_dimensions(ax, np.array([[1.0, 1.0], [0.8, 0.01]]), 0.1)
    assert [line.get_ydata().tolist() for line in ax.lines] == [[1, 0.8], [1, 0.01]]
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--"], "told apart without colour"
    inside["plots"].list_names(ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["active at the end", "collapsed at the end"]
    plt.close("all")


def test_draw_dimensions_cuts_nothing(inside):
    """From 0 to the start, far above the rest, everything is within the axes, and the place rises with the value."""
    _, ax = plt.subplots()
    inside["plots"].draw_dimensions(ax, np.array([[0.0, 12.0], [0.5, 0.0]]), 0.1)
    bottom, top = ax.get_ylim()
    assert bottom <= 0 and top >= 12
    places = ax.transData.transform([(0, nats) for nats in (0, 0.1, 1, 12)])[:, 1]
    assert (np.diff(places) > 0.1 * (places[-1] - places[0])).all()
    plt.close("all")


def test_draw_sheet_keeps_rows_and_columns(inside):
    images = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) / 120
    _, ax = plt.subplots()
    inside["plots"].draw_sheet(ax, images)
    sheet = np.ma.getdata(ax.collections[0].get_array()).reshape(2 * 6, 3 * 7)
    for row in range(2):
        for column in range(3):
            found = sheet[row * 6 + 1:row * 6 + 5, column * 7 + 1:column * 7 + 6]
            np.testing.assert_array_equal(found, images[row, column])
    bottom, top = ax.get_ylim()
    assert bottom > top, "the first row belongs at the top"
    plt.close("all")


def test_draw_sheet_on_a_plane_has_the_centres_at_their_places(inside):
    """A sheet of 3 x 3 up to an edge of 2: the centres lie at -2, 0 and 2, the first row on top."""
    images = np.arange(9.0).reshape(3, 3, 1, 1) / 9 + np.zeros((3, 3, 4, 4))
    _, ax = plt.subplots()
    inside["plots"].draw_sheet(ax, images, edge=2)
    mesh = ax.collections[0].get_coordinates()
    x, y = mesh[0, :, 0], mesh[:, 0, 1]
    np.testing.assert_allclose([(x[6 * i] + x[6 * i + 6]) / 2 for i in range(3)], [-2, 0, 2])
    np.testing.assert_allclose([(y[6 * i] + y[6 * i + 6]) / 2 for i in range(3)], [2, 0, -2])
    bottom, top = ax.get_ylim()
    assert bottom < top and ax.axison
    plt.close("all")


def test_draw_plane_marks_each_point_with_its_digit(inside):
    points, digits = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.5]]), np.array([3, 7, 3])
    _, ax = plt.subplots()
    inside["plots"].draw_plane(ax, points, digits, 2.5)
    assert [(*text.get_position(), text.get_text()) for text in ax.texts] == [(0, 1, "3"), (1, 0, "7"), (-1, 0.5, "3")]
    assert ax.texts[0].get_color() == ax.texts[2].get_color() != ax.texts[1].get_color()
    assert (ax.get_xlim(), ax.get_ylim()) == ((-2.5, 2.5), (-2.5, 2.5))
    plt.close("all")
