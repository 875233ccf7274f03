"""Draw the pictures of an evaluation report as PNG files.

Importing this module needs matplotlib, the extra `report`. Figures are drawn without pyplot, with
matplotlib's defaults whatever the user's matplotlibrc says, and encoded without metadata, so equal
evaluations give equal bytes. Pictures have `DPI` dots per inch and are meant to be shown at half
their size, sharp on a dense screen.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import style
from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from quickdraw_dist.evaluation.metrics import MISTAKES, Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

DPI = 200
NUMBERED_CLASSES = 40  # with up to this many, cells of the confusion matrix show numbers
PAIRS = 20

INK, MUTED, FAINT, EMPTY = "#1c2430", "#66707d", "#d3d9e0", "#eceff3"
RIGHT, ALMOST, WRONG = "#2f6fb5", "#b7d2ee", "#d9622b"
RIGHT_SCALE = LinearSegmentedColormap.from_list("right", ["#ffffff", "#8fb8e3", "#174a85"])
WRONG_SCALE = LinearSegmentedColormap.from_list("wrong", ["#ffffff", "#f6a66b", "#a83207"])
STYLE = {
    "text.parse_math": False,  # a class may be called '$1 or $2'
    "font.size": 8.0,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "axes.edgecolor": FAINT,
}


def draw_pictures(evaluation: Evaluation) -> dict[str, bytes]:
    """Return the report's PNG files by name; no 'pairs' or 'mistakes' where there are none."""
    plots = {"confusion": plot_confusion, "classes": plot_classes}
    if evaluation.confused_pairs(1):
        plots["pairs"] = plot_pairs
    if evaluation.mistakes:
        plots["mistakes"] = plot_mistakes
    return render({name: partial(plot, evaluation) for name, plot in plots.items()})


def render(plots: Mapping[str, Callable[[], Figure]]) -> dict[str, bytes]:
    """Draw figures in the style of all reports; return PNG files."""
    with style.context(["default", STYLE]), warnings.catch_warnings():
        # Characters that the bundled font lacks become boxes; the page's tables have the text.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ ")
        return {name: _encode(plot()) for name, plot in plots.items()}


