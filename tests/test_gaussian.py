"""GaussianKLLoss: the integral that it stands for, and the ends of its range."""

import itertools
import math

from gluon_kl import GaussianKLLoss

import mxnet as mx
import numpy as np
import pytest
from conftest import Run
from scipy.integrate import quad

import oracle
from cases import CUDA, Model, in_one_test


@pytest.fixture
def graph(path):
    """For a block of the user's, which is hybridized."""
    return Run("static")


CASES = [  # mean, log-variance, mean and log-variance of the prior
    (0.0, 0.0, None, None), (1.5, -1.0, None, None), (-0.3, 0.7, None, None), (0.2, -3.0, 0.5, None),
    (1.0, 0.3, -1.0, 0.8), (0.0, 2.0, 0.0, -1.0), (0.4, -0.5, None, 1.5),
]


@pytest.mark.parametrize("mean, log_variance, prior_mean, prior_log_variance", CASES)
def test_numerical_integration(eager, mean, log_variance, prior_mean, prior_log_variance):
    def log_density(x, m, v):
        return -0.5 * (np.log(2 * np.pi) + v + (x - m) ** 2 * np.exp(-v))

    def integrand(x):
        own = log_density(x, mean, log_variance)
        return np.exp(own) * (own - log_density(x, prior_mean or 0, prior_log_variance or 0))

    deviation = np.exp(log_variance / 2)
    integral, _ = quad(integrand, mean - 12 * deviation, mean + 12 * deviation, epsabs=1e-12, limit=200)
    inputs = [None if x is None else np.array([[x]]) for x in (mean, log_variance, prior_mean, prior_log_variance)]
    np.testing.assert_allclose(eager(GaussianKLLoss(), *inputs), [integral], atol=1e-9)


def test_published_formula(eager, rng):
    """Kingma and Welling's -1/2 sum(1 + log s^2 - m^2 - s^2)."""
    mean, log_variance = rng.normal(size=(2, 5, 7))
    expected = -0.5 * (1 + log_variance - mean ** 2 - np.exp(log_variance)).sum(-1)
    np.testing.assert_allclose(eager(GaussianKLLoss(), mean, log_variance), expected, rtol=1e-12)


def test_equal_gaussians(eager, rng):
    mean, log_variance = 5 * rng.normal(size=(2, 20, 3))
    for dtype in ("float16", "float32", "float64"):
        inputs = [x.astype(dtype) for x in (mean, log_variance, mean, log_variance)]
        assert (eager(GaussianKLLoss(), *inputs) == 0).all()
        assert all((gradient == 0).all() for gradient in eager.gradients(GaussianKLLoss(), *inputs))
    assert (eager(GaussianKLLoss(), 0 * mean, 0 * mean) == 0).all()


@pytest.mark.parametrize("dtype, largest", [("float32", 89.4), ("float64", 710.4)])
def test_log_variances_up_to_the_end_of_the_range(eager, dtype, largest):
    """e^v overflows before e^v / 2 does."""
    limit = np.finfo(dtype).max
    log_variance = np.array([[-1e30, -1e4, -745, -200, -104, -88, -20, -1, 1, 20, 88, largest - 0.6, largest]],
                            dtype=dtype).T
    mean = np.zeros_like(log_variance)
    expected = oracle.gaussian_terms(mean, log_variance)
    assert limit / 2 < expected[-1] < limit
    rtol = 3e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(eager(GaussianKLLoss(), mean, log_variance), expected[:, 0].astype(dtype), rtol=rtol)
    _, to_log_variance = eager.gradients(GaussianKLLoss(), mean, log_variance)
    np.testing.assert_allclose(to_log_variance, (np.expm1(np.longdouble(log_variance)) / 2).astype(dtype), rtol=rtol)
    beyond = np.array([[largest + 1, np.inf, -np.inf, np.nan]], dtype=dtype).T
    np.testing.assert_array_equal(eager(GaussianKLLoss(), np.zeros_like(beyond), beyond),
                                  [np.inf, np.inf, np.inf, np.nan])


