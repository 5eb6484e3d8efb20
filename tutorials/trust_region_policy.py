r"""
Policy steps inside a trust region
==================================

**You will learn** how to limit the steps of a policy gradient with a KL divergence, as trust region policy optimization
(TRPO) does, and how :class:`~gluon_kl.KLDivLoss` measures and shapes such a step.

.. image:: ../../figures/trust_region_policy.png
   :alt: How long the pole stays up with three methods. With the trust region it rises from update to update. With short
         or long plain gradient steps it stays low. Below, the divergence of every update with the bound of 0.01.
   :class: first-figure

A policy maps what an agent sees to probabilities of its actions. A policy gradient says in which direction to change
the parameters, but not how far. In supervised learning the next step repairs a step that was too long. Here it does
not, because the policy produces its own data: after one bad step, all new episodes are played by a bad policy.

It is hard to say in parameters how far is too far. One change of a weight may do nothing, and another may change every
decision. It is easy to say in probabilities. A *trust region* method [1]_ looks for the best step that keeps the mean
divergence between the old and the new policy below a bound :math:`\delta`:

.. math:: \max_\theta \; L(\theta) \quad \text{such that} \quad D(\theta) \le \delta

:math:`L` tells how good the new policy is, estimated from the episodes of the old one. :math:`D` is the divergence,
averaged over the states :math:`s` of these episodes:

.. math:: D(\theta) = \frac{1}{N} \sum_s \mathrm{KL}(\pi_{\text{old}}(\cdot|s) \,\|\, \pi_\theta(\cdot|s))

This page builds such a method for Gymnasium's cart with a pole.
"""

# %%
# The divergence that measures a step
# -----------------------------------
#
# The old policy is the label and the new policy is ``pred``. Both hold probabilities, so use ``pred_space="probs"``.
# ``reduction="sum"`` gives the divergence itself, one number per state. As an example, take a game of three actions in
# which the rules do not allow the third one at the moment. The old policy is even; the new one has moved a quarter of
# the decisions:

import plots  # names any missing package
from gluon_kl import KLDivLoss

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from gymnasium.envs.classic_control import cartpole
from mxnet import autograd, gluon, nd
from tqdm import tqdm

plt.style.use(plots.STYLE)

divergence = KLDivLoss(
    pred_space="probs", reduction="sum")
divergence.hybridize()

pred = nd.array([[0.25, 0.75, 0.0]])
pred.attach_grad()
with autograd.record():
    value = divergence(
        pred, nd.array([[0.5, 0.5, 0.0]]))
value.backward()
print(f"{value.asscalar():.4f} nats")
print(f"gradient {pred.grad.asnumpy().round(4)}")

# %%
# The third action has the probability 0 in both policies, so it adds nothing to the value or the gradient. If you take
# the logarithms yourself, you get 0 times minus infinity, and the gradient becomes NaN.


def mean_divergence(policy, states, old):
    """KL(old || new), averaged over the states."""
    return divergence(policy(states), old).mean()


# %%
# The policy and its games
# ------------------------
#
# A pole stands on a cart. In each time step the agent pushes the cart to the left or to the right. The reward is 1 for
# each step until the pole falls, and 500 at most. The policy is a small network: its inputs are four numbers that
# describe the cart and the pole, and its outputs are two probabilities, by a softmax. It computes in float64, because
# later a derivative is computed by differences.

sizes = plots.options(
    "Policy gradients on CartPole.",
    updates=(20, "policy updates per run"),
    episodes=(8, "episodes per update"),
    seeds=(5, "runs per method"),
    delta=(0.01, "bound on the divergence"))


def array(x):
    """Make an MXNet array of 64-bit numbers.

    `nd.array` does the same, in ten times the time.
    """
    return nd.from_numpy(
        np.array(x, dtype="float64", order="C"))


def make_policy(seed, hidden=32):
    """From four numbers to two probabilities."""
    mx.random.seed(seed)
    policy = gluon.nn.HybridSequential()
    policy.add(
        gluon.nn.Dense(hidden, activation="tanh",
                       in_units=4),
        gluon.nn.Dense(2, in_units=hidden),
        gluon.nn.HybridLambda("softmax"))
    policy.initialize(mx.init.Xavier())
    policy.cast("float64")
    policy.hybridize()
    return policy


