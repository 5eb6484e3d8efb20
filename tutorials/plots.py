"""What the tutorials share: their options, and functions that draw arrays on an axes and do nothing else."""

import argparse
import sys
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.name == "tutorials"  # and not a folder that somebody downloaded

try:
    import gluon_kl  # noqa: F401, first: with new versions of Python and NumPy, MXNet cannot be imported before it
    import mxnet  # noqa: F401
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap
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
# Without the version of the software, the same picture gives the same file everywhere.
PNG = {"dpi": 150, "metadata": {"Software": None}}


def options(description, **sizes):
    """Give the sizes of a tutorial: their defaults, or what the command line of a script says.

    Each entry of `sizes` is a name with its default and what it means. A default that is a list takes several values.
    The site and a notebook run no script: they take the defaults.
    """
    parser = argparse.ArgumentParser(description=description)
    for name, (default, meaning) in sizes.items():
        several = isinstance(default, list)
        parser.add_argument("--" + name.replace("_", "-"), type=type(default[0] if several else default),
                            nargs="+" if several else None, default=default, help=f"{meaning} (default: %(default)s)")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder for the figures (default: %(default)s)")
    is_script = hasattr(sys.modules["__main__"], "__file__")
    chosen = parser.parse_args(None if is_script else [])
    chosen.figures.mkdir(parents=True, exist_ok=True)
    return chosen


# Blue, orange, a dull purple and a dark olive: every kind of colour vision can tell them apart. Each has a contrast of
# at least 3:1 on a white page, and on a dark page too, where the site turns light into dark. Letters are thin and need
# a darker orange. The sliders of the site have the same four colours.
FIRST, SECOND, THIRD, FOURTH = "#0072B2", "#D17200", "#A55A78", "#404C00"
LETTERS = {FIRST: FIRST, SECOND: "#A85B00", THIRD: THIRD, FOURTH: FOURTH}
GREY = "#767676"
SHADE = "#DF9C4D"  # the second colour, as strong as letters on it allow in the dark theme


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
    """Draw the terms of divergences, a dict from names to one term per category, as bars beside each other.

    The bars of a single divergence carry their numbers, so that its axis needs none.
    """
    places = np.arange(len(categories))
    width = 0.8 / len(divergences)
    for i, ((name, terms), color) in enumerate(zip(divergences.items(), (THIRD, FOURTH))):
        bars = ax.bar(places - 0.4 + (i + 0.5) * width, terms, width, color=color, label=name)
        if len(divergences) == 1:
            ax.bar_label(bars, [f"{term:.2f}".replace("-", "\u2212") for term in terms], padding=2, fontsize=11)
            ax.set_yticks([])
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
    """Draw how each category falls from stage to stage; `stages` is a dict from names to one value per category."""
    values = np.array(list(stages.values()))
    places = np.arange(len(categories))
    ax.vlines(places, values.min(axis=0), values.max(axis=0), color="#C8C8C8", linewidth=2, zorder=1)
    for name, row, marker, color, size in zip(stages, values, "oDs^", (GREY, SECOND, THIRD, FIRST), (11, 6, 10, 7)):
        hollow = {"markerfacecolor": "none", "markeredgewidth": 1.8} if size > 9 else {}  # shows a later mark inside
        ax.plot(places, row, marker, color=color, markersize=size, label=name, **hollow)
    ax.set_xticks(places)
    ax.set_xticklabels(categories)
    label_nats(ax)
    ax.set_ylim(values.min() / 1.5, values.max() * 6)  # room for marks and for the legend
    ax.legend(loc="upper center", ncol=2)


