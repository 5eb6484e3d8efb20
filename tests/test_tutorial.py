"""The walkthrough runs as a user would run it, and what it prints and draws is right."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gallery
import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
import pytest
from gallery import TUTORIALS
from rendered import article, printed

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ["digits_training.png", "digits_votes.png", "distributions.png", "terms.png"]

D1 = np.array([0.2, 0.5, 0.2, 0.1])
D2 = np.array([0.3, 0.4, 0.1, 0.2])
D3 = np.array([0.1, 0.1, 0.1, 0.7])
D4 = np.array([0.0, 0.9, 0.0, 0.1])
SCORES = np.array([0.39056206, 1.3068528, 0.39056206, -0.30258512])
LABEL_SCORES = np.array([[0.05, 0.16, 0.9], [0.8, 4.15, 0.05]])
PRED_SCORES = np.array([[0.7, 0.2, 0.1], [0.15, 0.9, 0.05]])

# Runs the script in a namespace that the tests can look into afterwards.
DRIVER = """
import os, runpy, sys
import numpy as np
sys.path.insert(0, os.path.dirname(sys.argv[1]))
names = runpy.run_path(sys.argv[1], run_name="__main__")
weights = {f"weight_{i}": value.data().asnumpy() for i, value in enumerate(names["net"].collect_params().values())}
np.savez(sys.argv[2], **weights, **{name: names[name] for name in ("images", "digits", "votes")})
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the tutorials with an empty folder for their figures."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(str(ROOT / "tutorials"), str(folder / "tutorials"))
    (folder / "figures").mkdir()
    return folder