def play(policy, games, rng):
    """Play all games to their ends.

    Returns states of shape (steps, games, 4),
    actions, and a mask of the steps played. States
    are rounded, because processors differ in the
    last digits of a sine.
    """
    state, _ = games.reset(
        seed=int(rng.integers(2**31)))
    count = games.num_envs
    playing = np.ones(count, dtype=bool)
    states, actions, played = [], [], []
    while playing.any():
        chances = policy(array(state)).asnumpy()
        action = rng.random(count) < chances[:, 1]
        action = action.astype(int)
        states.append(state)
        actions.append(action)
        played.append(playing)
        _, _, fallen, late, _ = games.step(action)
        games.state = games.state.round(6)
        state = games.state.T
        playing = playing & ~(fallen | late)
    return (np.array(states, dtype="float64"),
            np.array(actions), np.array(played))


# %%
# How good was an action? Its *advantage* is the (discounted) reward after it, minus the usual reward after such a
# state. The usual reward is a least-squares fit to the state and the time.


def rewards_to_go(played, discount=0.99):
    """Discounted reward from each step on."""
    to_go = np.zeros(played.shape)
    following = np.zeros(played.shape[1])
    for t in reversed(range(len(played))):
        following = 1 + discount * following
        following = following * played[t]
        to_go[t] = following
    return to_go


def advantages(states, played):
    """One number per step played, standardized."""
    time = np.arange(len(states)) / 100
    time = np.broadcast_to(
        time[:, None, None], played.shape + (1,))
    features = np.concatenate(
        [np.ones_like(time), time, time**2,
         states, states**2], axis=-1)[played]
    to_go = rewards_to_go(played)[played]
    squares = features.T @ features
    squares += 1e-3 * np.eye(features.shape[1])
    usual = features @ np.linalg.solve(
        squares, features.T @ to_go)
    surplus = to_go - usual
    surplus = surplus - surplus.mean()
    return surplus / surplus.std()


# %%
# The gradient that all methods use
# ---------------------------------
#
# The objective is the *surrogate*: how much more probable the new policy makes the actions that turned out well,
# :math:`L(\theta) = \frac{1}{N}\sum \frac{\pi_\theta(a|s)}{\pi_{\text{old}}(a|s)} A(s, a)`. Its gradient at the old
# parameters is the policy gradient. The functions below handle all parameters, and all gradients, as one long vector.


def get_parameters(policy):
    """All parameters as one vector."""
    parameters = policy.collect_params().values()
    return np.concatenate([
        p.data().asnumpy().ravel()
        for p in parameters])


def set_parameters(policy, vector):
    """Set all parameters from one vector."""
    for p in policy.collect_params().values():
        size = int(np.prod(p.shape))
        p.set_data(array(
            vector[:size].reshape(p.shape)))
        vector = vector[size:]


def gradient(policy, function):
    """Gradient of a function of no arguments."""
    with autograd.record():
        value = function()
    value.backward()
    parameters = policy.collect_params().values()
    return np.concatenate([
        p.grad().asnumpy().ravel()
        for p in parameters])


def surrogate(policy, states, actions, advantage,
              old):
    """How good the new policy is, estimated."""
    new = nd.pick(policy(states), actions)
    ratio = new / nd.pick(old, actions)
    return (ratio * advantage).mean()


# %%
# The divergence that shapes a step
# ---------------------------------
#
# For a small step :math:`x`, the divergence is nearly :math:`\frac{1}{2} x^\top F x`, where :math:`F` is the Fisher
# information matrix. So the best step within the bound has the direction of the *natural gradient* :math:`F^{-1} g`.
# It is the ordinary gradient :math:`g`, measured by the change of the probabilities and not by the change of the
# parameters. :math:`F` has a row and a column per parameter and is never built. The conjugate gradient method solves
# :math:`F x = g` and needs only products :math:`F v`.
#
# Usually such a product is computed by differentiating twice. MXNet cannot do this here, because ``softmax`` and
# ``log_softmax`` have no second derivative (*"_backward_log_softmax is non-differentiable"*), nor has any custom
# operator. But the first derivatives are exact, and their difference over a short distance :math:`\epsilon` is accurate
# enough:
#
# .. math::
#
#    F v \approx \frac{\nabla D(\theta + \epsilon v) - \nabla D(\theta - \epsilon v)}{2 \epsilon}
#
# In float64, with :math:`\epsilon \lVert v \rVert = 10^{-3}`, six digits are right. This is more than the conjugate
# gradient method needs. A little damping keeps it away from directions that do not change the probabilities.


