r"""
Steps inside a trust region
===========================

A policy is a function from what an agent sees to a distribution over what it may do. Policy gradients tell
in which direction to change its parameters, but not how far. In supervised learning a step that is too long
is repaired by the next one; here it is not, because the policy gathers its own data: one bad step, and every
episode from then on is played by a bad policy.

How far is too far is hard to say in parameters: the same change of a weight may do nothing, or turn every
decision around. It is easy to say in distributions. A *trust region* method [1]_ takes the best step it can
find among those that keep the average divergence between the old and the new action distributions below a
bound :math:`\delta`:

.. math:: \max_\theta \; L(\theta) \quad \text{such that} \quad D(\theta) \le \delta,

where :math:`L` says how good the new policy looks on what the old one has seen, and :math:`D` is the divergence
averaged over the states :math:`s` that were visited,

.. math:: D(\theta) = \frac{1}{N} \sum_s \mathrm{KL}(\pi_{\text{old}}(\cdot|s) \,\|\, \pi_\theta(\cdot|s)).

This page builds such a method for the cart and pole of Gymnasium. ``KLDivLoss`` does two jobs in it: it
*measures* each step, and, differentiated, it *shapes* the step.
"""

import argparse
from pathlib import Path

import plots  # first: it says which Python this needs
from gluon_kl import KLDivLoss

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from mxnet import autograd, gluon, nd
from tqdm import tqdm

parser = argparse.ArgumentParser(
    description="Natural-gradient steps within a trust region, on CartPole.")
option = parser.add_argument
option("--updates", type=int, default=20,
       help="policy updates per run (default: %(default)s)")
option("--episodes", type=int, default=8,
       help="episodes played per update (default: %(default)s)")
option("--seeds", type=int, default=5,
       help="runs per method (default: %(default)s)")
option("--delta", type=float, default=0.01,
       help="bound on the mean divergence (default: %(default)s)")
option("--figures", type=Path, default=plots.FIGURES,
       help="folder for the figure (default: that of the project)")
options = parser.parse_args(None if "__file__" in globals() else [])
plt.style.use(plots.STYLE)

# %%
# The policy, and its games
# -------------------------
# A pole stands on a cart; each time step the agent pushes the cart left or right, and earns 1 for as long as
# the pole stays up, 500 at most. The policy is a small network from the four numbers that describe cart and
# pole to two probabilities: it ends in a softmax, as policies do. It computes in float64, since a derivative
# will soon be taken by differences.


def make_policy(seed, hidden=32):
    mx.random.seed(seed)
    policy = gluon.nn.HybridSequential()
    policy.add(gluon.nn.Dense(hidden, activation="tanh", in_units=4),
               gluon.nn.Dense(2, in_units=hidden),
               gluon.nn.HybridLambda("softmax"))
    policy.initialize(mx.init.Xavier())
    policy.cast("float64")
    policy.hybridize()
    return policy


def play(policy, games, rng):
    """Play each of `games` to its end.

    Returns states of shape (steps, games, 4), actions, and a mask of the
    steps played. States are rounded: processors differ in the last digits
    of a sine.
    """
    state, _ = games.reset(seed=int(rng.integers(2**31)))
    playing = np.ones(games.num_envs, dtype=bool)
    states, actions, played = [], [], []
    while playing.any():
        chances = policy(nd.array(state, dtype="float64"))
        right = chances.asnumpy()[:, 1]
        action = (rng.random(games.num_envs) < right).astype(int)
        states.append(state)
        actions.append(action)
        played.append(playing)
        _, _, fallen, time_up, _ = games.step(action)
        games.state = games.state.round(6)
        state = games.state.T
        playing = playing & ~(fallen | time_up)
    states = np.array(states, dtype="float64")
    return states, np.array(actions), np.array(played)


# %%
# How good was an action? Its *advantage* is the (discounted) reward that followed, less what usually follows
# from such a state; the latter is a least-squares fit to the state and the time.