@pytest.fixture(scope="module")
def ran(copy, tmp_path_factory):
    """The script's run from an unrelated folder: what it wrote to standard output and error, and its arrays."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run([sys.executable, "-c", DRIVER, str(copy / "tutorials" / "kl_divergence.py"), "arrays.npz"],
                          cwd=str(elsewhere), env=dict(os.environ, PYTHONPATH=str(ROOT)), timeout=300,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in elsewhere.iterdir()] == ["arrays.npz"]
    with np.load(str(elsewhere / "arrays.npz")) as arrays:
        return done.stdout, done.stderr, dict(arrays)


@pytest.fixture(scope="module")
def output(ran):
    return ran[:2]


def softmax(z):
    """Turn scores into probabilities along the last axis, in float64."""
    powers = np.exp(z - z.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def kl(p, q):
    """Compute KL(p || q) along the last axis: absent categories of p count 0, absent ones of q only count infinity."""
    p, q = np.broadcast_arrays(p, q)
    terms = np.zeros(p.shape)
    present = p > 0
    with np.errstate(divide="ignore"):
        terms[present] = p[present] * (np.log(p[present]) - np.log(q[present]))
    return terms.sum(axis=-1)


def entropy(p):
    """Compute the entropy of strictly positive rows."""
    return -(p * np.log(p)).sum(axis=-1)


def numbers(line):
    """List the decimal numbers and infinities of a line of output."""
    return [float(number) for number in re.findall(r"-?\d+\.\d+|inf", line)]


def with_sun(score):
    """The scores of the experiment in step 5, one per category."""
    return np.array([score, *SCORES[[1, 2, 3]]])


def added(pred, label, small):
    """KL after adding a small value to both sides, which then no longer sum to 1."""
    return kl(label + small, pred + small)


def clipped(pred, label, small):
    return kl(label, np.clip(pred, small, 1))


def repairs():
    """What step 5 prints of the two repairs: their numbers, then loss and gradient for ever lower logits of sun."""
    for name, pred, label in (("4 against 1", D4, D1), ("1 against 2", D1, D2)):
        yield f"distribution {name}", []
        for small in (1e-12, 1e-7, 1e-3):
            yield f"{small:7g}: added", [*([small] if small == 1e-3 else []), added(pred, label, small),
                                         clipped(pred, label, small)]
    for name, loss in {"from_logits=False": lambda pred: kl(D1, pred),
                       "added": lambda pred: added(pred, D1, 1e-7),
                       "clipped": lambda pred: clipped(pred, D1, 1e-7)}.items():
        yield name, []
        yield "  pred of sun", []
        for score in (-5, -15, -25, -50):
            step = 1e-4
            around = [loss(softmax(with_sun(score + shift))) for shift in (-step, step)]
            yield f"  {softmax(with_sun(score))[0]:11.1e}", [
                float(f"{softmax(with_sun(score))[0]:.1e}".split("e")[0]), loss(softmax(with_sun(score))),
                (around[1] - around[0]) / (2 * step)]


def expected_lines():
    """Pair what each line of steps 1 to 6 starts with and the numbers it must hold, from the formula."""
    own = 1 if mx.__version__.startswith("1.9.") else 1 / 4  # MXNet's loss adds in 1.9, and averages elsewhere
    label = np.array([0.4, 0.4, 0.2, 0.0])
    july = np.array([2, 5, 2, 0]) / 9
    slope = [np.log(0.9 / 0.5) + 1, 1.0]
    p, q = softmax(LABEL_SCORES), softmax(PRED_SCORES)
    pairs = [("1 against 2", D2, D1), ("1 against 3", D3, D1), ("1 against 1", D1, D1),
             ("4 against 1", D1, D4), ("1 against 4", D4, D1)]
    return [
        ("KL(dist_2 || dist_1)", [kl(D2, D1)]),
        ("KL(dist_1 || dist_2)", [kl(D1, D2)]),
        ("KL(dist_3 || dist_1)", [kl(D3, D1)]),
        ("KL(dist_1 || dist_3)", [kl(D1, D3)]),
        ("distribution 1 against 2:", [0.101696830]),
        ("distribution 1 against 3:", [1.062564]),
        ("distribution 1 against 1:", [0]),
        ("[", [kl(D2, D1), kl(D3, D1), 0]),
        ("[", [-entropy(label_row) - label_row @ D1 for label_row in (D2, D3, D1)]),
        ("softmax:", softmax(SCORES)),
        ("distribution 1 against 2:", [kl(D2, softmax(SCORES))]),
        ("softmax, then log:", [np.inf]),
        ("from_logits=False:", [0.5 * 200 + np.log(0.5)]),
        ("its gradient:", [-0.5, 0.5]),
        ("[", [0.1879, 0.4534]),
        ("cross-entropy:", -(p * np.log(q)).sum(axis=1)),
        ("entropy of label:", entropy(p)),
        ("difference:", kl(p, q)),
        ("distribution 4 against 1:", [np.inf]),
        ("distribution 1 against 4:", [0.529007]),
        ("distribution 4 against 4:", [0]),
        *repairs(),
        ("epsilon 1e-12: value", [kl(D4, D1)]),
        ("[", [np.log(1e-12 / 0.2), slope[0], np.log(1e-12 / 0.2), slope[1]]),
        ("epsilon 0.001:", [0.001, kl(D4, D1)]),
        ("[", [np.log(1e-3 / 0.2), slope[0], np.log(1e-3 / 0.2), slope[1]]),
        ("forecast", july),
        ("gradient", july - label),
        ("divergence", [kl(label, july)]),
        ("terms", D2 * np.log(D2 / D1)),
        ("true divergence (NumPy):", [kl(D2, D1)]),
        ("divided by 4 categories:", [kl(D2, D1) / 4]),
        ('distribution    "sum"   "mean"', []),
        *[(name, [kl(p, q), kl(p, q) / 4]) for name, p, q in pairs],
        (f"mxnet {mx.__version__}:", [float(mx.__version__[:3]), own * kl(D2, D1)]),
    ]


def test_printed_numbers_of_steps_1_to_6(output):
    lines = output[0].splitlines()
    expected = expected_lines()
    for line, (start, values) in zip(lines, expected):
        assert line.startswith(start)
        np.testing.assert_allclose(numbers(line), values, rtol=0, atol=6e-5, err_msg=line)
    assert lines[len(expected)].startswith("training images")


def test_training_against_numpy(ran):
    """The votes, and the trained network run by hand from its weights, give the numbers that were printed."""
    printed, _, arrays = ran
    images, digits, votes = arrays["images"], arrays["digits"], arrays["votes"]
    np.testing.assert_allclose(votes.sum(axis=1), 1)
    assert (votes.max(axis=1) < 1).mean() > 0.5, "labels should be soft"
    rows = images / 16
    hidden = np.maximum(rows @ arrays["weight_0"].T + arrays["weight_1"], 0)
    beliefs = softmax(hidden @ arrays["weight_2"].T + arrays["weight_3"])
    values = kl(votes, beliefs)
    train, held_out = slice(600, 1400), slice(1400, None)

    tail = printed[printed.index("training images"):].splitlines()
    assert tail[:2] == ["training images: 800", "held out: 397 images"]
    assert numbers(tail[2])[0] == round(100 * np.mean(votes[held_out].max(axis=1) == 1), 1)
    np.testing.assert_allclose(numbers(tail[7]), [values[train].mean(), values[held_out].mean()], atol=6e-5)
    per_digit = np.array([numbers(line) for line in tail[9:19]])
    by_hand = [values[held_out][digits[held_out] == digit].mean() for digit in range(10)]
    np.testing.assert_allclose(per_digit[:, 1], by_hand, atol=6e-5)
    for line, shares in zip(tail[20:22], (votes[held_out], beliefs[held_out])):
        right = np.mean(shares.argmax(axis=1) == digits[held_out])
        np.testing.assert_allclose(numbers(line), [shares.max(axis=1).mean(), 100 * right], atol=0.051)


def test_the_divergence_falls_for_every_digit(output):
    """What the text beside the figure says."""
    lines = output[0].splitlines()
    start = lines.index("digit  untrained  trained") + 1
    untrained, trained = np.array([numbers(line) for line in lines[start:start + 10]]).T
    assert (trained < untrained / 5).all()
    epochs = np.array([numbers(line) for line in lines[start - 5:start - 1]])
    assert (np.diff(epochs, axis=0) < 0).all()
    assert epochs[-1, 1] < 0.15, "nats per held-out image"


@pytest.mark.site
def test_the_run_repeats_itself(output, site):
    """The page printed the same when it was built; Sphinx shifts and trims lines."""
    lines, page = ([line.strip() for line in text.splitlines() if line.strip()]
                   for text in (output[0], printed(site, "kl_divergence")))
    assert lines == page


def test_output_is_clean(output):
    printed, errors = output
    assert "nan" not in printed.lower()
    assert errors == "", "the progress bar is for terminals"
    assert max(map(len, printed.splitlines())) <= gallery.PHONE


def test_figures_are_written_and_those_committed(output, copy):
    assert sorted(file.name for file in (copy / "figures").iterdir()) == FIGURES
    for name in FIGURES:
        assert (copy / "figures" / name).read_bytes() == (ROOT / "figures" / name).read_bytes(), f"{name} is stale"


# Any Python that is not the right one, and any folder

SCRIPTS = [ROOT / "tutorials" / f"{name}.py" for name in TUTORIALS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_wrong_python_hears_which_is_right(script, tmp_path):
    """Without its packages this Python is as wrong as any other; one that is too old still reads the scripts."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    downloaded = tmp_path / "downloaded"
    downloaded.mkdir()
    for file in (script, script.with_name("plots.py")):
        ast.parse(file.read_text("utf-8"), feature_version=(3, 6))
        shutil.copy(file, downloaded)
    for where, advice in ((script, "tutorials with .venv/bin/python"), (downloaded / script.name, "extra 'tutorial'")):
        done = subprocess.run([sys.executable, "-S", str(where)], cwd=str(tmp_path), env=environment, timeout=60,
                              capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith("No module named 'gluon_kl'\nThis is Python ")
        assert sys.version.split()[0] in done.stderr and advice in done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_gluon_kl_is_imported_before_mxnet(script):
    """On Pythons and NumPys newer than MXNet nothing else works."""
    imported = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                for node in ast.parse(script.read_text("utf-8")).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert imported.index("plots") < imported.index("gluon_kl") < imported.index("mxnet")


@pytest.mark.site
def test_the_walkthrough_is_short_unfolded(site):
    page = article(site, "kl_divergence")
    folds = page.select("details")
    assert len(folds) == 6
    for left_out in (*folds, *page.select("div.highlight, .sphx-glr-footer, .sphx-glr-download-link-note")):
        left_out.extract()
    assert len(page.get_text(" ").split()) < 2300


@pytest.fixture
def ax(plots):
    with plt.style.context(plots.STYLE):
        figure, axes = plt.subplots()
        yield axes
        plt.close(figure)


def test_draw_distributions(ax, plots):
    plots.draw_distributions(ax, ["a", "b", "c", "d"], D1, D3, ("one", "three"))
    assert [bar.get_height() for bar in ax.patches] == [*D1, *D3]
    assert all(0 < bar.get_alpha() < 1 for bar in ax.patches), "what lies behind a bar must be seen"
    assert [bar.get_x() for bar in ax.patches[:4]] == [bar.get_x() for bar in ax.patches[4:]], "overlaid, not beside"
    assert len({bar.get_facecolor() for bar in ax.patches}) == 2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "three"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", "b", "c", "d"]
    assert ax.get_ylim() == (0, 1)
    assert ax.get_ylabel() == "probability"


def test_draw_distributions_without_names_has_no_legend(ax, plots):
    plots.draw_distributions(ax, "abcd", D1, D2)
    assert ax.get_legend() is None


def test_draw_terms(ax, plots):
    """One divergence with its numbers, several beside each other with a legend."""
    terms = np.array([0.1216, -0.0893])
    plots.draw_terms(ax, "ab", {"KL": terms})
    assert [bar.get_height() for bar in ax.patches] == list(terms)
    assert [text.get_text() for text in ax.texts] == ["0.12", "\u22120.09"]
    assert ax.get_legend() is None
    assert ax.get_ylabel() == "term (nats)"
    ax.clear()
    plots.draw_terms(ax, "ab", {"KL": terms, "JS": terms / 2})
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches)
    assert all(end <= start + 1e-9 for (_, end), (start, _) in zip(edges, edges[1:])), "beside, not overlaid"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["KL", "JS"]


def test_draw_loss_curves(ax, plots):
    plots.draw_loss_curves(ax, {"seen": [2, 1, 0.5], "unseen": [2, 1.5, 1]})
    assert [line.get_ydata().tolist() for line in ax.lines] == [[2, 1, 0.5], [2, 1.5, 1]]
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle(), "told apart without colour"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["seen", "unseen"]
    assert (ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "epochs", "divergence (nats)")


def test_draw_descent(ax, plots):
    stages = {"before": [2, 3], "after": [0.2, 0.1]}
    plots.draw_descent(ax, ["x", "y"], stages)
    assert {line.get_label(): line.get_ydata().tolist() for line in ax.lines} == stages
    assert len({line.get_marker() for line in ax.lines}) == 2, "told apart without colour"
    assert [segment[:, 1].tolist() for segment in ax.collections[0].get_segments()] == [[0.2, 2], [0.1, 3]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before", "after"]


def test_draw_image_is_upright(ax, plots):
    plots.draw_image(ax, np.arange(6).reshape(2, 3))
    bottom, top = ax.get_ylim()
    assert bottom > top, "the first row of pixels belongs at the top"
    assert not ax.axison