@pytest.mark.parametrize("mean, prior_mean, prior_log_variance", [
    (1e19, 0, 0), (2.6e19, 0, 0), (1e-18, 0, -160), (1e-35, 0, -190), (1e25, 1e24, 80), (1e30, 0, 140), (0, 0, -300),
    (3, 3, -500), (3, 3, 500), (0.5, 0, 300),
])
def test_priors_at_the_ends_of_the_range(eager, mean, prior_mean, prior_log_variance):
    """exp(-v) may overflow where its product with the distance does not, in float32."""
    given = np.array([[[mean]], [[prior_log_variance]], [[prior_mean]], [[prior_log_variance]]], dtype="float32")
    expected = oracle.gaussian_terms(*given)
    assert 0 <= expected < np.finfo("float32").max
    value = eager(GaussianKLLoss(), *given)
    np.testing.assert_allclose(value, expected[0].astype("float64"), rtol=1e-4, atol=1e-30)
    if value < 1e38:  # the last factor of four before the end of the range is for values alone
        distance, variance = np.longdouble(given[0] - given[2]), np.exp(np.longdouble(given[3]))
        with np.errstate(over="ignore"):
            to_mean = (distance / variance).astype("float32")
            to_variance = (-(distance ** 2) / variance / 2).astype("float32")  # both variances are equal
        gradients = eager.gradients(GaussianKLLoss(), *given)
        for got, want in zip(gradients, (to_mean, np.zeros_like(to_mean), -to_mean, to_variance)):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-30)


def near_zero(dtype):
    """A column of log-variances on both sides of 0, down to 1e-15."""
    return np.array([[s * 10.0 ** e for e in np.arange(-15, 0.5, 0.25) for s in (1, -1)]], dtype=dtype).T


def exact_terms(d):
    """(e^d - 1 - d) / 2 of a column, in its dtype; near 0 by the series."""
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.longdouble(d)
        terms = np.where(abs(x) < 4, sum(x ** k / np.longdouble(math.factorial(k)) for k in range(40, 1, -1)),
                         np.where(x == np.inf, x, np.exp(x) - 1 - x)) / 2
        return terms.astype(d.dtype)[:, 0]


