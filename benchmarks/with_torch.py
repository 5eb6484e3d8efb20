"""The rows in torch, as its users write them: eager, or with the loss compiled."""

import numpy as np
import torch
from rows import FORMS, HARD_WEIGHT, SKEW, TEMPERATURE, layer_inputs
from torch.nn import functional


def kl(pred, label, axis=-1):
    terms = functional.kl_div(torch.log_softmax(pred, axis), label, reduction="none")
    return terms.flatten(1).sum(1)


def kl_two_logits(pred, label):
    log_pred, log_label = torch.log_softmax(pred, -1), torch.log_softmax(label, -1)
    return functional.kl_div(log_pred, log_label, reduction="none", log_target=True).sum(-1)


def kl_none(pred, label):
    return functional.kl_div(torch.log_softmax(pred, -1), label, reduction="none")


def kl_rows(pred, label):
    return kl_none(pred, label).sum(-1)


def kl_weights(pred, label, weight):
    return (kl_none(pred, label) * weight).sum(-1)


def skew_kl(pred, label):
    mixture = SKEW * label + (1 - SKEW) * torch.softmax(pred, -1)
    return functional.kl_div(mixture.log(), label, reduction="none").sum(-1)


def reverse_kl(pred, label):
    log_pred = torch.log_softmax(pred, -1)
    return (log_pred.exp() * (log_pred - label.log())).sum(-1)


def js(pred, label):
    pred = torch.softmax(pred, -1)
    log_mixture = (0.5 * (pred + label)).log()
    return 0.5 * (functional.kl_div(log_mixture, label, reduction="none")
                  + functional.kl_div(log_mixture, pred, reduction="none")).sum(-1)


def distillation(pred, label, teacher):
    hard = functional.cross_entropy(pred, label, reduction="none")
    soft = kl(pred / TEMPERATURE, torch.softmax(teacher / TEMPERATURE, -1))
    return HARD_WEIGHT * hard + (1 - HARD_WEIGHT) * TEMPERATURE**2 * soft


def total_variation(pred, label, teacher):
    hard = functional.cross_entropy(pred, label, reduction="none")
    apart = torch.softmax(pred / TEMPERATURE, -1) - torch.softmax(teacher / TEMPERATURE, -1)
    return HARD_WEIGHT * hard + (1 - HARD_WEIGHT) * TEMPERATURE * 0.5 * apart.abs().sum(-1)


def top_k(pred, label, index, value):
    log_pred = torch.log_softmax(pred / TEMPERATURE, -1)
    kept, others = log_pred.gather(-1, index), log_pred.scatter(-1, index, -torch.inf)
    rest = 1 - value.exp().sum(-1)
    soft = functional.kl_div(kept, value, reduction="none", log_target=True).sum(-1)
    soft = soft + rest * (rest.log() - others.logsumexp(-1))
    hard = functional.cross_entropy(pred, label, reduction="none")
    return HARD_WEIGHT * hard + (1 - HARD_WEIGHT) * TEMPERATURE**2 * soft


def gaussian(mean, log_variance):
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)


def bernoulli(pred, label):
    cross_entropy = functional.binary_cross_entropy_with_logits(pred, label, reduction="none")
    return (cross_entropy - torch.special.entr(label) - torch.special.entr(1 - label)).sum(-1)


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
    "distillation-index": distillation,
    "distillation-dense": distillation,
    "distillation-tv": total_variation,
    "top-k": top_k,
    "gaussian": gaussian,
    "bernoulli": bernoulli,
}


class Steps:
    """A prepared row: `steps` by name, `results` of a step, and the bytes of gradient that only a step allocates."""

    def __init__(self, subject, row, arrays):
        def loss(pred, *others):
            pred = pred * 2 if row.setting == "parent" else pred
            options = {} if row.axis == -1 else {"axis": row.axis}
            return LOSSES[row.form](pred, *others, **options)

        if subject == "torch-compile":
            torch.compiler.reset()  # otherwise it stops compiling after eight shapes
            loss = torch.compile(loss, dynamic=False)
        arrays = [torch.from_numpy(x.astype("int64") if x.dtype == np.int32 else x) for x in arrays]
        if row.setting == "trainer":
            self._prepare_training(loss, row, arrays[1])
            return
        leaves = arrays[:FORMS[row.form].followed]
        for leaf in leaves:
            leaf.requires_grad_()
        self.unallocated = sum(leaf.nbytes for leaf in leaves)
        layer = (lambda x: x * 2) if row.setting == "layer" else (lambda x: x)
        head = torch.ones(row.result_shape)

        def step():
            for leaf in leaves:
                leaf.grad = None
            out = loss(*map(layer, leaves), *arrays[len(leaves):])
            out.backward(head)
            return [out, *(leaf.grad for leaf in leaves)]

        self._step, self.steps = step, {"step": step}
        if row.setting == "layer":
            gradients = [torch.ones_like(leaf) for leaf in leaves]

            def without():
                for leaf in leaves:
                    leaf.grad = None
                torch.autograd.backward(list(map(layer, leaves)), gradients)

            self.steps["without"] = without

    def _prepare_training(self, loss, row, label):
        x, weight, bias = map(torch.from_numpy, layer_inputs(row))
        net = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            net.weight.copy_(weight)
            net.bias.copy_(bias)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step():
            optimizer.zero_grad()
            out = loss(net(x), label)
            out.mean().backward()
            optimizer.step()
            return [out, net.weight, net.bias]

        self._step, self.steps = step, {"step": step}

    def results(self):
        return [x.detach().numpy() for x in self._step()]


def start(subject, threads):
    """Prepare; return the version."""
    torch.set_num_threads(threads)
    return f"torch {torch.__version__}"
