"""The sparse autoencoder's page: what it prints, draws and claims, and the functions that its readers would copy."""

import gallery
import matplotlib.pyplot as plt
import numpy as np
import pytest
from rendered import lines_of

page = lines_of("sparse_autoencoder")


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    return gallery.names_of("sparse_autoencoder", "--epochs", 2, "--hidden", 16, "--activity", 0.1,
                            "--figures", tmp_path_factory.mktemp("small"))


def coins(label, pred):
    """KL(Bernoulli(label) || Bernoulli(pred)), from the formula, for labels between 0 and 1."""
    return label * np.log(label / pred) + (1 - label) * np.log((1 - label) / (1 - pred))


def rows(lines, name):
    """The numbers of every line that starts with `name`."""
    return [gallery.numbers(line[len(name):]) for line in lines if line.startswith(name)]


@pytest.mark.site
def test_the_penalty_is_the_formula(page):
    start = page.index("active for  penalty") + 1
    found = np.array([gallery.numbers(line) for line in page[start:start + 5]])
    np.testing.assert_array_equal(found[:, 0], [1, 5, 20, 50, 99])
    np.testing.assert_allclose(found[:, 1], coins(0.05, found[:, 0] / 100), atol=6e-5)
    assert found[1, 1] == 0


@pytest.mark.site
def test_the_penalty_makes_sparse(page):
    """Loss, mean activation in per cent, active units per image."""
    dense, sparse = (rows(page, name)[0] for name in ("dense", "sparse"))
    assert dense[1] > 40 and dense[2] > 20
    assert 5 < sparse[1] < 15 and sparse[2] < 4
    assert dense[0] < sparse[0] < 2 * dense[0], "sparse units cost something, but not much"


@pytest.mark.site
def test_the_most_active_unit_tells_the_digit(page):
    dense, sparse = (rows(page, name)[1][0] for name in ("dense", "sparse"))
    assert dense < 20
    assert sparse > 55


def test_arguments_are_obeyed(inside):
    assert vars(inside["sizes"]).keys() >= {"epochs", "hidden", "activity", "weight", "figures"}
    assert {name: found.shape for name, found in inside["activations"].items()} == dict.fromkeys(
        ("dense", "sparse"), (600, 16))
    assert inside["penalty"](inside["array"]([[0.1, 0.2]]), 0.1).asnumpy()[0, 0] == 0


def test_the_losses_are_the_formula(inside):
    random = np.random.RandomState(0)
    shares, logits = random.rand(5, 64), random.randn(5, 64)
    found = inside["pixel_loss"](inside["array"](logits), inside["array"](shares)).asnumpy()
    np.testing.assert_allclose(found, coins(shares, 1 / (1 + np.exp(-logits))).sum(axis=1), rtol=1e-9)
    active = random.rand(1, 16)
    found = inside["sparsity_loss"](inside["array"](active), 0.1).asnumpy()
    np.testing.assert_allclose(found, coins(0.1, active).sum(axis=1), rtol=1e-9)


def test_decode_units_turns_one_up_at_a_time(inside):
    net, active = inside["networks"]["sparse"], inside["activations"]["sparse"]
    drawn = inside["decode_units"]("sparse")
    assert drawn.shape == (16, 8, 8)
    weight, bias = (p.data().asnumpy() for p in net.decoder.collect_params().values())
    units = active.mean(axis=0)
    units[3] = 1
    np.testing.assert_allclose(drawn[3].ravel(), 1 / (1 + np.exp(-(weight @ units + bias))), rtol=1e-9)


def test_accuracy_of_top_unit(inside):
    """A network whose top unit always tells the digit is always correct; one that never differs, a tenth."""
    class Oracle:
        def __init__(self, answers):
            self.answers = answers

        def __call__(self, images):
            active = np.eye(16)[self.answers[len(images)]]
            return None, inside["array"](active)

    digits = {1197: inside["digits"], 600: inside["held_out_digits"]}
    assert inside["accuracy_of_top_unit"](Oracle(digits)) == 1
    assert inside["accuracy_of_top_unit"](Oracle({n: 0 * names for n, names in digits.items()})) < 0.12


def test_draw_ranked_goes_down(inside):
    _, ax = plt.subplots()
    inside["plots"].draw_ranked(ax, {"one": np.array([0.1, 0.3, 0.2]), "two": np.array([0.5, 0.4, 0.6])})
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.3, 0.2, 0.1], [0.6, 0.5, 0.4]]
    assert [text.get_text() for text in ax.texts] == ["one", "two"]
    assert len({line.get_marker() for line in ax.lines}) == 2, "told apart without colour"
    plt.close("all")
