"""Draws figures/benchmark.png from the tables beside it: a dot per row and library, in multiples of gluon_kl's time."""

import csv
from pathlib import Path
from typing import NamedTuple

STYLE = Path(__file__).resolve().parent.parent / "tutorials" / "matplotlibrc"

class Mark(NamedTuple):
    shape: str
    colour: str
    offset: float  # from the line of its row, so that no mark hides another


# They differ in shape, in lightness and in colour (Okabe and Ito's).
MARKS = {
    "Gluon": Mark("s", "#D55E00", -0.05),
    "torch": Mark("o", "#0072B2", 0.15),
    "torch.compile": Mark("^", "#009E73", -0.23),
    "JAX": Mark("D", "#000000", -0.02),
}
DECADES = [10.0**k for k in range(-4, 5)]
TICKS = [factor * decade for decade in DECADES for factor in (1, 2, 5)]


def read(file):
    """The labels of a table's rows, and the multiples that were measured in each row."""
    if not file.exists():
        return []
    with open(file, newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return [(_label(row), {name: float(row[name]) for name in MARKS if row.get(name)}) for row in rows]


def _label(row):
    if "loss" not in row:
        return row["pred"].replace(", ", ",\n")
    name, _, form = row["loss"].partition(", ")
    if form == "step with Dense and Trainer":
        return f"Dense + {name}\n+ Trainer, {row['pred']}"
    if form.endswith("in a parent"):
        name, form = f"{name} in a parent", form[:-len("in a parent")].rstrip(", ")
    return f"{name}\n{form + ', ' if form else ''}{row['pred']}"


def _side_by_side(positions, widths, low, high):
    """The centres of labels of `widths`, near the rising `positions`, without overlap between labels or at the ends."""
    centres, edge = [], low
    for position, width in zip(positions, widths):
        centres.append(max(position, edge + width / 2))
        edge = centres[-1] + width / 2
    edge = high
    for i in reversed(range(len(centres))):
        centres[i] = min(centres[i], edge - widths[i] / 2)
        edge = centres[i] - widths[i] / 2
    return centres


def _name_the_marks(axes, times):
    """Write the names of the competitors above the marks of the first row."""
    from matplotlib.transforms import blended_transform_factory

    names = sorted(times, key=times.get)
    to_axes = axes.transScale + axes.transLimits
    marks = [to_axes.transform((times[name], 0))[0] for name in names]
    widths = [0.04 + 0.031 * len(name) for name in names]
    for name, centre in zip(names, _side_by_side(marks, widths, 0, 1)):
        y = MARKS[name].offset - 0.13
        axes.annotate(name, xy=(times[name], y), xytext=(centre, -0.75), color="#222222", fontsize=11,
                      textcoords=blended_transform_factory(axes.transAxes, axes.transData), ha="center", va="bottom",
                      arrowprops={"arrowstyle": "-", "color": MARKS[name].colour, "linewidth": 1.2,
                                  "shrinkA": 0, "shrinkB": 2})


def _draw_rows(axes, rows, limits):
    axes.set(xscale="log", xlim=limits, ylim=(len(rows) - 0.4, -1.4))
    axes.axvspan(limits[0], 1, color="#F1F1F1", zorder=0, linewidth=0)
    axes.plot([1, 1], [-0.55, len(rows) - 0.4], color="#333333", linewidth=1.2, zorder=1)
    for y, (_, times) in enumerate(rows):
        for name, ratio in times.items():
            mark = MARKS[name]
            axes.plot(ratio, y + mark.offset, marker=mark.shape, color=mark.colour, markersize=7.5,
                      markeredgecolor="white", markeredgewidth=0.8, linestyle="", zorder=3)
        ends = sorted(times, key=times.get)
        for name in ends[-1:]:
            _write_number(axes, times[name], y + MARKS[name].offset, 1)
        for name in ends[:1] if ends and times[ends[0]] < min(1, times[ends[-1]]) else []:
            _write_number(axes, times[name], y + MARKS[name].offset, -1)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    ticks = TICKS if limits[1] / limits[0] < 500 else DECADES
    present = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
    axes.set_xticks(present, [f"{tick:g}" for tick in present])
    axes.minorticks_off()
    _name_the_marks(axes, max((times for _, times in rows[:1]), key=len))


def _write_number(axes, ratio, y, side):
    axes.annotate(f"{ratio:.2g}", (ratio, y), xytext=(7 * side, 0), textcoords="offset points", fontsize=11,
                  color="#333333", va="center", ha="left" if side > 0 else "right")


def draw(folder):
    """Write benchmark.png into `folder`, from the tables there; return its path."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(title, rows) for title, rows in (
        ("The family", read(folder / "benchmark.csv")),
        ("KLDivLoss by size", read(folder / "benchmark_shapes.csv"))) if rows]
    ratios = [ratio for _, rows in panels for _, times in rows for ratio in times.values()] or [1]
    low, high = min(0.75, *ratios), max(1, *ratios)
    room = (high / low) ** 0.28  # for the numbers beside the outermost marks
    limits = low / room**1.5, high * room
    with plt.rc_context(fname=str(STYLE)):
        heights = [len(rows) + 1 for _, rows in panels]
        figure, axes = plt.subplots(len(panels), 1, squeeze=False, figsize=(5, 0.8 + 0.46 * sum(heights) + 0.8),
                                    gridspec_kw={"height_ratios": heights})
        for (title, rows), panel in zip(panels, axes[:, 0]):
            _draw_rows(panel, rows, limits)
            panel.set_title(title)
            panel.set_xlabel("times as long as gluon_kl")
        path = folder / "benchmark.png"
        figure.savefig(path, dpi=150, metadata={"Software": None})
        plt.close(figure)
    return path