def _encode(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(
        out,
        format="png",
        dpi=DPI,
        bbox_inches="tight",
        pad_inches=0.12,
        metadata={"Software": None},
    )
    return out.getvalue()


def short(name: str, limit: int = 26) -> str:
    """Return `name`, cut to `limit` characters with an ellipsis."""
    return name if len(name) <= limit else name[: limit - 1].rstrip() + "…"


def side_by_side(rates: NDArray[np.float64]) -> list[int]:
    """Return an order of the classes that puts those often confused next to each other.

    Average-linkage clustering: the two most similar groups are merged until one is left, each
    time oriented so that their most similar ends meet.

    Args:
        rates: (C, C), the share of a class's drawings (row) that was taken for another (column).
    """
    alike = rates + rates.T
    between = alike.copy()  # mean similarity of two groups, each at the index of its first class
    np.fill_diagonal(between, -1.0)
    groups = {label: [label] for label in range(len(rates))}
    while len(groups) > 1:
        a, b = sorted(divmod(int(between.argmax()), len(rates)))
        left, right = groups[a], groups.pop(b)
        turns = [(x, y) for x in (left, left[::-1]) for y in (right, right[::-1])]
        first, second = max(turns, key=lambda turn: alike[turn[0][-1], turn[1][0]])
        share = len(left) / (len(left) + len(right))
        between[a] = between[:, a] = share * between[a] + (1 - share) * between[b]
        between[a, a] = between[b] = between[:, b] = -1.0
        groups[a] = first + second
    return next(iter(groups.values()))


def plot_confusion(evaluation: Evaluation) -> Figure:
    """Plot the row-normalised confusion matrix: diagonal blue, mistakes orange on a root scale.

    Up to `NUMBERED_CLASSES` classes are in their own order with all names and percentages. More
    are in `side_by_side` order, which shows groups of similar classes as squares.
    """
    count = len(evaluation.classes)
    rates = evaluation.confusion / np.maximum(evaluation.support, 1)[:, None]
    dense = count > NUMBERED_CLASSES
    order = side_by_side(rates) if dense else list(range(count))
    rates = rates[np.ix_(order, order)]
    empty = np.asarray(evaluation.support[order] == 0)[:, None]
    diagonal = np.eye(count, dtype=bool)
    ceiling = max(float(np.where(diagonal, 0.0, rates).max()), 0.01)

    cell = min(max(2070 // count, 2), 300)  # whole dots, so that all cells have one size
    side = cell * count / DPI  # inches
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_facecolor(EMPTY)  # visible where a class has no drawings
    scales = (
        (np.ma.array(rates, mask=~diagonal | empty), RIGHT_SCALE, Normalize(0.0, 1.0)),
        (np.ma.array(rates, mask=diagonal | empty), WRONG_SCALE, PowerNorm(0.5, 0.0, ceiling)),
    )
    right, wrong = (
        axes.imshow(
            cells, cmap=scale, norm=norm, interpolation="nearest", interpolation_stage="rgba"
        )
        for cells, scale, norm in scales
    )
    _name_cells(axes, [short(evaluation.classes[label]) for label in order], cell, dense)
    if not dense:
        _number_cells(axes, rates, ceiling, cell)
    _colour_bar(figure, 0.0, side, "recognised", right, (0.0, 0.5, 1.0))
    _colour_bar(figure, 0.5, side, "taken for another", wrong, (0.0, ceiling / 4, ceiling))
    return figure


def _name_cells(axes: Axes, names: list[str], cell: int, dense: bool) -> None:
    """Write class names along both axes, as many as fit; `cell` is in dots."""
    size = min(9.0, max(6.5, 0.2 * cell * 72 / DPI + 2.5))
    step = math.ceil(size * DPI / 72 * 1.3 / cell)  # a line is 1.3 times as high as its font size
    ticks = range(0, len(names), step)
    axes.set_xticks(ticks, names[::step], rotation=90, fontsize=size)
    axes.set_yticks(ticks, names[::step], fontsize=size)
    axes.tick_params(length=2 if step > 1 else 0, color=MUTED, labelcolor=INK)
    note = " (similar classes side by side)" if dense else ""
    note += f" (one in {step} named)" if step > 1 else ""
    axes.set_xlabel(f"guess{note}", labelpad=8)
    axes.set_ylabel(f"true class{note}", labelpad=8)


def _number_cells(axes: Axes, rates: NDArray[np.float64], ceiling: float, cell: int) -> None:
    """Write whole percentages into the cells that round to at least one."""
    size = min(10.0, 3.0 + 0.19 * cell * 72 / DPI)
    for row, column in np.argwhere(rates >= 0.005).tolist():
        rate = rates[row, column]
        dark = rate > 0.55 if row == column else math.sqrt(rate / ceiling) > 0.7
        colour = "white" if dark else INK
        label = f"{100 * rate:.0f}"
        axes.text(column, row, label, size=size, color=colour, ha="center", va="center")


def _colour_bar(
    figure: Figure,
    left: float,
    side: float,
    title: str,
    image: AxesImage,
    ticks: tuple[float, ...],
) -> None:
    """Draw a colour scale above the matrix; `left` edge from 0 to 1, `side` in inches."""
    scale = figure.add_axes((left, 1 + 0.14 / side, 0.4, 0.09 / side))
    bar = figure.colorbar(image, cax=scale, orientation="horizontal")
    bar.outline.set_visible(False)
    scale.set_xticks(ticks, [_percent(tick) for tick in ticks])
    scale.tick_params(length=0, labelsize=7, labeltop=True, labelbottom=False, pad=1)
    scale.set_title(title, loc="left", size=8, color=MUTED, pad=13)


def _percent(share: float) -> str:
    """Format a share with two digits: 0.85%, 3.4%, 17%, 100%."""
    return f"{100 * share:.0f}%" if share >= 0.0995 else f"{100 * share:.2g}%"


def plot_classes(evaluation: Evaluation) -> Figure:
    """Plot a bar per class, hardest class first, in up to five columns.

    The dark bar is the share recognised at the first guess; the pale one adds the second and third
    guesses.
    """
    order = np.argsort(evaluation.class_accuracy, kind="stable")  # NaN (no drawings) comes last
    columns = min(math.ceil(len(order) / NUMBERED_CLASSES), 5)
    rows = math.ceil(len(order) / columns)
    single = columns == 1
    width, height = (6.6, 0.21 * rows) if single else (2.34 * columns, 0.17 * rows)  # inches
    figure = Figure(figsize=(width, height))
    for column in range(columns):
        axes = figure.add_axes((column / columns, 0.0, 1.0 if single else 0.36 / columns, 1.0))
        _class_bars(axes, evaluation, order[column * rows : (column + 1) * rows].tolist())
        axes.set(xlim=(0, 1), ylim=(rows - 0.4, -0.6))
        axes.set_axis_off()
    mean = f"│ mean {100 * evaluation.mean_class_accuracy:.1f}%"
    legend = (
        (0.0, "■ first guess", RIGHT),
        (0.95, "■ second or third", "#7fa9d6"),
        (2.2, mean, INK),
    )
    for inches, text, colour in legend:
        figure.text(inches / width, 1 + 0.1 / height, text, size=8, color=colour)
    return figure


def _class_bars(axes: Axes, evaluation: Evaluation, labels: list[int]) -> None:
    """Draw one column of `plot_classes`."""
    accuracy = evaluation.class_accuracy[labels]
    top3 = evaluation.top3_per_class[labels] / np.maximum(evaluation.support[labels], 1)
    rows = range(len(labels))
    axes.barh(rows, top3, 0.72, color=ALMOST)
    axes.barh(rows, np.nan_to_num(accuracy), 0.72, color=RIGHT)
    size = 7.5 if len(evaluation.classes) > NUMBERED_CLASSES else 9
    for row, label, share in zip(rows, labels, accuracy.tolist(), strict=True):
        name = short(evaluation.classes[label], 24)  # text, as ticks take three times as long
        axes.text(-0.02, row, name, size=size, ha="right", va="center")
        left, text = (0.0, "no drawings") if math.isnan(share) else (1.04, f"{100 * share:.1f}%")
        axes.text(left, row, text, size=7.5, va="center", color=MUTED)
    mean = evaluation.mean_class_accuracy
    axes.plot((mean, mean), (-0.5, len(labels) - 0.5), color=INK, linewidth=0.8)


def plot_pairs(evaluation: Evaluation) -> Figure:
    """Plot the `PAIRS` most confused pairs as bars of their drawings."""
    pairs = evaluation.confused_pairs(PAIRS)
    figure = Figure(figsize=(6.4, 0.26 * len(pairs)))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    drawings = [count for _, _, count in pairs]
    axes.barh(range(len(pairs)), drawings, 0.7, color=WRONG)
    for row, (true, _, count) in enumerate(pairs):
        share = 100 * count / evaluation.support[true]
        label = f" {count:,}  ({share:.1f}% of {short(evaluation.classes[true], 18)})"
        axes.text(count, row, label, size=8.5, va="center", color=MUTED)
    names = evaluation.classes
    axes.set_yticks(
        range(len(pairs)),
        [f"{short(names[true])} → {short(names[guess])}" for true, guess, _ in pairs],
    )
    axes.tick_params(length=0, labelsize=9)
    axes.set(xlim=(0, drawings[0]), ylim=(len(pairs) - 0.4, -0.6), xticks=[])
    axes.spines[:].set_visible(False)
    return figure


def plot_mistakes(evaluation: Evaluation) -> Figure:
    """Plot the first `MISTAKES` mistakes, dark on white, eight per row."""
    mistakes = evaluation.mistakes[:MISTAKES]
    columns = min(8, len(mistakes))
    rows = math.ceil(len(mistakes) / columns)
    tile = 1.3  # inches; a drawing is 1 unit wide in a cell of 1.15 x 1.5
    figure = Figure(figsize=(columns * 1.15 * tile, rows * 1.5 * tile))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    for index, mistake in enumerate(mistakes):
        x, y = index % columns * 1.15, index // columns * 1.5
        axes.imshow(
            255 - mistake.pixels,
            cmap="gray",
            vmin=0,
            vmax=255,
            extent=(x, x + 1, y + 1, y),
            interpolation="lanczos",
        )
        true, guess = evaluation.classes[mistake.label], evaluation.classes[mistake.predicted]
        sure = math.floor(100 * mistake.confidence + 1e-6)  # 99.7% must not read 100%
        axes.text(x, y + 1.1, short(true, 18), size=8.5, weight="bold", va="center")
        axes.text(x, y + 1.24, f"→ {short(guess, 14)} {sure}%", size=8, va="center", color=WRONG)
    axes.set(xlim=(-0.02, columns * 1.15 - 0.13), ylim=(rows * 1.5 - 0.15, -0.02), aspect="auto")
    axes.set_axis_off()
    return figure
