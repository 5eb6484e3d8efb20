"""The trust-region page: its product, its solver, its bound, and what it prints."""

import re

import gallery
import matplotlib.pyplot as plt
import numpy as np
import pytest
from mxnet import nd
from rendered import printed


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names of the page after a short run."""
    figures = tmp_path_factory.mktemp("figures")
    names = gallery.names_of("trust_region_policy", "--seeds=1", "--updates=8", f"--figures={figures}")
    assert (figures / "trust_region_policy.png").stat().st_size > 10000
    return names


def kl(p, q):
    """Mean KL between the rows of two arrays of probabilities, in float64, from the formula."""
    return (p * np.log(p / q)).sum(1).mean()


@pytest.fixture
def batch(page, rng):
    """A policy, and a batch for it as `train` makes them."""
    policy = page["make_policy"](seed=3)
    states = nd.array(rng.normal(size=(400, 4)), dtype="float64")
    actions, advantage = rng.randint(0, 2, 400), rng.normal(size=400)
    return policy, (states, *(nd.array(x, dtype="float64") for x in (actions, advantage)), policy(states))


def test_product_is_that_of_the_explicit_matrix(page, rng):
    policy = page["make_policy"](seed=1)
    states = nd.array(rng.normal(size=(7, 4)), dtype="float64")
    matrix = page["explicit_fisher"](policy, states)
    before = page["get_parameters"](policy)
    for _ in range(3):
        vector = rng.normal(size=len(matrix)) * 10.0 ** rng.uniform(-3, 3)
        product = page["fisher_vector_product"](policy, states, policy(states), vector)
        np.testing.assert_allclose(product, matrix @ vector, atol=1e-5 * np.abs(matrix @ vector).max())
    assert (page["get_parameters"](policy) == before).all()


def test_the_policy_gives_probabilities(page, rng):
    chances = page["make_policy"](seed=1)(nd.array(rng.normal(size=(7, 4)), dtype="float64")).asnumpy()
    np.testing.assert_allclose(chances.sum(1), 1)
    assert (chances > 0).all()


def test_what_is_forbidden_adds_nothing(page):
    """The third action has the probability 0 on both sides; an even policy became one of 1 to 3."""
    assert page["value"].asscalar() == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    np.testing.assert_allclose(page["pred"].grad.asnumpy(), [[-0.5 / 0.25, -0.5 / 0.75, 0]], rtol=1e-6)


def test_conjugate_gradient_solves(page, rng):
    root = rng.normal(size=(8, 8))
    matrix, target = root @ root.T + np.eye(8), rng.normal(size=8)
    solved = page["conjugate_gradient"](lambda v: matrix @ v, target, steps=20)
    np.testing.assert_allclose(matrix @ solved, target, atol=1e-4)


@pytest.mark.parametrize("delta", [1e-4, 0.01, 0.3])
def test_step_keeps_to_the_bound_and_uses_it(page, batch, delta):
    policy, inputs = batch
    before = page["surrogate"](policy, *inputs).asscalar()
    measured = page["trust_region_step"](policy, inputs, delta)
    true = kl(inputs[3].asnumpy(), policy(inputs[0]).asnumpy())
    assert measured == pytest.approx(true, abs=1e-12)
    assert 0.2 * delta < true <= delta
    assert page["surrogate"](policy, *inputs).asscalar() > before


def test_without_any_gain_the_policy_stays(page, batch):
    policy, (states, actions, advantage, old_logits) = batch
    before = page["get_parameters"](policy)
    with np.errstate(all="ignore"):
        moved = page["trust_region_step"](policy, (states, actions, advantage * 0, old_logits), 0.01)
    assert moved == 0
    assert (page["get_parameters"](policy) == before).all()


def test_leaving_the_region_stops_the_run(page):
    with pytest.raises(RuntimeError, match=r"seed 0 moved the policy by .* nats, over 0\.01"):
        page["train"](page["long_plain_steps"], 0, updates=2, episodes=4, bound=0.01)


def test_seed_decides(page):
    runs = [page["train"](page["trust_region"], seed, updates=3, episodes=4) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_every_update_of_the_short_run_is_within_the_bound(page):
    assert 0 < page["runs"]["trust region"]["divergences"].max() <= page["sizes"].delta == 0.01


def test_draw_bounded_gives_each_method_an_axes(page):
    _, axes = plt.subplots(1, 2)
    curves = {"one": np.array([[0.1, 0.2], [0.3, 0.4]]), "two": np.array([[1.0, 2.0]])}
    page["plots"].draw_bounded(axes, curves, 0.25)
    for ax, (name, values) in zip(axes, curves.items()):
        *runs, bound = ax.lines
        assert ax.get_title() == name
        assert [line.get_ydata().tolist() for line in runs] == values.tolist()
        assert list(bound.get_ydata()) == [0.25, 0.25]
    plt.close("all")


@pytest.mark.site
def test_page_shows_the_gain(site):
    text = printed(site, "trust_region_policy")
    rows = {name: [float(x) for x in numbers.split()]
            for name, numbers in re.findall(r"^(trust region|plain, \w+)\s+(.*)$", text, re.MULTILINE)}
    assert len(rows) == 3
    gain, _, boldest = rows.pop("trust region")
    assert boldest <= 0.01
    assert gain > 300  # of 500; the plain gradients are still near 90
    for plain, _, largest in rows.values():
        assert plain < gain / 2
        assert largest > 0.01
