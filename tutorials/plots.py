"""Drawing for the tutorials: each function puts arrays on an axes and does nothing else."""

import sys
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.name == "tutorials"  # and not a folder that somebody downloaded

try:
    import gluon_kl  # noqa: F401, first: it readies MXNet for this Python
    import mxnet  # noqa: F401
    import numpy as np
    from matplotlib.ticker import LogLocator

    for name in ("sklearn", "tqdm"):
        if not find_spec(name):
            raise ModuleNotFoundError(f"No module named {name!r}")
except ModuleNotFoundError as reason:
    advice = ("Run the tutorials with .venv/bin/python; if it is not there, `python3 tasks.py tutorial` makes it."
              if CHECKOUT else "Take one with gluon_kl, matplotlib, scikit-learn and tqdm (for the policies, gymnasium "
                               "too): gluon_kl's extra 'tutorial' installs them.")
    sys.exit(f"{reason}\nThis is Python {sys.version.split()[0]}, {sys.executable}. {advice}")

STYLE = ["default", HERE / "matplotlibrc"]
FIGURES = HERE.parent / "figures" if CHECKOUT else HERE
# With the version of the software left out, the same picture is the same file everywhere.
PNG = {"dpi": 150, "metadata": {"Software": None}}

FIRST, SECOND = "#0072B2", "#E69F00"  # blue and orange, told apart by every kind of colour vision


def draw_distributions(ax, categories, first, second, names=None):
    """Overlay two distributions as translucent bars on one probability axis from 0 to 1; a legend shows `names`."""
    places = np.arange(len(categories))
    pairs = list(zip((first, second), names or (None, None), (FIRST, SECOND)))
    for probabilities, name, color in pairs:
        ax.bar(places, probabilities, color=color, alpha=0.5, label=name)
    for probabilities, _, color in pairs:  # last, so that no bar hides the other's top
        ax.hlines(probabilities, places - 0.4, places + 0.4, color=color, linewidth=2.5)
    ax.set_xticks(places)
    ax.set_xticklabels(categories)
    ax.set_ylim(0, 1)
    ax.set_ylabel("probability")
    if names:
        ax.legend()


def draw_terms(ax, categories, divergences):
    """Draw the terms of divergences, a dict from names to one term per category, as bars beside each other."""
    places = np.arange(len(categories))
    width = 0.8 / len(divergences)
    for i, ((name, terms), color) in enumerate(zip(divergences.items(), ("#B8558C", "#009E73"))):
        bars = ax.bar(places - 0.4 + (i + 0.5) * width, terms, width, color=color, label=name)
        if len(divergences) == 1:
            ax.bar_label(bars, [f"{term:.2f}".replace("-", "\u2212") for term in terms], padding=2, fontsize=11)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_xticks(places)
    ax.set_xticklabels(categories)
    ax.margins(y=0.15)
    ax.set_ylabel("term (nats)")
    if len(divergences) > 1:
        ax.legend()


def draw_loss_curves(ax, curves):
    """Draw one line per entry of `curves`, a dict from names to one value per epoch, the first before training."""
    for (name, values), dashes in zip(curves.items(), ("-", "--", "-.", ":")):
        ax.plot(np.arange(len(values)), values, dashes, label=name)
    ax.set_xlabel("epochs")
    label_nats(ax)
    ax.legend()


def draw_descent(ax, categories, stages):
    """Draw each category's way down through `stages`, a dict from names to one value per category."""
    values = np.array(list(stages.values()))
    places = np.arange(len(categories))
    ax.vlines(places, values.min(axis=0), values.max(axis=0), color="#C8C8C8", linewidth=2, zorder=1)
    for name, row, marker, color in zip(stages, values, "oDs^", ("#8A8A8A", SECOND, "#56B4E9", FIRST)):
        ax.plot(places, row, marker, color=color, markeredgecolor="white", markersize=9, label=name)
    ax.set_xticks(places)
    ax.set_xticklabels(categories)
    label_nats(ax)
    ax.set_ylim(top=values.max() * 5)  # room for the legend
    ax.legend(loc="upper center", ncol=2)


