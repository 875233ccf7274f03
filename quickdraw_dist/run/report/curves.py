"""Plot the curves of a run's report, for `charts.render`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from quickdraw_dist.base.telemetry.phases import cause_name
from quickdraw_dist.base.units import duration
from quickdraw_dist.evaluation.charts import FAINT, MUTED, RIGHT, WRONG
from quickdraw_dist.run.report.history import History

WIDTH, HEIGHT = 8.6, 2.3  # inches of a curve

Plot = Callable[[Axes, History], None]


def curves(history: History) -> dict[str, Callable[[], Figure]]:
    """Return the plots of a run by name; those without data are missing."""
    plots: dict[str, Callable[[], Figure]] = {}
    of_training: dict[str, Plot] = {
        "loss": _loss,
        "accuracy": _accuracy,
        "learning_rate": _learning_rate,
        "speed": _speed,
    }
    if history.of("train"):
        plots |= {name: partial(_curve, plot, history) for name, plot in of_training.items()}
    if any(history.goodput_seconds.values()):
        plots["goodput"] = partial(plot_goodput, history.goodput_seconds)
    return plots


def _curve(plot: Plot, history: History) -> Figure:
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    plot(axes, history)
    for index, epoch in enumerate(history.restarts):
        label = "restart" if index == 0 else None
        axes.axvline(epoch, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), label=label)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=6)
    axes.set_xlim(0, max(history.last["epoch"], 1e-9))
    axes.set_xlabel("epochs")
    axes.margins(y=0.08)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False)
    return figure


def _both(axes: Axes, history: History, train: str, validation: str) -> None:
    """Plot training as a line over log intervals, validation as points."""
    axes.plot(*history.curve("train", train), color=RIGHT, linewidth=1.2, label="training")
    points = history.curve("validation", validation)
    if points[0]:
        axes.plot(*points, color=WRONG, linewidth=1, marker="o", markersize=4, label="validation")


def _loss(axes: Axes, history: History) -> None:
    _both(axes, history, "loss", "loss")


def _accuracy(axes: Axes, history: History) -> None:
    _both(axes, history, "accuracy", "top1")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _learning_rate(axes: Axes, history: History) -> None:
    axes.plot(*history.curve("train", "learning_rate"), color=RIGHT, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _speed(axes: Axes, history: History) -> None:
    axes.plot(*history.curve("train", "drawings_per_second"), color=RIGHT, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def plot_goodput(seconds: dict[str, float]) -> Figure:
    """Plot a bar per cause, as long as the time it took."""
    total = sum(seconds.values())
    figure = Figure(figsize=(WIDTH, 0.28 * len(seconds)))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    colours = [RIGHT if cause == "train" else WRONG for cause in seconds]
    axes.barh(range(len(seconds)), list(seconds.values()), 0.68, color=colours)
    for row, spent in enumerate(seconds.values()):
        label = f" {spent / total:.1%}  {duration(spent)}"
        axes.text(spent, row, label, size=8.5, va="center", color=MUTED)
    axes.set_yticks(range(len(seconds)), [cause_name(cause) for cause in seconds])
    axes.tick_params(length=0, labelsize=9)
    axes.set(ylim=(len(seconds) - 0.4, -0.6), xticks=[])
    axes.spines[:].set_visible(False)
    return figure