@pytest.mark.parametrize("dtype, rtol", [("float32", 4e-6), ("float64", 1e-13)])
def test_near_the_prior_digits_stay(eager, path, dtype, rtol):
    """Over MXNet's operators float32 is computed in float64: what its exp is off by shows below differences of 1e-5."""
    atol = 1.2e-16 if path == "operators" and dtype == "float32" else 0
    d = near_zero(dtype)
    terms = exact_terms(d)
    value = eager(GaussianKLLoss(), np.zeros_like(d), d)
    np.testing.assert_allclose(value, terms, rtol=rtol, atol=atol)
    for given in (GaussianKLLoss(reduction="none"), GaussianKLLoss(weight=2), GaussianKLLoss(free_nats=0)):
        assert (eager(given, np.zeros_like(d), d) >= 0).all()
    weighted = eager(GaussianKLLoss(), np.zeros_like(d), d, None, None, np.ones_like(d))
    np.testing.assert_allclose(weighted, terms, rtol=rtol, atol=atol)
    assert (weighted >= 0).all() and (eager(GaussianKLLoss(weight=-1), np.zeros_like(d), d) <= 0).all()
    _, gradient = eager.gradients(GaussianKLLoss(), np.zeros_like(d), d)
    np.testing.assert_allclose(gradient, (np.expm1(np.longdouble(d)) / 2).astype(dtype), rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_variances_of_the_whole_range(eager, dtype):
    log_variance = np.array([[-3e38, -1e20, -300, -0.3, 0, 0.8, 40, 88]], dtype=dtype).T
    mean = np.full_like(log_variance, 0.5)
    expected = oracle.gaussian_terms(mean, log_variance)[:, 0]
    rtol = 3e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(eager(GaussianKLLoss(), mean, log_variance), expected.astype(dtype), rtol=rtol)
    to_mean, to_log_variance = eager.gradients(GaussianKLLoss(), mean, log_variance)
    np.testing.assert_allclose(to_mean, mean, rtol=rtol)
    np.testing.assert_allclose(to_log_variance, (np.expm1(np.longdouble(log_variance)) / 2).astype(dtype), rtol=rtol)


# Priors

@pytest.mark.parametrize("spread", ["log_variance", "std"])
@pytest.mark.parametrize("size", [(4,), (1, 4), (3, 1, 4), (2, 1, 1), (3, 4), (1,), (2, 3, 4)])
def test_priors_that_broadcast(eager, rng, spread, size):
    """As NumPy broadcasts, gradients summed over what they are shared by."""
    mean, own = rng.normal(size=(2, 2, 3, 4))
    if size == (3, 1, 4):
        size = (1, 3, 4)
    prior, other = rng.normal(size=(2, *size))
    if spread == "std":
        own, other = np.exp(own), np.exp(other)
    loss = GaussianKLLoss(spread=spread)
    full = [np.broadcast_to(x, mean.shape) for x in (prior, other)]
    for given, whole in (((prior, other), full), ((prior, None), (full[0], None)), ((None, other), (None, full[1]))):
        expected = oracle.gaussian_terms(mean, own, *whole, spread_is=spread).astype("float64").sum((1, 2))
        np.testing.assert_allclose(eager(loss, mean, own, *given), expected, rtol=1e-10)
        for got, want, x in zip(eager.gradients(loss, mean, own, *given), eager.gradients(loss, mean, own, *whole),
                                (mean, own, *given)):
            if x is not None:
                missing = tuple(range(3 - x.ndim))
                kept = tuple(i + 3 - x.ndim for i, n in enumerate(x.shape) if n == 1)
                want = want.sum(missing + kept, keepdims=True).reshape(x.shape)
                np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("spread, prior", [
    ("log_variance", (0, 0)), ("log_variance", (1.5, -0.7)), ("log_variance", (0.3, None)), ("log_variance", (None, 2)),
    ("std", (0, 1)), ("std", (1.5, 0.4)), ("std", (None, 2.0)), ("std", (np.float32(0.5), np.int64(3))),
])
def test_priors_that_are_numbers(eager, rng, spread, prior):
    mean, own = rng.normal(size=(2, 3, 4))
    own = np.exp(own) if spread == "std" else own
    numbers = [x if x is None else float(x) for x in prior]
    loss = GaussianKLLoss(spread=spread)
    value = eager(loss, mean, own, *numbers)
    np.testing.assert_allclose(
        value, oracle.gaussian_terms(mean, own, *numbers, spread_is=spread).astype("float64").sum(1), rtol=1e-10)
    arrays = [x if x is None else np.full((3, 4), x) for x in numbers]
    weight = np.array([1.0, 0, 2])
    gradients, expected = (eager.gradients(loss, mean, own, *given, weight) for given in (numbers, arrays))
    for i in (0, 1, 4):
        np.testing.assert_allclose(gradients[i], expected[i], rtol=1e-8, atol=1e-12)
    single = eager(loss, mean.astype("float32"), own.astype("float32"), *numbers)
    assert single.dtype == np.float32  # a number widens nothing
    np.testing.assert_allclose(single, value, rtol=1e-4)
    given = [x if x is None else mx.nd.array([x]) for x in numbers]
    assert loss(mx.nd.array(mean), mx.nd.array(own), *prior).shape == loss(mx.nd.array(mean), mx.nd.array(own),
                                                                           *given).shape == (3,)


def test_numbers_and_arrays_take_turns(run, rng):
    loss, (mean, log_variance, prior) = run.prepare(GaussianKLLoss()), rng.normal(size=(3, 3, 2))
    for _ in range(2):
        for given in ((), (1.0,), (prior,), (2.0, -1.0), (None, prior[0]), (1.0,)):
            arrays = [run.array(x, mx.nd.array) for x in (mean, log_variance, *given)]
            np.testing.assert_allclose(loss(*arrays).asnumpy(), oracle.gaussian_terms(
                mean, log_variance, *given).astype("float64").sum(1), rtol=1e-10)


def test_numbers_in_a_users_graph(run, rng):
    class Latent(mx.gluon.HybridBlock):
        def __init__(self):
            super().__init__()
            self.loss = GaussianKLLoss(spread="std")

        def hybrid_forward(self, F, mean, std):
            return self.loss(mean, std, 0.5, 2)

    mean, std = rng.normal(size=(3, 4)), np.exp(rng.normal(size=(3, 4)))
    expected = oracle.gaussian_terms(mean, std, 0.5, 2, spread_is="std").astype("float64").sum(1)
    np.testing.assert_allclose(run(Latent(), mean, std), expected, rtol=1e-10)


@pytest.mark.parametrize("spread, prior, error, words", [
    ("log_variance", (math.inf,), ValueError, ["prior_mean", "finite", "inf"]),
    ("log_variance", (0, math.nan), ValueError, ["prior_log_variance", "finite", "nan"]),
    ("std", (0, 0), ValueError, ["prior_log_variance", "positive", "spread='std'", "0"]),
    ("std", (0, -1.0), ValueError, ["prior_log_variance", "positive", "-1.0"]),
    ("log_variance", (True,), TypeError, ["prior_mean"]), ("log_variance", ("0",), TypeError, ["prior_mean"]),
    ("log_variance", (np.zeros(3),), TypeError, ["prior_mean", "mx.nd.array"]),
])
def test_priors_that_are_refused(run, spread, prior, error, words):
    with pytest.raises(error) as caught:
        run.prepare(GaussianKLLoss(spread=spread))(mx.nd.ones((2, 3)), mx.nd.ones((2, 3)), *prior)
    assert all(word in str(caught.value) for word in words), caught.value


# Standard deviations

@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-12)])
def test_standard_deviations(eager, rng, dtype, rtol):
    """The same divergence, and gradients by the chain rule: d/d std = d/d log-variance * 2 / std."""
    mean, log_variance, prior, prior_log_variance = rng.normal(size=(4, 5, 3))
    std, prior_std = np.exp(log_variance / 2).astype(dtype), np.exp(prior_log_variance / 2).astype(dtype)
    mean, prior = mean.astype(dtype), prior.astype(dtype)
    logs = [2 * np.log(x.astype("float64")) for x in (std, prior_std)]
    plain, loss = GaussianKLLoss(), GaussianKLLoss(spread="std")
    for given, same in (((mean, std), (mean, logs[0])),
                        ((mean, std, prior, prior_std), (mean, logs[0], prior, logs[1]))):
        np.testing.assert_allclose(eager(loss, *given), eager(plain, *same), rtol=rtol)
        gradients, expected = eager.gradients(loss, *given), list(eager.gradients(plain, *same))
        for i in range(1, len(given), 2):
            expected[i] = expected[i] * 2 / given[i]
        for got, want in zip(gradients, expected):
            np.testing.assert_allclose(got, want, rtol=20 * rtol, atol=20 * rtol)