def label_nats(ax):
    """Make the vertical axis one of divergences: logarithmic, since they fall by factors, with plain numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.set_ylabel("divergence (nats)")


def draw_scan(ax, pixels):
    """Show a scanned digit, dark ink on white."""
    ax.pcolormesh(pixels, cmap="Greys")  # imshow resamples, by a shade differently in each matplotlib
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.set_axis_off()


def draw_seeds(ax, places, groups):
    """Draw one line per entry of `groups`, names to arrays (places, seeds): the mean, with a dot for every seed."""
    positions = np.arange(len(places))
    shifts = np.linspace(-0.08, 0.08, len(groups))
    for (name, values), shift, color, marker in zip(groups.items(), shifts, (SECOND, FIRST, "#009E73"), "oDs"):
        across = np.repeat(positions[:, None] + shift, values.shape[1], axis=1)
        ax.plot(across.ravel(), values.ravel(), marker, color=color, markersize=5, alpha=0.45, markeredgewidth=0)
        ax.plot(positions + shift, values.mean(axis=1), f"-{marker}", color=color, markeredgecolor="white", label=name)
    ax.set_xticks(positions)
    ax.set_xticklabels(places)


def draw_bars(ax, names, values, form):
    """Draw a horizontal bar per name, the first on top, with its value beside it; colours alternate."""
    places = np.arange(len(names))
    bars = ax.barh(places, list(values), color=[SECOND, FIRST] * (len(names) // 2))
    ax.bar_label(bars, fmt=form, padding=3, fontsize=11)
    ax.set_yticks(places)
    ax.set_yticklabels(names)
    if not ax.yaxis_inverted():
        ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.grid(False)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)


def draw_training(ax, steps, after):
    """Draw a divergence per training step, and the held-out one by the number of steps taken, a dict."""
    ax.plot(np.arange(len(steps)), np.round(steps, 3), color=SECOND, linewidth=1.2, label="training step")
    ax.plot(list(after), np.round(list(after.values()), 3), "o", color=FIRST, label="held out")
    ax.set_xlabel("steps")
    label_nats(ax)
    ax.legend()


def draw_runs(ax, curves):
    """Draw mean and range over runs of each entry of `curves`, names to arrays (runs, updates)."""
    for (name, values), dashes in zip(curves.items(), ("-", "--", ":")):
        update = np.arange(1, values.shape[1] + 1)
        (line,) = ax.plot(update, np.round(values.mean(axis=0), 1), dashes, label=name)
        ax.fill_between(update, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.15, linewidth=0)
    count_along(ax, "updates")
    ax.legend()


def draw_bounded(ax, curves, bound):
    """Draw every run of each entry of `curves`, names to arrays (runs, updates), as a thin line; the bound dashed."""
    for values, color in zip(curves.values(), (FIRST, SECOND, "#009E73")):
        ax.plot(np.arange(1, values.shape[1] + 1), np.round(values.T, 5), color=color, linewidth=1, alpha=0.8)
    ax.axhline(bound, color="black", linewidth=1.5, linestyle="--")
    ax.set_yscale("log")
    count_along(ax, "updates")


def draw_roles(ax, workers):
    """Show which process of a distributed training sends what to which."""
    box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": "#8A8A8A"}
    middle = (workers - 1) / 2
    ax.set_xlim(-0.5, workers - 0.5)
    ax.set_ylim(-0.4, 2.4)
    ax.set_axis_off()
    ax.text(middle, 2, "server\nadds gradients, steps", ha="center", va="center", bbox=box)
    for i in range(workers):
        rows = ", ".join(str(i + k * workers) for k in range(3))
        ax.text(i, 0, f"worker {i}\nrows {rows}, …", ha="center", va="center", bbox=box)
        bottom, top = np.array([i, 0.45]), np.array([middle + (i - middle) * 0.6, 1.55])
        for shift, tail, head, color in ((-0.06, bottom, top, FIRST), (0.06, top, bottom, SECOND)):
            ax.annotate("", head + (shift, 0), tail + (shift, 0),
                        arrowprops={"arrowstyle": "->", "color": color, "linewidth": 2})
    ax.text(middle, 1.2, "gradients up", color=FIRST, ha="center", va="center")
    ax.text(middle, 0.8, "parameters down", color="#A66F00", ha="center", va="center")


def draw_agreement(ax, alone, together):
    """Draw one run as a line and, marked upon it, those that should agree with it: a dict from names to values."""
    epochs = np.arange(1, len(alone) + 1)
    ax.plot(epochs, np.round(alone, 3), color="black", linewidth=1.2, label="one process")
    for (name, curve), marker in zip(together.items(), cycle("o+xsd")):
        ax.plot(epochs, np.round(curve, 3), marker, markersize=9, mfc="none", markeredgewidth=1.5, label=name)
    count_along(ax, "epochs")
    label_nats(ax)
    ax.legend()


def count_along(ax, name):
    """Label the horizontal axis as a count of something, at whole numbers."""
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel(name)


def draw_level(ax, value, name, dashes):
    """Draw a thin black line at one height, to compare the others with."""
    ax.axhline(value, color="black", linewidth=1.2, linestyle=dashes, label=name)


def draw_dimensions(ax, history, awake):
    """Draw one line per latent dimension of `history` (epochs, dimensions), grey if it ends below `awake`."""
    for path in history.T:
        alive = path[-1] > awake
        ax.plot(np.arange(len(path)), path, color=FIRST if alive else "#8A8A8A", linewidth=1.8 if alive else 1.4,
                linestyle="-" if alive else "--")
    ax.set_ylim(bottom=0)
    ax.set_ylabel("nats per scan")


def draw_sheet(ax, images):
    """Show a table of small pictures (rows, columns, height, width), dark ink on white."""
    rows, columns, height, width = images.shape
    sheet = np.full((rows, columns, height + 2, width + 2), np.nan)
    sheet[:, :, 1:-1, 1:-1] = images
    ax.pcolormesh(sheet.swapaxes(1, 2).reshape(rows * (height + 2), -1), cmap="Greys", vmin=0, vmax=1)
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.set_axis_off()


def draw_plane(ax, points, digits, edge):
    """Put each point (x, y) on the plane as the digit that it stands for."""
    colors = ["0072B2", "B37400", "00805D", "B8558C", "D55E00", "3389B8", "000000", "806318", "7A52A5", "707070"]
    for (x, y), digit in zip(points, digits):  # markers of letters differ with matplotlib's version, text does not
        ax.text(x, y, str(digit), color=f"#{colors[digit]}", fontsize=9, ha="center", va="center", clip_on=True,
                in_layout=False)
    ax.set(xlim=(-edge, edge), ylim=(-edge, edge), aspect="equal")
    ax.grid(True, axis="both")
    ax.set_xlabel("first latent variable")
    ax.set_ylabel("second latent variable")


def draw_fits(ax, places, target, fits):
    """Draw a distribution over ordered places as bars, and others over it as lines, one per entry of `fits`."""
    ax.bar(places, target, width=places[1] - places[0], color="#BFBFBF", label="target")
    for (name, probabilities), dashes, color in zip(fits.items(), ("-", (0, (3, 2)), ":"), (FIRST, SECOND, "#009E73")):
        ax.plot(places, probabilities, linestyle=dashes, color=color, label=name)
    ax.set_yticks([])
    ax.grid(False)
    ax.margins(y=0.3)  # room for the legend
    ax.legend(loc="upper center", ncol=3)


def draw_dial(ax, shares, curves):
    """Draw one line of divergences per entry of `curves`, over shares from 0 to 1."""
    for (name, values), dashes, color in zip(curves.items(), ("-", "--"), (FIRST, SECOND)):
        ax.plot(shares, values, dashes, color=color, label=name)
        ax.plot(shares[[0, -1]], values[[0, -1]], "o", color=color, markersize=7, clip_on=False)
    ax.set_xlim(0, 1)
    label_nats(ax)
    ax.legend()


def draw_temperatures(axes, categories, softened):
    """Draw one distribution per axes, each entry of `softened` a title and its probabilities."""
    for ax, (title, probabilities) in zip(axes, softened.items()):
        ax.set_title(title)
        ax.bar(np.arange(len(categories)), probabilities, color=FIRST)
        ax.set_xticks(np.arange(len(categories)))
        ax.set_xticklabels(categories, rotation=90)
        ax.set_ylim(0, 1)
    axes[0].set_ylabel("probability")
