"""The rows in MXNet: gluon_kl, and MXNet's own KLDivLoss if it has the form, else the formula as people write it."""

import gluon_kl  # before MXNet, which may need its patches

import mxnet as mx
from rows import FORMS, HARD_WEIGHT, SKEW, TEMPERATURE, layer_inputs

STATIC = {"static_alloc": True, "static_shape": True}


# ---- The formulas as people write them, hybridized ----

def skew_kl_by_hand(F, pred, label):
    mixture = SKEW * label + (1 - SKEW) * F.softmax(pred)
    return F.sum(label * (F.log(label + 1e-12) - F.log(mixture + 1e-12)), axis=-1)


def rows_by_hand(F, pred, label):
    return F.sum(terms_by_hand(F, pred, label), axis=-1)


def reverse_kl_by_hand(F, pred, label):
    log_pred = F.log_softmax(pred)
    return F.sum(F.exp(log_pred) * (log_pred - F.log(label + 1e-12)), axis=-1)


def js_by_hand(F, pred, label):
    pred = F.softmax(pred)
    log_mixture = F.log(0.5 * (pred + label) + 1e-12)
    return 0.5 * F.sum(label * (F.log(label + 1e-12) - log_mixture) + pred * (F.log(pred + 1e-12) - log_mixture),
                       axis=-1)


def two_logits_by_hand(F, pred, label):
    log_label = F.log_softmax(label)
    return F.sum(F.exp(log_label) * (log_label - F.log_softmax(pred)), axis=-1)


def terms_by_hand(F, pred, label):
    return label * (F.log(label + 1e-12) - F.log_softmax(pred))


def teaching_by_hand(F, pred, teacher):
    return TEMPERATURE**2 * F.sum(terms_by_hand(F, pred / TEMPERATURE, F.softmax(teacher / TEMPERATURE)), axis=-1)


def distillation_index_by_hand(F, pred, label, teacher):
    hard = -F.pick(F.log_softmax(pred), label, axis=-1)
    return HARD_WEIGHT * hard + (1 - HARD_WEIGHT) * teaching_by_hand(F, pred, teacher)


def distillation_dense_by_hand(F, pred, label, teacher):
    hard = -F.sum(F.log_softmax(pred) * label, axis=-1)
    return HARD_WEIGHT * hard + (1 - HARD_WEIGHT) * teaching_by_hand(F, pred, teacher)


def total_variation_by_hand(F, pred, label, teacher):
    hard = -F.pick(F.log_softmax(pred), label, axis=-1)
    apart = F.softmax(pred / TEMPERATURE) - F.softmax(teacher / TEMPERATURE)
    return HARD_WEIGHT * hard + (1 - HARD_WEIGHT) * TEMPERATURE * 0.5 * F.sum(F.abs(apart), axis=-1)


def top_k_by_hand(categories):
    """A loss for this number of categories, which it needs to compute positions in the array of all rows."""
    def formula(F, pred, label, index, value):
        log_pred = F.log_softmax(pred / TEMPERATURE)
        rows = F.expand_dims(F.cast(F.contrib.arange_like(pred, axis=0), dtype="int32"), axis=1)
        places = F.reshape(F.broadcast_add(rows * categories, index), shape=(-1,))
        column = F.reshape(log_pred, shape=(-1, 1))
        kept = F.reshape_like(F.take(column, places), value)
        low = F.reshape(F.zeros_like(value) - 1e30, shape=(-1, 1))
        others = F.reshape_like(F.contrib.index_copy(column, places, low), pred)
        rest, log_rest = 1 - F.sum(F.exp(value), axis=-1), F.log(F.sum(F.exp(others), axis=-1))
        soft = F.sum(F.exp(value) * (value - kept), axis=-1) + rest * (F.log(rest) - log_rest)
        hard = -F.pick(F.log_softmax(pred), label, axis=-1)
        return HARD_WEIGHT * hard + (1 - HARD_WEIGHT) * TEMPERATURE**2 * soft

    return formula


def gaussian_by_hand(F, mean, log_variance):
    return -0.5 * F.sum(1 + log_variance - mean * mean - F.exp(log_variance), axis=-1)


def bernoulli_by_hand(F, pred, label):
    cross_entropy = F.relu(pred) - pred * label + F.Activation(-F.abs(pred), act_type="softrelu")
    return F.sum(label * F.log(label) + (1 - label) * F.log(1 - label) + cross_entropy, axis=-1)


class ByHand(mx.gluon.HybridBlock):
    def __init__(self, formula):
        super().__init__()
        self._formula = formula

    def hybrid_forward(self, F, *inputs):
        return self._formula(F, *inputs)


BY_HAND = {
    "kl-two-logits": two_logits_by_hand,
    "kl-none": terms_by_hand,
    "kl-rows": rows_by_hand,
    "skew-kl": skew_kl_by_hand,
    "reverse-kl": reverse_kl_by_hand,
    "js": js_by_hand,
    "distillation-index": distillation_index_by_hand,
    "distillation-dense": distillation_dense_by_hand,
    "distillation-tv": total_variation_by_hand,
    "gaussian": gaussian_by_hand,
    "bernoulli": bernoulli_by_hand,
}


