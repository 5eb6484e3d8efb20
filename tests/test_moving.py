"""What a newcomer copies: the pairs of lines of the page Moving here, README's rows, and the training loops.

The other libraries are not installed here: each of their functions is written down as the formula that it stands for.
"""

import ast
import math
import re
import textwrap
from pathlib import Path
from types import SimpleNamespace as Namespace

from gluon_kl import DistillationLoss, JSDivLoss, KLDivLoss

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


@pytest.fixture
def names(rng):
    """What the page's expressions are made of."""
    def scores(*shape):
        return nd.array(2 * rng.randn(*shape), dtype="float64")

    a, b, v = scores(BATCH, C), scores(BATCH, C), scores(BATCH, C)
    p, q = a.softmax(), b.softmax()
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
OTHERS = [name for name in SECTIONS if name not in ("From MXNet's own loss", "From Gluon 1 to Gluon 2", "gluon-nlp")]


def check(pairs, rtol=1e-6):
    assert pairs
    for (theirs, expected), (ours, found) in pairs:
        np.testing.assert_allclose(numpy(found), numpy(expected), rtol=rtol, err_msg=f"{ours}\nbeside\n{theirs}")


@pytest.mark.parametrize("library", OTHERS)
def test_the_pairs_of_the_page_agree(library, names, path):
    check(run_pairs(SECTIONS[library], names))


def test_the_pairs_of_sequences_agree(sequences, path):
    check(run_pairs(SECTIONS["gluon-nlp"], sequences), rtol=1e-5)


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