def fisher_vector_product(policy, states, old,
                          vector, length=1e-3):
    """F v, from gradients at a distance."""
    def old_to_new():
        return mean_divergence(policy, states, old)

    here = get_parameters(policy)
    size = np.linalg.norm(vector)
    sides = []
    for distance in (length, -length):
        there = here + vector * (distance / size)
        set_parameters(policy, there)
        sides.append(gradient(policy, old_to_new))
    set_parameters(policy, here)
    difference = sides[0] - sides[1]
    return difference * (size / (2 * length))


def conjugate_gradient(product, target, steps=10):
    """Solve product(x) = target."""
    x = np.zeros_like(target)
    residual = direction = target
    square = residual @ residual
    for _ in range(steps):
        image = product(direction)
        stride = square / (direction @ image)
        x = x + stride * direction
        residual = residual - stride * image
        last, square = square, residual @ residual
        if square < 1e-10 * (target @ target):
            break
        ratio = square / last
        direction = residual + ratio * direction
    return x


# %%
# Is the product correct? For a few states the matrix can be built, from the Jacobian :math:`J` of the probabilities:
# :math:`F = \frac{1}{N} \sum_s J_s^\top \mathrm{diag}(1/p_s) J_s`.


def explicit_fisher(policy, states):
    """The whole matrix."""
    total = 0
    for i in range(len(states)):
        state = states[i:i + 1]
        p = policy(state).asnumpy()[0]

        def probability(k, state=state):
            return lambda: policy(state)[:, k]

        jacobian = np.array([
            gradient(policy, probability(k))
            for k in range(2)])
        scaled = np.diag(1 / p) @ jacobian
        total = total + jacobian.T @ scaled
    return total / len(states)


policy = make_policy(seed=0)
rng = np.random.default_rng(0)
states = array(rng.normal(size=(6, 4)))
vector = rng.normal(
    size=get_parameters(policy).shape)
matrix = explicit_fisher(policy, states)
expected = matrix @ vector
product = fisher_vector_product(
    policy, states, policy(states), vector)
error = np.linalg.norm(product - expected)
error = error / np.linalg.norm(expected)
print("a matrix of", *matrix.shape)
print(f"product right to 1e-6: {error < 1e-6}")

# %%
# One update
# ----------
#
# The conjugate gradient method gives the direction, and :math:`\frac{1}{2} x^\top F x = \delta` gives the length. This
# length is only an approximation. So measure the true divergence after the step, and shorten the step until the
# divergence is within the bound and the surrogate has increased. If this never happens, the policy stays as it is.
#
# (The new parameters are rounded to four decimals, because processors differ in the last digits. The divergence is
# measured after the rounding.)