def gluon_loss(row):
    if row.form == "top-k":
        return ByHand(top_k_by_hand(row.shape[-1]))
    if row.form in BY_HAND:
        return ByHand(BY_HAND[row.form])
    return mx.gluon.loss.KLDivLoss(from_logits=False, axis=row.axis)


# ---- gluon_kl ----

def our_loss(row):
    scores = {"from_logits": False, "axis": row.axis, "reduction": "sum"}
    if row.form == "gaussian":
        return gluon_kl.GaussianKLLoss()
    if row.form == "bernoulli":
        return gluon_kl.BernoulliKLLoss(reduction="sum")
    if row.form == "reverse-kl":
        return gluon_kl.ReverseKLDivLoss(**scores)
    if row.form == "js":
        return gluon_kl.JSDivLoss(**scores)
    if row.form == "top-k":
        return gluon_kl.TopKDistillationLoss(temperature=TEMPERATURE, hard_weight=HARD_WEIGHT)
    if row.form.startswith("distillation"):
        return gluon_kl.DistillationLoss(temperature=TEMPERATURE, hard_weight=HARD_WEIGHT,
                                         sparse_label=row.form != "distillation-dense",
                                         divergence="tv" if row.form == "distillation-tv" else "kl")
    if row.form == "kl-two-logits":
        scores["label_space"] = "logits"
    elif row.form == "skew-kl":
        scores["skew"] = SKEW
    elif row.form in ("kl-none", "kl-rows"):
        scores["reduction"] = row.form[3:].rstrip("s")
    return gluon_kl.KLDivLoss(**scores)


# ---- Steps ----

class Parent(mx.gluon.HybridBlock):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def hybrid_forward(self, F, pred, *others):
        return self.loss(pred * 2, *others)


class Steps:
    """A prepared row: `steps` by name, `results` of a step, and the bytes of gradient that only a step allocates."""

    unallocated = 0

    def __init__(self, subject, row, arrays):
        loss = gluon_loss(row) if subject == "gluon" else our_loss(row)
        block = Parent(loss) if row.setting == "parent" else loss
        if subject != "eager":
            block.hybridize(**STATIC)
        if row.setting == "trainer":
            self._prepare_training(block, row, arrays)
            return
        arrays = [mx.nd.array(x, dtype=x.dtype) for x in arrays]
        leaves = arrays[:FORMS[row.form].followed]
        for leaf in leaves:
            leaf.attach_grad()
        head = mx.nd.ones(row.result_shape)
        mx.nd.waitall()

        def step():
            with mx.autograd.record():
                out = block(*arrays)
            out.backward(head)
            for leaf in leaves:
                leaf.grad.wait_to_read()
            return [out, *(leaf.grad for leaf in leaves)]

        self._step, self.steps = step, {"step": step}
        if row.setting == "layer":
            self._prepare_layers(block, leaves, arrays[len(leaves):], head)

    def _prepare_layers(self, loss, leaves, others, head):
        layers = [mx.gluon.nn.HybridLambda(lambda F, x: x * 2) for _ in leaves]
        for layer in layers:
            layer.hybridize(**STATIC)
        gradients = [mx.nd.ones_like(leaf) for leaf in leaves]

        def step():
            with mx.autograd.record():
                out = loss(*[layer(leaf) for layer, leaf in zip(layers, leaves)], *others)
            out.backward(head)
            for leaf in leaves:
                leaf.grad.wait_to_read()
            return [out, *(leaf.grad for leaf in leaves)]

        def without():
            with mx.autograd.record():
                computed = [layer(leaf) for layer, leaf in zip(layers, leaves)]
            mx.autograd.backward(computed, gradients)
            for leaf in leaves:
                leaf.grad.wait_to_read()

        self._step, self.steps = step, {"step": step, "without": without}

    def _prepare_training(self, loss, row, arrays):
        label = mx.nd.array(arrays[1])
        x, weight, bias = map(mx.nd.array, layer_inputs(row))
        net = mx.gluon.nn.Dense(weight.shape[0], in_units=weight.shape[1])
        net.initialize()
        net.weight.set_data(weight)
        net.bias.set_data(bias)
        net.hybridize(**STATIC)
        trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1})

        def step():
            with mx.autograd.record():
                out = loss(net(x), label)
            out.backward()
            trainer.step(x.shape[0])
            net.weight.data().wait_to_read()
            return [out, net.weight.data(), net.bias.data()]

        self._step, self.steps = step, {"step": step}

    def results(self):
        return [x.asnumpy() for x in self._step()]


def start(subject, threads):
    """Prepare; return the version. ImportError if the competitor cannot be measured."""
    if subject == "gluon":
        return f"MXNet {mx.__version__}"
    if subject != "operators" and not gluon_kl.native.is_available():
        raise ImportError(gluon_kl.native.why_not())
    return f"gluon_kl {gluon_kl.__version__}"