def advantages(states, played, discount=0.99):
    """Return to go less a fitted baseline, standardised.

    One number per step played.
    """
    steps = len(states)
    to_go = np.zeros(played.shape)
    following = np.zeros(played.shape[1])
    for t in reversed(range(steps)):
        to_go[t] = following = (1 + discount * following) * played[t]
    time = np.broadcast_to(
        np.arange(steps)[:, None, None] / 100, played.shape + (1,))
    features = np.concatenate(
        [np.ones_like(time), time, time**2, states, states**2],
        axis=-1)[played]
    to_go = to_go[played]
    squares = features.T @ features + 1e-3 * np.eye(features.shape[1])
    surplus = to_go - features @ np.linalg.solve(squares, features.T @ to_go)
    return (surplus - surplus.mean()) / surplus.std()


# %%
# The gradient that all methods share
# -----------------------------------
# The quantity to raise is the *surrogate*: how much more likely the new policy makes the actions that turned
# out well, :math:`L(\theta) = \frac{1}{N}\sum \frac{\pi_\theta(a|s)}{\pi_{\text{old}}(a|s)} A(s, a)`. Its
# gradient at the old parameters is the policy gradient. Parameters and gradients are handled as one long
# vector each.


def get_parameters(policy):
    return np.concatenate([p.data().asnumpy().ravel()
                           for p in policy.collect_params().values()])


def set_parameters(policy, vector):
    for p in policy.collect_params().values():
        size = int(np.prod(p.shape))
        p.set_data(nd.array(vector[:size].reshape(p.shape), dtype="float64"))
        vector = vector[size:]


def gradient(policy, function):
    with autograd.record():
        value = function()
    value.backward()
    return np.concatenate([p.grad().asnumpy().ravel()
                           for p in policy.collect_params().values()])


def surrogate(policy, states, actions, advantage, old):
    ratio = nd.pick(policy(states), actions) / nd.pick(old, actions)
    return (ratio * advantage).mean()


# %%
# The divergence that measures a step
# -----------------------------------
# The old policy is the label and the new one is ``pred``, both as probabilities: ``pred_space="probs"``.
# ``reduction="sum"`` gives the divergence itself, one number per state. Moving a quarter of the decisions of an
# even policy, in a game with a third action that its rules forbid just now:

divergence = KLDivLoss(pred_space="probs", reduction="sum")
divergence.hybridize()


def mean_divergence(policy, states, old):
    """KL(old || new) averaged over the states."""
    return divergence(policy(states), old).mean()


pred = nd.array([[0.25, 0.75, 0.0]])
pred.attach_grad()
with autograd.record():
    value = divergence(pred, nd.array([[0.5, 0.5, 0.0]]))
value.backward()
print(f"{value.asscalar():.4f} nats")
print(f"gradient {pred.grad.asnumpy().round(4)}")

# %%
# The forbidden action has the probability 0 in both. Logarithms of your own would make that 0 times minus
# infinity and the gradient NaN; here it adds nothing to either.
#
# The divergence that shapes a step
# ---------------------------------
# To second order the divergence of a step :math:`x` is :math:`\frac{1}{2} x^\top F x`, with :math:`F` the
# Fisher information matrix. So the best step within the bound goes along the *natural gradient*
# :math:`F^{-1} g`, the ordinary gradient :math:`g` measured in changes of behaviour instead of changes of
# weights. The matrix would have a row and a column per parameter, and is never built: conjugate gradients
# solve :math:`F x = g` out of products :math:`F v` alone.
#
# A product with a Hessian is usually had by differentiating twice. MXNet cannot do that here: few of its
# operators have a second derivative, and ``log_softmax`` and ``softmax`` are not among them
# (*"_backward_log_softmax is non-differentiable"*), nor is any custom operator. But first derivatives are
# exact, and their difference across a short distance :math:`\epsilon` is as good:
#
# .. math::
#
#    F v \approx \frac{\nabla D(\theta + \epsilon v) - \nabla D(\theta - \epsilon v)}{2 \epsilon}
#
# In float64, with :math:`\epsilon \lVert v \rVert = 10^{-3}`, six digits are right, more than conjugate
# gradients need. A little damping keeps them from taking directions that change no decision for free.


