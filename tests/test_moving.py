"""What a newcomer copies: the pairs of lines of the page Moving here, README's rows, and the training loops.

The other libraries are not installed here: each of their functions is written down as the formula that it stands for.
"""

import ast
import math
import re
import textwrap
from pathlib import Path
from types import SimpleNamespace as Namespace

from gluon_kl import DistillationLoss, GaussianKLLoss, JSDivLoss, KLDivLoss, TopKDistillationLoss

import mxnet as mx
import numpy as np
import pytest
import scipy.spatial
import scipy.special
from mxnet import nd
from mxnet.gluon.loss import SoftmaxCELoss

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "moving.rst"
BATCH, TIME, C, T = 3, 4, 5, 2.5


def sections():
    """The Python of each library's section."""
    text = PAGE.read_text()
    titles = list(re.finditer(r"^(\S.*)\n([~-])\2{2,}\n", text, re.MULTILINE))
    for title, end in zip(titles, [title.start() for title in titles[1:]] + [len(text)]):
        blocks = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", text[title.end():end])
        if blocks:
            yield title.group(1), [textwrap.dedent(block) for block in blocks]


def entropy(x):
    return -(x * nd.log(nd.maximum(x, 1e-30))).sum(axis=-1)


def numpy(x):
    return x.asnumpy() if isinstance(x, nd.NDArray) else x


def on_numpy(function):
    """`function` of NumPy arrays, for arrays of MXNet."""
    return lambda *args, **kwargs: function(*map(numpy, args), **kwargs)


# torch.nn.functional.kl_div, https://pytorch.org/docs/stable/generated/torch.nn.KLDivLoss.html
def torch_kl_div(pred, label, reduction="mean", log_target=False):
    terms = np.exp(label) * (label - pred) if log_target else scipy.special.xlogy(label, label) - label * pred
    return {"none": terms, "mean": terms.mean(), "batchmean": terms.sum() / len(terms)}[reduction]


# keras.losses.kl_divergence, https://keras.io/api/losses/probabilistic_losses/
def keras_kl(label, pred):
    label, pred = np.clip(label, 1e-7, 1), np.clip(pred, 1e-7, 1)
    return (label * np.log(label / pred)).sum(-1)


# tf.nn.softmax_cross_entropy_with_logits
def tf_cross_entropy(labels, logits):
    return -(numpy(labels) * scipy.special.log_softmax(numpy(logits), -1)).sum(-1)


# tfp.distributions.kl_divergence of two Categorical
def tfp_kl(p, q):
    p, q = (scipy.special.log_softmax(numpy(x), -1) for x in (p, q))
    return (np.exp(p) * (p - q)).sum(-1)


# optax.losses.kl_divergence and kl_divergence_with_log_targets
def optax_kl(log_pred, label):
    return (scipy.special.xlogy(label, label) - label * log_pred).sum(-1)


def optax_kl_log(log_pred, log_label):
    return (np.exp(log_label) * (log_label - log_pred)).sum(-1)


# gluoncv.loss.DistillationSoftmaxCrossEntropyLoss: Hinton et al. 2015, with a cross-entropy for the divergence
def gluoncv_distillation(temperature=1, hard_weight=0.5, sparse_label=True):
    def loss(pred, label, soft_target):
        soft = SoftmaxCELoss(sparse_label=False)(pred / temperature, soft_target)
        hard = SoftmaxCELoss(sparse_label=sparse_label)(pred, label)
        return hard_weight * hard + (1 - hard_weight) * temperature**2 * soft

    return loss


# gluonnlp.loss.MaskedSoftmaxCELoss, and d2l's: the mean over time, the padding counted as zeros
def gluonnlp_masked(sparse_label=True):
    def loss(pred, label, length):
        terms = -nd.pick(pred.log_softmax(), label) if sparse_label else -(pred.log_softmax() * label).sum(axis=-1)
        return nd.SequenceMask(terms, length, True, axis=1).mean(axis=1)

    return loss


# gluonnlp.loss.LabelSmoothing: epsilon in equal parts for all, the class included
def gluonnlp_smoothing(units, epsilon=0.1):
    return lambda classes: (1 - epsilon) * nd.one_hot(classes, units) + epsilon / units


# kl_divergence of d2l's appendix on information theory
def d2l_kl(p, q):
    return abs(np.nansum(p * np.log2(p / q)))