def test_standard_deviations_at_their_ends(eager):
    std = np.array([[1e-30, 1e-3, 1 - 1e-6, 1, 1 + 1e-6, 1e3, 1e18]], dtype="float32").T
    value = eager(GaussianKLLoss(spread="std"), np.zeros_like(std), std)
    expected = oracle.gaussian_terms(np.zeros_like(std), std, spread_is="std")[:, 0]
    np.testing.assert_allclose(value, expected.astype("float64"), rtol=1e-5)  # of a logarithm of 83
    assert value[3] == 0 and (value >= 0).all()
    assert np.isposinf(eager(GaussianKLLoss(spread="std"), np.zeros((1, 1)), np.zeros((1, 1)))).all()
    assert np.isnan(eager(GaussianKLLoss(spread="std"), np.zeros((1, 1)), -np.ones((1, 1)))).all()


def test_equal_standard_deviations(eager, rng):
    mean, std = rng.normal(size=(20, 3)), np.exp(rng.normal(size=(20, 3)))
    for dtype in ("float16", "float32", "float64"):
        inputs = [x.astype(dtype) for x in (mean, std, mean, std)]
        assert (eager(GaussianKLLoss(spread="std"), *inputs) == 0).all()
        assert all((gradient == 0).all() for gradient in eager.gradients(GaussianKLLoss(spread="std"), *inputs))


def test_free_nats(eager):
    mean = np.array([[0.0, 1.0, 2.0], [0.1, np.nan, 3.0]])
    log_variance = np.zeros((2, 3))
    terms = mean ** 2 / 2
    loss = GaussianKLLoss(free_nats=0.5, reduction="none")
    expected = [[0.5, 0.5, 2.0], [0.5, np.nan, 4.5]]
    np.testing.assert_allclose(eager(loss, mean, log_variance), expected)
    np.testing.assert_allclose(eager(GaussianKLLoss(free_nats=0.5), mean, log_variance), [3.0, np.nan])
    averaged = eager(GaussianKLLoss(free_nats=0.5, reduction="mean"), mean, log_variance)
    np.testing.assert_allclose(averaged, [1.0, np.nan])
    # No gradient below, the whole above.
    to_mean, _ = eager.gradients(GaussianKLLoss(free_nats=0.5, reduction="none"), mean[:1], log_variance[:1])
    np.testing.assert_allclose(to_mean, [[0, 1, 2]])
    np.testing.assert_allclose(eager(GaussianKLLoss(), mean[:1], log_variance[:1]), terms[:1].sum(-1))
    # A weight scales what is left of a term, the floor included.
    weighted = eager(loss, mean, log_variance, None, None, np.array([2.0, 0.0]))
    np.testing.assert_allclose(weighted, [[1.0, 1.0, 4.0], [0, 0, 0]])