def trust_region_step(policy, batch, delta,
                      damping=1e-3, shrink=0.7):
    """A step whose mean KL is within `delta`.

    Returns this divergence.
    """
    states, _, _, old = batch
    start = get_parameters(policy)
    before = surrogate(policy, *batch).asscalar()
    g = gradient(
        policy, lambda: surrogate(policy, *batch))
    # The matrix needs fewer states.
    every = max(1, len(states) // 500)
    few = states[::every], old[::every]

    def product(v):
        fv = fisher_vector_product(policy, *few, v)
        return fv + damping * v

    x = conjugate_gradient(product, g)
    square = x @ product(x)
    step = x * np.sqrt(2 * delta / square)
    for _ in range(15):
        set_parameters(
            policy, np.round(start + step, 4))
        measured = mean_divergence(
            policy, states, old).asscalar()
        after = surrogate(policy, *batch)
        after = after.asscalar()
        if measured <= delta and after > before:
            return measured
        step = step * shrink
    set_parameters(policy, start)
    return 0.0


def plain_step(policy, batch, rate):
    """A step along the plain gradient."""
    g = gradient(
        policy, lambda: surrogate(policy, *batch))
    new = get_parameters(policy) + rate * g
    set_parameters(policy, np.round(new, 4))


# %%
# Training
# --------
#
# Play, estimate the advantages, make a step. The loop measures the divergence of every step again. If a step of the
# trust region method ever leaves the region, the page stops with an error.


def train(step, seed, updates, episodes,
          bound=np.inf, progress=lambda: None):
    """Mean return and divergence per update."""
    policy = make_policy(seed)
    games = cartpole.CartPoleVectorEnv(
        num_envs=episodes, max_episode_steps=500)
    rng = np.random.default_rng(seed)
    returns, divergences = [], []
    for update in range(updates):
        states, actions, played = play(
            policy, games, rng)
        inputs = [array(x) for x in (
            states[played], actions[played],
            advantages(states, played))]
        old = policy(inputs[0])
        step(policy, (*inputs, old))
        measured = mean_divergence(
            policy, inputs[0], old).asscalar()
        if not measured <= bound:
            raise RuntimeError(
                f"update {update} of seed {seed} "
                "moved the policy by "
                f"{measured} nats, over {bound}")
        returns.append(played.sum() / episodes)
        divergences.append(measured)
        progress()
    return returns, divergences


def trust_region(policy, batch):
    trust_region_step(policy, batch, sizes.delta)


def short_plain_steps(policy, batch):
    plain_step(policy, batch, rate=1.0)


def long_plain_steps(policy, batch):
    plain_step(policy, batch, rate=5.0)


METHODS = {  # name: step, bound
    "trust region": (trust_region, sizes.delta),
    "plain, short": (short_plain_steps, np.inf),
    "plain, long": (long_plain_steps, np.inf),
}
runs = {}
total = len(METHODS) * sizes.seeds * sizes.updates
with tqdm(total=total, disable=None) as bar:
    for name, (step, bound) in METHODS.items():
        results = np.array([
            train(step, seed, sizes.updates,
                  sizes.episodes, bound,
                  bar.update)
            for seed in range(sizes.seeds)])
        runs[name] = {"returns": results[:, 0],
                      "divergences": results[:, 1]}

# %%
# Results
# -------
#
# The upper part of the figure shows how long the pole stayed up: the mean over the seeds, and the range. The lower part
# shows the divergence of each update, one line per seed, and the bound as a dashed line.

returns = {name: run["returns"]
           for name, run in runs.items()}
divergences = {name: run["divergences"]
               for name, run in runs.items()}

fig = plt.figure(figsize=(5, 6.2))
fig.suptitle("CartPole with a trust region")
upper, lower = fig.subfigures(2, 1)
ax = upper.subplots()
ax.set_title("How long the pole stays up")
plots.draw_runs(ax, returns)
ax.set_ylabel("steps")
lower.suptitle(
    f"KL(old ‖ new), bound {sizes.delta:g} nats",
    x=0.16, ha="left", fontsize=13,
    fontweight="normal")
axes = lower.subplots(
    1, 3, sharex=True, sharey=True)
plots.draw_bounded(axes, divergences, sizes.delta)
fig.savefig(
    sizes.figures / "trust_region_policy.png",
    **plots.PNG)

# %%
# In numbers: the mean return of the last five updates over all seeds, then KL(old ‖ new) of the median update and of
# the largest one.

print(f"{'':14}return  median largest")
for name in runs:
    late = returns[name][:, -5:].mean()
    middle = np.median(divergences[name])
    most = divergences[name].max()
    print(f"{name:14}{late:6.0f}"
          f"{middle:8.4f}{most:8.4f}")

# %%
# Short plain steps have a median divergence like that of the trust region, but some of them are much larger. They also
# follow directions that depend on the parameters, not on the probabilities. Long plain steps change the whole policy
# again and again. The trust region limits the divergence, and it makes the most of this limit.
#
# A trust region does not guarantee that every update is an improvement. The divergence is measured, but the gradient is
# only an estimate from a few episodes. Seeds differ, and sometimes the return falls.
#
# Summary
# -------
#
# * Measure a step by how much it changes the probabilities: the mean of
#   ``KLDivLoss(pred_space="probs", reduction="sum")`` over the states, with the old policy as the label.
# * The natural gradient needs only gradients of this mean, on both sides of the old policy.
# * Measure again after the step, because the step length is only an approximation.
#
# Exercises
# ---------
#
# **1.** An even policy over two actions changes to (0.6, 0.4). Is this step within the bound of 0.01 nats?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>

even = nd.array([[0.5, 0.5]])
for new in ([0.6, 0.4], [0.57, 0.43]):
    nats = divergence(nd.array([new]), even)
    print(f"{new}: {nats.asscalar():.4f} nats")

# %%
# No, it is twice the bound. A step to (0.57, 0.43) is just inside.
#
# .. raw:: html
#
#    </details>
#
# **2.** Why is the old policy the label and not the prediction?
#
# .. raw:: html
#
#    <details class="fold"><summary>Answer</summary>
#
# KL(old ‖ new) averages over the actions of the old policy, which were really played. It becomes infinite if the new
# policy excludes an action that the old one used, so the new policy never stops to explore within one step.
#
# .. raw:: html
#
#    </details>
#
# .. rubric:: Sources
#
# .. [1] J. Schulman, S. Levine, P. Moritz, M. Jordan and P. Abbeel, `Trust Region Policy Optimization
#    <https://arxiv.org/abs/1502.05477>`__, 2015.
