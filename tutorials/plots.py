"""Drawing for the tutorials: each function puts arrays on an axes and does nothing else."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator

STYLE = ["default", Path(__file__).resolve().with_name("matplotlibrc")]
FIGURES = Path(__file__).resolve().parent.parent / "figures"
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