def test_learned_prior(eager, rng):
    """Gradient steps on the prior alone reach the Gaussians that it is for."""
    mean, log_variance = (mx.nd.array(x) for x in rng.normal(size=(2, 4, 3)))
    prior = mx.nd.zeros((4, 3)), mx.nd.zeros((4, 3))
    for x in prior:
        x.attach_grad()
    loss = eager.prepare(GaussianKLLoss())
    history = []
    for _ in range(60):
        with mx.autograd.record():
            out = loss(mean, log_variance, *prior)
        out.backward()
        history.append(out.sum().asscalar())
        for x in prior:
            x -= 0.5 * x.grad
    assert history[-1] < 1e-3 * history[0]
    np.testing.assert_allclose(prior[0].asnumpy(), mean.asnumpy(), atol=0.05)


def test_any_rank_and_batch_axis(eager, rng):
    for shape, batch_axis in (((5,), 0), ((3, 4), 1), ((2, 3, 4), -1), ((2, 3, 4, 2), 2)):
        mean, log_variance = rng.normal(size=(2, *shape))
        terms = oracle.gaussian_terms(mean, log_variance).astype("float64")
        for reduction in ("sum", "mean", "none"):
            value = eager(GaussianKLLoss(batch_axis=batch_axis, reduction=reduction), mean, log_variance)
            np.testing.assert_allclose(value, oracle.reduce(terms, batch_axis, reduction), rtol=1e-10)


@pytest.mark.parametrize("shape, batch_axis", [((3, 5), 0), ((5, 3), 1), ((2, 3, 4), -1), ((2, 1 << 15), 0)])
@in_one_test("options", [{}, {"reduction": "mean"}, {"weight": 3.0}, {"reduction": "mean", "weight": 0.5}])
@in_one_test("given", [(), (True,), (0.25,), (True, True), (0.25, 0.5)])
def test_sums_in_float32(eager, rng, shape, batch_axis, options, given):
    """Samples of any length, with their gradients, whose sums may be put together from several."""
    mean, log_variance, *arrays = rng.normal(size=(4, *shape)).astype("float32")
    prior = [array if x is True else x for x, array in zip(given, arrays)]
    loss = GaussianKLLoss(batch_axis=batch_axis, **options)
    terms = oracle.gaussian_terms(mean, log_variance, *prior).astype("float64") * options.get("weight", 1)
    np.testing.assert_allclose(eager(loss, mean, log_variance, *prior),
                               oracle.reduce(terms, batch_axis, options.get("reduction", "sum")), rtol=1e-6)
    wide = [x.astype("float64") if isinstance(x, np.ndarray) else x for x in (mean, log_variance, *prior)]
    for got, want in zip(eager.gradients(loss, mean, log_variance, *prior), eager.gradients(loss, *wide)):
        if want is not None:
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("first, other", list(itertools.product(("float16", "float32", "float64"), repeat=2)))
@pytest.mark.parametrize("options", [{}, {"reduction": "mean", "weight": 0.5}, {"spread": "std"}])
def test_sums_in_a_users_graph(graph, rng, first, other, options):
    """Where no dtype is known: samples along every axis, each result and gradient in the dtype that is due."""
    for shape, batch_axis in (((5,), 0), ((3, 5), 0), ((5, 3), 1), ((2, 3, 4), -1), ((2, 1 << 15), 0)):
        mean, own = rng.normal(size=shape).astype(first), rng.uniform(0.5, 2, size=shape).astype(other)
        loss = GaussianKLLoss(batch_axis=batch_axis, **options)
        terms = oracle.gaussian_terms(mean, own, spread_is=options.get("spread", "log_variance")).astype("float64")
        expected = oracle.reduce(terms * options.get("weight", 1), batch_axis, options.get("reduction", "sum"))
        value = graph(Model(loss), mean, own)
        assert value.dtype == ("float64" if "float64" in (first, other) else "float32")
        np.testing.assert_allclose(value, expected, rtol=1e-13 if first == other == "float64" else 1e-6)
        got = graph.gradients(Model(loss), mean, own)
        assert [x.dtype for x in got] == [first, other]
        for x, want in zip(got, graph.gradients(loss, mean.astype("float64"), own.astype("float64"))):
            rtol = 2e-3 if x.dtype == "float16" else 1e-5 if x.dtype == "float32" else 1e-12
            np.testing.assert_allclose(x, want, rtol=rtol, atol=rtol * np.abs(want).max())