# sockeye.loss.CrossEntropyLossWithoutSoftmaxOutput: the sum over the valid positions, and their number
def sockeye_cross_entropy(label_smoothing, num_labels, ignore_label):
    def loss(pred, label):
        log_q, label = scipy.special.log_softmax(numpy(pred), -1), numpy(label)
        smooth = (1 - label_smoothing) * np.eye(num_labels)[label.astype(int)] + label_smoothing / num_labels
        valid = label != ignore_label
        return (-(smooth * log_q).sum(-1) * valid).sum(), valid.sum()

    return loss


class CategoricalDist:
    """That of rl_coach.architectures.mxnet_components.heads.ppo_head."""

    def __init__(self, n_classes, probs):
        self.probs = numpy(probs)

    def kl_div(self, alt_dist):
        return (self.probs * np.log(self.probs / alt_dist.probs)).sum(-1)


class MultivariateNormalDist:
    """That of the same module, for one covariance matrix per sample."""

    def __init__(self, num_var, mean, sigma):
        self.mean, self.sigma = numpy(mean), numpy(sigma)

    def kl_div(self, alt_dist):
        inverse, apart = np.linalg.inv(alt_dist.sigma), alt_dist.mean - self.mean
        trace = np.trace(inverse @ self.sigma, axis1=1, axis2=2)
        square = np.einsum("bi,bij,bj->b", apart, inverse, apart)
        determinants = np.linalg.slogdet(alt_dist.sigma)[1] - np.linalg.slogdet(self.sigma)[1]
        return 0.5 * (trace + square - self.mean.shape[1] + determinants)


# gluonts.mx.distribution
def gluonts_categorical(log_probs):
    return Namespace(log_probs=log_probs, probs=log_probs.exp())


def gluonts_gaussian(mu, sigma):
    return Namespace(mu=mu, sigma=sigma)


def log_softmax(logits, temperature=1):
    return scipy.special.log_softmax(numpy(logits) / temperature, -1)


def kl_of_logs(log_p, log_q):
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


# trl.GKDTrainer.generalized_jsd_loss: equation 1 of Agarwal et al. 2024, divided by the rows
def gkd(student, teacher, beta=0.5, temperature=1):
    q, p = log_softmax(student, temperature), log_softmax(teacher, temperature)
    if beta in (0, 1):
        return (kl_of_logs(p, q) if beta == 0 else kl_of_logs(q, p)).mean()
    mixture = np.log(beta * np.exp(p) + (1 - beta) * np.exp(q))
    return (beta * kl_of_logs(p, mixture) + (1 - beta) * kl_of_logs(q, mixture)).mean()


# distillm.losses: Ko et al. 2024; the forward one without the entropy
def distillm_forward(logits, teacher_logits, batch, lam):
    assert (numpy(batch["label"]) != -100).all()
    p, q = (np.exp(log_softmax(x)) for x in (teacher_logits, logits))
    return -(p * np.log(lam * p + (1 - lam) * q)).sum(-1).mean()


def distillm_reverse(logits, teacher_logits, batch, lam):
    assert (numpy(batch["label"]) != -100).all()
    p, q = (np.exp(log_softmax(x)) for x in (teacher_logits, logits))
    return kl_of_logs(np.log(q), np.log((1 - lam) * p + lam * q)).mean()


# distillkit.lossfuncs.kl.sparse_kl_div, of kept logarithms at temperature 1
def distillkit_sparse(logits, target_ids, target_values, missing):
    log_q = np.take_along_axis(log_softmax(logits), numpy(target_ids).astype(int), -1)
    log_p = numpy(target_values)
    total = kl_of_logs(log_p, log_q)
    if missing == "symmetric_uniform":
        p_tail, q_tail = (1 - np.exp(x).sum(-1) for x in (log_p, log_q))
        total = total + p_tail * np.log(p_tail / q_tail)
    return total.sum()