def fisher_vector_product(policy, states, old, vector, length=1e-3):
    """F v at the policy's parameters.

    From gradients of the mean divergence, `length` away on either side.
    """
    def old_to_new():
        return mean_divergence(policy, states, old)

    here = get_parameters(policy)
    size = np.linalg.norm(vector)
    sides = []
    for distance in (length, -length):
        set_parameters(policy, here + vector * (distance / size))
        sides.append(gradient(policy, old_to_new))
    set_parameters(policy, here)
    return (sides[0] - sides[1]) * (size / (2 * length))


def conjugate_gradient(product, target, steps=10):
    """Solve product(x) = target, for a positive definite product."""
    x = np.zeros_like(target)
    residual = direction = target
    square = residual @ residual
    for _ in range(steps):
        image = product(direction)
        stride = square / (direction @ image)
        x = x + stride * direction
        residual = residual - stride * image
        square, last = residual @ residual, square
        if square < 1e-10 * (target @ target):
            break
        direction = residual + square / last * direction
    return x


# %%
# Is the product right? For a handful of states the matrix can be built after all, from the Jacobian
# :math:`J` of the probabilities: :math:`F = \frac{1}{N} \sum_s J_s^\top \mathrm{diag}(1/p_s) J_s`.


def explicit_fisher(policy, states):
    total = 0
    for i in range(len(states)):
        state = states[i:i + 1]
        p = policy(state).asnumpy()[0]
        jacobian = np.array([
            gradient(policy, lambda state=state, k=k: policy(state)[:, k])
            for k in range(2)])
        total = total + jacobian.T @ np.diag(1 / p) @ jacobian
    return total / len(states)


policy = make_policy(seed=0)
rng = np.random.default_rng(0)
states = nd.array(rng.normal(size=(6, 4)), dtype="float64")
vector = rng.normal(size=get_parameters(policy).shape)
matrix = explicit_fisher(policy, states)
expected = matrix @ vector
product = fisher_vector_product(policy, states, policy(states), vector)
error = np.linalg.norm(product - expected) / np.linalg.norm(expected)
print(f"a matrix of {matrix.shape[0]} x {matrix.shape[1]}")
print(f"product right to 1e-6: {error < 1e-6}")

# %%
# One update
# ----------
# Conjugate gradients give the direction; the length follows from
# :math:`\frac{1}{2} x^\top F x = \delta`. That is still the quadratic picture, so the true divergence is
# then measured, and the step shortened until it is within the bound and the surrogate has risen. If nothing
# helps the policy stays as it is.
#
# The new parameters are rounded to four decimals, as the states of the game were to six. The policy cannot
# notice, and the divergence is measured after it; but the last digits, in which processors differ, are gone
# before hundreds of episodes can blow them up into another curve.