@pytest.mark.parametrize("dtype, largest", [("float32", 89.4), ("float64", 710.4)])
def test_the_ends_of_the_range_in_a_users_graph(graph, path, dtype, largest):
    """Near the prior the digits of 1e-16 stay, beyond the range is infinity, and NaN stays in its sample."""
    ends = np.array([[0, -1e30, -745, largest - 0.8, largest + 1, np.inf, -np.inf, np.nan, 1]], dtype=dtype).T
    for d, atol in ((ends, 0), (near_zero(dtype), 1.2e-16 if CUDA or path == "operators" else 0)):
        value = graph(Model(GaussianKLLoss()), np.zeros_like(d), d)
        np.testing.assert_allclose(value, exact_terms(d), rtol=4e-6 if dtype == "float32" else 1e-12, atol=atol)
        assert not (value < 0).any()
        _, gradient = graph.gradients(Model(GaussianKLLoss()), np.zeros_like(d), d)
        with np.errstate(over="ignore"):
            slopes = (np.expm1(np.longdouble(d)) / 2).astype(dtype)
        np.testing.assert_allclose(gradient, slopes, rtol=4e-6, atol=atol)
    far = np.array([[1.8e19], [2.5e19]], dtype=dtype)
    value = graph(Model(GaussianKLLoss()), far, np.zeros_like(far))
    np.testing.assert_allclose(value, [1.62e38, 3.125e38], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_not_finite_stays_in_its_sample(eager, dtype):
    mean = np.array([[0, np.inf, 1], [np.nan, 0, 1], *[[0, 0, 1]] * 4, [1, 1, 1]], dtype=dtype)
    log_variance = np.array([[0, 0, 1], [0, 0, 1], [np.inf, 1, 0], [-np.inf, 1, 0], [np.inf, -np.inf, 0],
                             [np.nan, 1, 0], [1, 1, 1]], dtype=dtype)
    value = eager(GaussianKLLoss(), mean, log_variance)
    np.testing.assert_array_equal(value[:6], [np.inf, np.nan, np.inf, np.inf, np.inf, np.nan])
    assert value[6] == pytest.approx(1.5 * (math.e - 1), rel=1e-6)
    to_mean, to_log_variance = eager.gradients(GaussianKLLoss(), mean, log_variance)
    np.testing.assert_allclose(to_mean, mean, rtol=1e-6)
    with np.errstate(over="ignore"):
        expected = np.expm1(log_variance.astype("float64")) / 2
    np.testing.assert_allclose(to_log_variance, expected, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_means_at_the_end_of_float32(eager, path, reduction):
    """Half a square fits where the square does not; without the operator, float32's sums go by the square."""
    mean = np.array([[1.8e19], [2.6e19]], dtype="float32")
    value = eager(GaussianKLLoss(reduction=reduction), mean, np.zeros_like(mean)).ravel()
    reached = np.inf if path == "operators" and reduction == "sum" else 3.38e38
    np.testing.assert_allclose(value, [1.62e38, reached], rtol=1e-6)


def test_infinite_precision_is_infinite_divergence(eager):
    for mean, prior_log_variance in itertools.product((0.0, 1.0), (None, 2.0)):
        prior = None if prior_log_variance is None else np.array([[prior_log_variance]])
        assert np.isposinf(eager(GaussianKLLoss(), np.array([[mean]]), np.array([[-np.inf]]), None, prior)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_dimension_is_silenced_by_itself(eager, rng, bad):
    inputs = list(rng.normal(size=(4, 2, 3)))
    weight = np.array([[0.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
    clean, gradients = eager(GaussianKLLoss(), *inputs, weight), eager.gradients(GaussianKLLoss(), *inputs, weight)
    for x in inputs:
        x[weight == 0] = bad
    np.testing.assert_array_equal(eager(GaussianKLLoss(), *inputs, weight), clean)
    for got, want in zip(eager.gradients(GaussianKLLoss(), *inputs, weight)[:4], gradients):
        np.testing.assert_array_equal(got, want)
        assert (got[weight == 0] == 0).all()
