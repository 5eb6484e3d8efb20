"""The rows in JAX, each step one jitted function."""

import jax
import jax.numpy as jnp
import numpy as np
from rows import FORMS, HARD_WEIGHT, SKEW, TEMPERATURE


def kl_none(pred, label, axis=-1):
    return jax.scipy.special.rel_entr(label, 1.0) - label * jax.nn.log_softmax(pred, axis)


def kl(pred, label, axis=-1):
    return kl_none(pred, label, axis).sum(tuple(range(1, pred.ndim)))


def kl_two_logits(pred, label):
    log_label = jax.nn.log_softmax(label)
    return (jnp.exp(log_label) * (log_label - jax.nn.log_softmax(pred))).sum(-1)


def kl_rows(pred, label):
    return kl_none(pred, label).sum(-1)


def kl_weights(pred, label, weight):
    return (kl_none(pred, label) * weight).sum(-1)


def skew_kl(pred, label):
    mixture = SKEW * label + (1 - SKEW) * jax.nn.softmax(pred)
    return (jax.scipy.special.rel_entr(label, 1.0) - label * jnp.log(mixture)).sum(-1)


def reverse_kl(pred, label):
    log_pred = jax.nn.log_softmax(pred)
    return (jnp.exp(log_pred) * (log_pred - jnp.log(label))).sum(-1)


def js(pred, label):
    pred = jax.nn.softmax(pred)
    log_mixture = jnp.log(0.5 * (pred + label))
    return 0.5 * (label * (jnp.log(label) - log_mixture) + pred * (jnp.log(pred) - log_mixture)).sum(-1)


def teaching(pred, teacher):
    return TEMPERATURE**2 * kl(pred / TEMPERATURE, jax.nn.softmax(teacher / TEMPERATURE))


def cross_entropy(pred, label):
    return -jnp.take_along_axis(jax.nn.log_softmax(pred), label[:, None], -1)[:, 0]


def distillation_index(pred, label, teacher):
    return HARD_WEIGHT * cross_entropy(pred, label) + (1 - HARD_WEIGHT) * teaching(pred, teacher)


def distillation_dense(pred, label, teacher):
    hard = -(jax.nn.log_softmax(pred) * label).sum(-1)
    return HARD_WEIGHT * hard + (1 - HARD_WEIGHT) * teaching(pred, teacher)


def total_variation(pred, label, teacher):
    apart = jax.nn.softmax(pred / TEMPERATURE) - jax.nn.softmax(teacher / TEMPERATURE)
    soft = TEMPERATURE * 0.5 * jnp.abs(apart).sum(-1)
    return HARD_WEIGHT * cross_entropy(pred, label) + (1 - HARD_WEIGHT) * soft


def top_k(pred, label, index, value):
    log_pred = jax.nn.log_softmax(pred / TEMPERATURE)
    kept = jnp.take_along_axis(log_pred, index, -1)
    others = log_pred.at[jnp.arange(len(pred))[:, None], index].set(-jnp.inf)
    rest = 1 - jnp.exp(value).sum(-1)
    soft = (jnp.exp(value) * (value - kept)).sum(-1) + rest * (jnp.log(rest) - jax.nn.logsumexp(others, -1))
    return HARD_WEIGHT * cross_entropy(pred, label) + (1 - HARD_WEIGHT) * TEMPERATURE**2 * soft


def gaussian(mean, log_variance):
    return -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance)).sum(-1)


def bernoulli(pred, label):
    entropy = jax.scipy.special.entr(label) + jax.scipy.special.entr(1 - label)
    cross_entropy = jax.nn.softplus(pred) - pred * label
    return (cross_entropy - entropy).sum(-1)


LOSSES = {
    "kl": kl,
    "kl-two-logits": kl_two_logits,
    "kl-none": kl_none,
    "kl-rows": kl_rows,
    "kl-row-weights": kl_weights,
    "kl-element-weights": kl_weights,
    "skew-kl": skew_kl,
    "reverse-kl": reverse_kl,
    "js": js,
    "distillation-index": distillation_index,
    "distillation-dense": distillation_dense,
    "distillation-tv": total_variation,
    "top-k": top_k,
    "gaussian": gaussian,
    "bernoulli": bernoulli,
}


class Steps:
    """A prepared row: `steps` by name, `results` of a step, and the bytes of gradient that only a step allocates."""

    def __init__(self, subject, row, arrays):
        if row.setting == "trainer":
            raise NotImplementedError("JAX has no optimizer of its own")
        followed = FORMS[row.form].followed

        def total(followed_arrays, others):
            if row.setting == "layer":
                followed_arrays = [x * 2 for x in followed_arrays]
            pred, *rest = followed_arrays
            options = {} if row.axis == -1 else {"axis": row.axis}
            out = LOSSES[row.form](pred * 2 if row.setting == "parent" else pred, *rest, *others, **options)
            return out.sum(), out

        call = jax.jit(jax.value_and_grad(total, has_aux=True))
        arrays = [jax.device_put(x) for x in arrays]
        leaves, others = tuple(arrays[:followed]), tuple(arrays[followed:])
        self.unallocated = sum(leaf.nbytes for leaf in leaves)

        def step():
            (_, out), gradients = jax.block_until_ready(call(leaves, others))
            return [out, *gradients]

        self._step, self.steps = step, {"step": step}
        if row.setting == "layer":
            layers = jax.jit(lambda leaves, heads: jax.vjp(lambda xs: [x * 2 for x in xs], leaves)[1](heads))
            gradients = [jnp.ones_like(leaf) for leaf in leaves]
            self.steps["without"] = lambda: jax.block_until_ready(layers(list(leaves), gradients))

    def results(self):
        return [np.asarray(x) for x in self._step()]


def start(subject, threads):
    """Prepare; return the version. There are as many threads as processors that the process may use."""
    jax.config.update("jax_platforms", "cpu")
    return f"JAX {jax.__version__}"