@pytest.fixture
def names(rng):
    """What the page's expressions are made of."""
    def scores(*shape):
        return nd.array(2 * rng.randn(*shape), dtype="float64")

    a, b, v = scores(BATCH, C), scores(BATCH, C), scores(BATCH, C)
    p, q = a.softmax(), b.softmax()
    mean, new_mean, std, new_std = scores(BATCH, C), scores(BATCH, C), scores(BATCH, C).exp(), scores(BATCH, C).exp()
    cov, new_cov = (numpy(x)[:, :, None] ** 2 * np.eye(C) for x in (std, new_std))
    return {
        "nd": nd, "math": math, "softmax": nd.softmax, "entropy": entropy, "C": C, "T": T, "batch": BATCH, "time": TIME,
        "KLDivLoss": KLDivLoss, "JSDivLoss": JSDivLoss, "DistillationLoss": DistillationLoss,
        "a": a, "b": b, "v": v, "p": p, "q": q, "log_p": p.log(), "log_q": q.log(),
        "classes": nd.array(rng.randint(C, size=BATCH), dtype="float64"),
        "F": Namespace(kl_div=lambda pred, label, **options: torch_kl_div(numpy(pred), numpy(label), **options)),
        "keras": Namespace(losses=Namespace(
            kl_divergence=on_numpy(keras_kl),
            KLDivergence=lambda: lambda label, pred: keras_kl(numpy(label), numpy(pred)).mean())),
        "tf": Namespace(
            nn=Namespace(softmax=nd.softmax, softmax_cross_entropy_with_logits=tf_cross_entropy),
            math=Namespace(xlogy=on_numpy(scipy.special.xlogy)), reduce_sum=lambda x, axis: x.sum(axis)),
        "tfp": Namespace(distributions=Namespace(Categorical=lambda logits: logits, kl_divergence=tfp_kl)),
        "optax": Namespace(losses=Namespace(
            kl_divergence=on_numpy(optax_kl), kl_divergence_with_log_targets=on_numpy(optax_kl_log))),
        "scipy": Namespace(
            special=Namespace(rel_entr=on_numpy(scipy.special.rel_entr)),
            spatial=Namespace(distance=Namespace(jensenshannon=on_numpy(scipy.spatial.distance.jensenshannon)))),
        "DistillationSoftmaxCrossEntropyLoss": gluoncv_distillation, "MaskedSoftmaxCELoss": gluonnlp_masked,
        "LabelSmoothing": gluonnlp_smoothing, "kl_divergence": on_numpy(d2l_kl),
        "GaussianKLLoss": GaussianKLLoss, "TopKDistillationLoss": TopKDistillationLoss,
        "CrossEntropyLossWithoutSoftmaxOutput": sockeye_cross_entropy,
        "old": p, "new": q, "CategoricalDist": CategoricalDist, "MultivariateNormalDist": MultivariateNormalDist,
        "mean": mean, "new_mean": new_mean, "std": std, "new_std": new_std, "cov": cov, "new_cov": new_cov,
        "Categorical": gluonts_categorical, "Gaussian": gluonts_gaussian,
        "GKDTrainer": Namespace(generalized_jsd_loss=gkd), "sparse_kl_div": distillkit_sparse,
        "skewed_forward_kl": distillm_forward, "skewed_reverse_kl": distillm_reverse,
    }


@pytest.fixture
def sequences(names, rng):
    """The names where pred has an axis of time; in float32, since MXNet's operators on the page do not mix dtypes."""
    return {**names, "b": nd.array(2 * rng.randn(BATCH, TIME, C)),
            "classes": nd.array(rng.randint(C, size=(BATCH, TIME))), "length": nd.array([4, 1, 2])}


def run_pairs(blocks, names):
    """Run blocks of Python, its expressions kept; consecutive ones are a pair."""
    names, values = dict(names), []
    for block in blocks:
        for statement in ast.parse(block).body:
            if isinstance(statement, ast.Expr):
                source = ast.unparse(statement) if hasattr(ast, "unparse") else block
                values.append((source, eval(compile(ast.Expression(statement.value), source, "eval"), names)))
            else:
                exec(compile(ast.Module([statement], []), block, "exec"), names)
    assert len(values) % 2 == 0
    return list(zip(values[::2], values[1::2]))


SECTIONS = dict(sections())
OF_SEQUENCES = ["gluon-nlp", "sockeye"]
PROGRAMS = ["From MXNet's own loss", "From Gluon 1 to Gluon 2"]
OTHERS = [name for name in SECTIONS if name not in (*PROGRAMS, *OF_SEQUENCES)]