def trust_region_step(policy, batch, delta, damping=1e-3, shrink=0.7):
    """One natural-gradient step whose mean KL(old || new) is within `delta`.

    Returns that divergence.
    """
    states, _, _, old = batch
    start = get_parameters(policy)
    before = surrogate(policy, *batch).asscalar()
    g = gradient(policy, lambda: surrogate(policy, *batch))
    # The matrix needs fewer states than the gradient.
    every = max(1, len(states) // 500)
    few = states[::every], old[::every]

    def product(vector):
        return fisher_vector_product(policy, *few, vector) + damping * vector

    direction = conjugate_gradient(product, g)
    step = direction * np.sqrt(2 * delta / (direction @ product(direction)))
    for _ in range(15):
        set_parameters(policy, np.round(start + step, 4))
        measured = mean_divergence(policy, states, old).asscalar()
        after = surrogate(policy, *batch).asscalar()
        if measured <= delta and after > before:
            return measured
        step = step * shrink
    set_parameters(policy, start)
    return 0.0


def plain_step(policy, batch, rate):
    """The same gradient, followed for a fixed multiple of its length.

    Returns the divergence that it caused.
    """
    states, _, _, old = batch
    g = gradient(policy, lambda: surrogate(policy, *batch))
    set_parameters(policy, np.round(get_parameters(policy) + rate * g, 4))
    return mean_divergence(policy, states, old).asscalar()


# %%
# Training
# --------
# Play, estimate, step. Whatever the step function says of itself, the loop measures the divergence again,
# and a trust-region run that ever leaves its region stops the page.


def train(step, seed, updates, episodes, bound=np.inf, progress=lambda: None):
    """Mean return and divergence of each update."""
    policy = make_policy(seed)
    # CartPole-v1, many at a time.
    games = CartPoleVectorEnv(num_envs=episodes, max_episode_steps=500)
    rng = np.random.default_rng(seed)
    returns, divergences = [], []
    for update in range(updates):
        states, actions, played = play(policy, games, rng)
        inputs = states[played], actions[played], advantages(states, played)
        inputs = [nd.array(x, dtype="float64") for x in inputs]
        old = policy(inputs[0])
        step(policy, (*inputs, old))
        measured = mean_divergence(policy, inputs[0], old).asscalar()
        if not measured <= bound:
            raise RuntimeError(f"update {update} of seed {seed} moved the "
                               f"policy by {measured} nats, over {bound}")
        returns.append(played.sum() / episodes)
        divergences.append(measured)
        progress()
    return returns, divergences


def trust_region(policy, batch):
    trust_region_step(policy, batch, options.delta)


def short_plain_steps(policy, batch):
    plain_step(policy, batch, rate=1.0)


def long_plain_steps(policy, batch):
    plain_step(policy, batch, rate=5.0)


METHODS = {  # label in the figure: step, bound
    "trust region": (trust_region, options.delta),
    "plain, short": (short_plain_steps, np.inf),
    "plain, long": (long_plain_steps, np.inf),
}
runs = {}
updates = len(METHODS) * options.seeds * options.updates
with tqdm(total=updates, unit="update", disable=None) as bar:
    for name, (step, bound) in METHODS.items():
        results = np.array([
            train(step, seed, options.updates, options.episodes, bound,
                  bar.update)
            for seed in range(options.seeds)])
        runs[name] = {"returns": results[:, 0], "divergences": results[:, 1]}

# %%
# What happened
# -------------
# Above, how long the pole stayed up, as mean and range over the seeds; below, how far each update moved the
# policy, every seed a line, and dashed the bound.

returns = {name: run["returns"] for name, run in runs.items()}
divergences = {name: run["divergences"] for name, run in runs.items()}

fig = plt.figure(figsize=(5, 6.2))
fig.suptitle("CartPole, with and without a trust region")
upper, lower = fig.subfigures(2, 1)
ax = upper.subplots()
ax.set_title("How long the pole stays up")
plots.draw_runs(ax, returns)
ax.set_ylabel("steps")
lower.suptitle(f"KL(old ‖ new), and the bound of {options.delta:g} nats",
               x=0.16, ha="left", fontsize=13, fontweight="normal")
plots.draw_bounded(lower.subplots(1, 3, sharex=True, sharey=True),
                   divergences, options.delta)
options.figures.mkdir(exist_ok=True)
fig.savefig(options.figures / "trust_region_policy.png", **plots.PNG)

# %%
# The same, in numbers: the mean return over the last five updates and all seeds, then KL(old ‖ new) of the median
# update and of the boldest.

print(f"{'':14}return  median largest")
for name in runs:
    late = returns[name][:, -5:].mean()
    middle, most = np.median(divergences[name]), divergences[name].max()
    print(f"{name:14}{late:6.0f}{middle:8.4f}{most:8.4f}")

# %%
# The plain gradient has to choose. Short steps move the policy about as far as the trust region does in the
# median, but unevenly, and along directions that the weights suggest rather than the behaviour. Long steps
# overturn the policy again and again. The trust region fixes the one number that has a meaning, and takes
# what it can get within it.
#
# What it does not promise is that every update helps: the bound holds for the divergence, measured, while the
# gradient is an estimate from a few episodes. Seeds differ, and curves dip.
#
# What to take away
# -----------------
#
# * Measure a step by what it does to the decisions: the mean of ``KLDivLoss(pred_space="probs",
#   reduction="sum")`` over the states, with the old policy as the label.
# * The gradient of that mean, taken on either side of the old policy, is all that a natural gradient needs.
# * Measure again after the step. The quadratic picture proposes, the divergence decides.
#
# .. rubric:: Sources
#
# .. [1] J. Schulman, S. Levine, P. Moritz, M. Jordan and P. Abbeel, `Trust Region Policy Optimization
#    <https://arxiv.org/abs/1502.05477>`__, 2015.