def label_nats(ax, subs=(1, 2, 5)):
    """Make the vertical axis one of divergences: logarithmic, since they fall by factors, with plain numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.set_ylabel("divergence (nats)")


def name_line(ax, x, y, name, color, **placing):
    """Write a line's name beside its point (x, y), to the right unless told otherwise, in the line's colour."""
    placing = {"xytext": (6, 0), "ha": "left", "va": "center", **placing}
    ax.annotate(name, (x, y), textcoords="offset points", color=LETTERS.get(color, color), fontsize=11,
                annotation_clip=False, **placing)


def draw_image(ax, pixels):
    """Show the image of a digit, dark ink on white."""
    ax.pcolormesh(pixels, cmap="Greys")  # imshow resamples, and each version of matplotlib does so differently
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.set_axis_off()


def draw_seeds(ax, places, groups):
    """Draw one line per entry of `groups`, names to arrays (places, seeds): the mean, with a dot for every seed."""
    positions = np.arange(len(places))
    shifts = np.linspace(-0.16, 0.16, len(groups))
    for (name, values), shift, color, marker in zip(groups.items(), shifts, (SECOND, FIRST, THIRD), "oDs"):
        across = np.repeat(positions[:, None] + shift, values.shape[1], axis=1)
        ax.plot(across.ravel(), values.ravel(), marker, color=color, markersize=5, alpha=0.45, markeredgewidth=0)
        ax.plot(positions + shift, values.mean(axis=1), f"-{marker}", color=color, markeredgecolor="white", label=name)
    ax.set_xticks(positions)
    ax.set_xticklabels(places)


def draw_bars(ax, names, values, form, colors=(SECOND, FIRST)):
    """Draw a horizontal bar per name, the first on top, with its value beside it; colours alternate."""
    places = np.arange(len(names))
    bars = ax.barh(places, list(values), color=[color for _, color in zip(places, cycle(colors))])
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
    ax.set_ylim(bottom=0)
    count_along(ax, "updates")
    ax.legend(loc="upper left")


def draw_bounded(axes, curves, bound):
    """Draw each entry of `curves`, names to arrays (runs, updates), on an axes of its own: every run, and the bound."""
    for ax, (name, values), color in zip(axes, curves.items(), (FIRST, SECOND, THIRD)):
        ax.set_title(name, color=LETTERS[color], fontsize=12)
        ax.plot(np.arange(1, values.shape[1] + 1), np.round(values.T, 5), color=color, linewidth=1)
        ax.axhline(bound, color="black", linewidth=1.5, linestyle="--")
        label_nats(ax, subs=(1,))
        count_along(ax, "updates")
    for ax in axes[1:]:
        ax.set_ylabel("")


def draw_roles(ax, workers):
    """Show what the processes of a distributed training send to each other."""
    box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": GREY}
    middle = (workers - 1) / 2
    ax.set_xlim(-0.5, workers - 0.5)
    ax.set_ylim(-0.4, 2.4)
    ax.set_axis_off()
    ax.text(middle, 2, "server\nadds the gradients,\nupdates parameters", ha="center", va="center", bbox=box)
    for i in range(workers):
        share = ", ".join(str(i + k * workers) for k in range(3))
        ax.text(i, 0, f"worker {i}\nimages {share}, …", ha="center", va="center", bbox=box)
        bottom, top = np.array([i, 0.45]), np.array([middle + (i - middle) * 0.6, 1.55])
        for shift, tail, head, color in ((-0.06, bottom, top, FIRST), (0.06, top, bottom, SECOND)):
            ax.annotate("", head + (shift, 0), tail + (shift, 0),
                        arrowprops={"arrowstyle": "->", "color": color, "linewidth": 2})
    ax.text(middle, 1.2, "gradients up", color=FIRST, ha="center", va="center")
    ax.text(middle, 0.8, "parameters down", color=LETTERS[SECOND], ha="center", va="center")


def draw_agreement(ax, alone, together):
    """Draw one run as a line, and as marks the runs that should agree with it: a dict from names to values."""
    epochs = np.arange(1, len(alone) + 1)
    ax.plot(epochs, np.round(alone, 3), color="black", linewidth=1.2, label="one process")
    for (name, curve), marker in zip(together.items(), cycle("o+xsd")):
        ax.plot(epochs, np.round(curve, 3), marker, markersize=9, mfc="none", markeredgewidth=1.5, label=name)
    count_along(ax, "epochs")
    label_nats(ax)
    ax.legend()


def list_names(ax):
    """Add a legend with every name once, also where several lines have the same name."""
    handles, names = ax.get_legend_handles_labels()
    once = dict(zip(names, handles))
    ax.legend(once.values(), once)


def count_along(ax, name):
    """Label the horizontal axis as a count of something, at whole numbers."""
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel(name)


def draw_level(ax, value, name, dashes, side="above"):
    """Draw a thin black line at one height as a reference; its name stands above, below or to the right of it."""
    ax.axhline(value, color="black", linewidth=1.2, linestyle=dashes)
    sides = {"above": (0, (2, 3), "bottom"), "below": (0, (2, -3), "top"), "right": (1, (3, 0), "center")}
    x, shift, place = sides[side]
    ax.annotate(name, (x, value), shift, xycoords=("axes fraction", "data"), textcoords="offset points", va=place,
                fontsize=11)


def draw_dimensions(ax, history, threshold):
    """Draw one line per latent dimension of `history` (epochs, dimensions), grey and dashed if it ends collapsed.

    A dimension is collapsed below `threshold`. The vertical axis is nearly logarithmic, but it includes 0: small values
    and values far above 1 can both be seen.
    """
    for path in history.T:
        active = path[-1] > threshold
        ax.plot(np.arange(len(path)), path, color=FIRST if active else GREY, linewidth=1.8 if active else 1.4,
                linestyle="-" if active else "--", label="active at the end" if active else "collapsed at the end")
    ax.set_yscale("function", functions=(lambda nats: np.log1p(10 * nats), lambda place: np.expm1(place) / 10))
    ax.set_yticks([0, 0.1, 0.3, 1, 3, 10])
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_ylabel("nats per image")


def draw_sheet(ax, images, edge=None):
    """Show a table of small images (rows, columns, height, width), dark ink on white.

    With `edge`, the axes are shown, and the centres of the outer images lie `edge` away from 0.
    """
    rows, columns, height, width = images.shape
    sheet = np.full((rows, columns, height + 2, width + 2), np.nan)
    sheet[:, :, 1:-1, 1:-1] = images
    sheet = sheet.swapaxes(1, 2).reshape(rows * (height + 2), -1)
    if edge is None:
        places = ()
        ax.invert_yaxis()
        ax.set_axis_off()
    else:
        ends = np.array([-edge, edge])
        places = (np.linspace(*ends * (1 + 1 / (columns - 1)), sheet.shape[1] + 1),
                  np.linspace(*-ends * (1 + 1 / (rows - 1)), sheet.shape[0] + 1))
        ax.grid(False)
    ax.pcolormesh(*places, sheet, cmap="Greys", vmin=0, vmax=1)
    ax.set_aspect("equal")


def draw_plane(ax, points, digits, edge):
    """Write the digit of each point (x, y) at its place on the plane."""
    colors = ["0072B2", "B37400", "00805D", "B8558C", "D55E00", "3389B8", "000000", "806318", "7A52A5", "707070"]
    for (x, y), digit in zip(points, digits):  # markers of letters differ with matplotlib's version, text does not
        ax.text(x, y, str(digit), color=f"#{colors[digit]}", fontsize=11, ha="center", va="center", clip_on=True,
                in_layout=False)
    ax.set(xlim=(-edge, edge), ylim=(-edge, edge), aspect="equal")
    ax.grid(True, axis="both")


def draw_fits(ax, places, target, fits):
    """Draw a distribution over ordered places as bars, and others over it as lines, one per entry of `fits`."""
    ax.bar(places, target, width=places[1] - places[0], color="#BFBFBF", label="target")
    for (name, probabilities), dashes, color in zip(fits.items(), ("-", (0, (3, 2)), ":"), (FIRST, SECOND, THIRD)):
        ax.plot(places, probabilities, linestyle=dashes, color=color, label=name)
    ax.yaxis.get_major_locator().set_params(nbins=3)
    ax.set_ylabel("probability")
    ax.margins(y=0.3)  # room for the legend
    ax.legend(loc="upper center", ncol=3, columnspacing=1.2)


def draw_dial(ax, shares, curves):
    """Draw one line of divergences per entry of `curves`, over shares from 0, KL(p ‖ q), to 1, KL(q ‖ p)."""
    for (name, values), dashes, color, place in zip(
            curves.items(), ("-", "--"), (FIRST, SECOND), ((0.86, (-4, 6), "right"), (0.12, (6, 4), "left"))):
        ax.plot(shares, values, dashes, color=color)
        ax.plot(shares[[0, -1]], values[[0, -1]], "o", color=color, markersize=7)
        share, shift, side = place
        name_line(ax, share, np.interp(share, shares, values), name, color, xytext=shift, ha=side, va="bottom")
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.set_xticklabels(["0\nKL(p ‖ q)", "0.25", "0.5", "0.75", "1\nKL(q ‖ p)"])
    label_nats(ax)
    ax.margins(x=0.04, y=0.08)


def draw_temperatures(axes, categories, softened):
    """Draw one distribution per axes, each entry of `softened` a title and its probabilities, the first on top."""
    places = np.arange(len(categories))
    for ax, (title, probabilities) in zip(axes, softened.items()):
        ax.set_title(title)
        bars = ax.barh(places, probabilities, color=FIRST)
        ax.bar_label(bars, [share_of(p) for p in probabilities], padding=3, fontsize=11)
        ax.set_xlim(0, 1.35)  # room for the number beside a bar
        ax.set_xticks([])
        ax.spines["bottom"].set_visible(False)
        ax.grid(False)
    axes[0].set_yticks(places)
    axes[0].set_yticklabels(categories)
    axes[0].set_ylim(len(categories) - 0.5, -0.5)


def share_of(probability):
    """Write a probability in per cent with two digits; below 0.1 % only that it is less."""
    if probability < 0.001:
        return "< 0.1%"
    return f"{probability:.0%}" if probability >= 0.1 else f"{probability:.1%}"


def draw_true_and_own(ax, steps, results):
    """Draw the true divergence of each entry of `results`, and dashed the value of its own loss where that differs.

    `results` is a dict from names to arrays (runs, steps, 2).
    """
    for (name, values), color in zip(results.items(), (FIRST, SECOND)):
        true, own = np.round(values.mean(axis=0), 4).T
        ax.plot(steps, true, color=color, label=name)
        if not np.array_equal(true, own):
            ax.plot(steps, own, "--", color=color, label=f"{name}:\nits own loss")
    label_nats(ax)
    ax.legend()


def draw_phrases(ax, phrases, values):
    """Write one phrase per line, each letter on a shade of its value, and hatch the rest of the line: padding.

    Returns the shades, for a colour bar.
    """
    longest = max(map(len, phrases))
    shades = np.full((len(phrases), longest), np.nan)
    for i, phrase in enumerate(phrases):
        shades[i, :len(phrase)] = values[i, :len(phrase)]
        for k, letter in enumerate(phrase):
            ax.text(k + 0.5, i + 0.5, letter, fontfamily="DejaVu Sans Mono", fontsize=11, ha="center",
                    va="center_baseline")
        ax.barh(i + 0.5, longest - len(phrase), 0.9, len(phrase), color="none", edgecolor="#B0B0B0", hatch="///",
                linewidth=0)
    drawn = ax.pcolormesh(np.round(shades, 3), cmap=LinearSegmentedColormap.from_list("shades", ["white", SHADE]),
                          vmin=0, edgecolor="white", linewidth=1)
    ax.text(longest, len(phrases) + 0.2, "hatched: padding", ha="right", va="top", fontsize=11)
    ax.invert_yaxis()
    ax.set_axis_off()
    return drawn


def draw_ranked(ax, groups):
    """Draw the values of each entry of `groups`, a dict from names to arrays, from the largest to the smallest."""
    for (name, values), marker, color in zip(groups.items(), "oD", (SECOND, FIRST)):
        ranked = np.round(np.sort(values)[::-1], 3)
        ax.plot(np.arange(1, len(ranked) + 1), ranked, marker, color=color, markersize=5)
        name_line(ax, len(ranked) / 2, ranked[len(ranked) // 2], name, color, xytext=(0, 8), va="bottom")
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter("{x:.0%}")