def check(pairs, rtol=1e-6):
    assert pairs
    for (theirs, expected), (ours, found) in pairs:
        np.testing.assert_allclose(numpy(found), numpy(expected), rtol=rtol, err_msg=f"{ours}\nbeside\n{theirs}")


@pytest.mark.parametrize("library", OTHERS)
def test_the_pairs_of_the_page_agree(library, names, path):
    check(run_pairs(SECTIONS[library], names))


@pytest.mark.parametrize("library", OF_SEQUENCES)
def test_the_pairs_of_sequences_agree(library, sequences, path):
    check(run_pairs(SECTIONS[library], sequences), rtol=1e-5)


def test_smoothing_of_softmax_output(names, path):
    """Its `smooth_alpha` is for the other categories, as the page says."""
    assert "label_smoothing=alpha * C / (C - 1)" in PAGE.read_text()
    alpha, b, classes = 0.2, names["b"].astype("float32"), names["classes"].astype("float32")
    gradients = []
    for loss in (lambda: nd.SoftmaxOutput(b, classes, smooth_alpha=alpha),
                 lambda: DistillationLoss(hard_weight=1, label_smoothing=alpha * C / (C - 1))(b, classes, None)):
        b.attach_grad()
        with mx.autograd.record():
            out = loss()
        out.backward()
        gradients.append(b.grad.asnumpy())
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("library", ["gluon-cv", "gluon-nlp"])
def test_their_gradients_agree(library, names, sequences, path):
    """The entropy between the values has no gradient to the model."""
    names, rtol, atol = (sequences, 1e-5, 1e-7) if library == "gluon-nlp" else (names, 1e-10, 1e-12)
    b = names["b"]
    b.attach_grad()
    with mx.autograd.record():
        pairs = run_pairs(SECTIONS[library], names)
    for (theirs, expected), (ours, found) in pairs:
        gradients = []
        for value in (expected, found):
            value.backward(retain_graph=True)
            gradients.append(b.grad.asnumpy())
        np.testing.assert_allclose(gradients[1], gradients[0], rtol=rtol, atol=atol, err_msg=f"{ours}\n{theirs}")


def test_labels_of_0_in_tensorflows_row(names, path):
    zeros = {**names, "p": nd.array([[0, .25, .75, 0, 0]] * BATCH, dtype="float64"), "H": tf_cross_entropy}
    check(run_pairs([block for block in SECTIONS["TensorFlow"] if "xlogy" in block], zeros))


def test_the_training_loop_of_the_landing_page_runs(rng):
    page = (ROOT / "docs" / "index.rst").read_text()
    source = textwrap.dedent(re.search(r"code-block:: python\n\n(.*?)\n\n``net``", page, re.DOTALL).group(1))
    net = mx.gluon.nn.Dense(C)
    net.initialize(mx.init.Xavier())
    names = {"net": net, "batches": [(nd.array(rng.randn(8, 3)), nd.array(rng.randn(8, C)).softmax())] * 20,
             "trainer": mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1})}
    data, label = names["batches"][0]
    before = KLDivLoss(from_logits=False, reduction="sum")(net(data), label)
    exec(source, names)
    assert names["divergence"].shape == (8,)
    assert names["divergence"].mean().asscalar() < before.mean().asscalar()


def test_the_loss_of_mxnet_1_9_is_the_sum(names):
    if not mx.__version__.startswith("1.9"):
        pytest.skip("other versions average")
    theirs = mx.gluon.loss.KLDivLoss()(names["log_q"], names["p"])
    namespace = {}
    exec(SECTIONS["From MXNet's own loss"][0], namespace)
    np.testing.assert_allclose(numpy(namespace["loss"](names["log_q"], names["p"])), numpy(theirs), rtol=1e-6)


def test_the_program_before_it_moves_to_gluon_2(rng):
    """Its other half, on MXNet 2, is test_gluon2.py's."""
    features, labels = rng.randn(8, 5).astype("float32"), np.full((8, 3), 1 / 3, "float32")
    namespace = {"features": features, "labels": labels, "KLDivLoss": KLDivLoss}
    exec(SECTIONS["From Gluon 1 to Gluon 2"][0], namespace)
    assert namespace["mean"].get()[1] == pytest.approx(3 * float(namespace["value"].mean().asscalar()), rel=1e-5)
