"""The curves of `benchmarks.growth`: time and memory against every size, log-log, beside the mathematics' slope."""

import math
import pathlib
from typing import Any

from benchmarks.growth_fit import QUANTITIES, fit, points
from benchmarks.growth_points import AXES, Axis
from hybrid_jax.report.plots import COLOURS, GREY, styled

MIB = 2**20
COLUMNS = 4
ROOM = 1.25  # beyond the outermost sizes, as a factor


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Writes a PNG: for each axis a panel of seconds and below it one of memory; compile times come last."""
    from matplotlib.figure import Figure  # not pyplot: no display and no global state

    groups: dict[str, list[Axis]] = {}
    for axis in AXES:
        if len(points(rows, axis)) > 1:
            groups.setdefault(axis.panel, []).append(axis)
    bands = math.ceil((len(groups) + 1) / COLUMNS)
    figure = Figure(figsize=(3.9 * COLUMNS, 5.6 * bands), dpi=100, layout="constrained")
    grid = figure.subplots(2 * bands, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for place, together in enumerate(groups.values()):
        column, row = place % COLUMNS, 2 * (place // COLUMNS)
        # With more devices each holds less: the state, which all hold whole, would hide it.
        memory = "temporaries" if together[0].name == "devices" else "peak bytes"
        _panel(grid[row][column], rows, together, "s/step")
        _panel(grid[row + 1][column], rows, together, memory)
    _compile_panel(grid[2 * (len(groups) // COLUMNS)][len(groups) % COLUMNS], rows)
    figure.suptitle(
        "Growth of the hybrid train step: measured (points, exponent in brackets) and what the mathematics requires, "
        "scaled to the largest size (grey, exponent in brackets)",
        fontsize=11,
    )
    figure.savefig(path)


def _panel(axes, rows: list[dict[str, Any]], together: list[Axis], quantity: str) -> None:
    measured, required = QUANTITIES[quantity]
    unit = 1e-3 if quantity == "s/step" else MIB
    for colour, axis in zip(COLOURS, together, strict=False):
        found = points(rows, axis)
        sizes, ours = list(found), [measured(row) / unit for row in found.values()]
        theirs = [required(row) for row in found.values()]
        scaled = [value * ours[-1] / theirs[-1] for value in theirs]
        axes.plot(sizes, scaled, color=GREY, linewidth=4, label=f"required ({fit(sizes, theirs).exponent:.2f})")
        label = f"{axis.curve} ({fit(sizes, ours).exponent:.2f})"
        axes.plot(sizes, ours, color=colour, marker="o", markersize=4, linewidth=1.4, label=label)
    memory = "temporaries of a device, MiB" if quantity == "temporaries" else "arguments and temporaries, MiB"
    _logarithmic(axes, together[0].label, "a step, ms" if quantity == "s/step" else memory, sizes)


def _compile_panel(axes, rows: list[dict[str, Any]]) -> None:
    sizes: list[int] = []
    for colour, axis in zip(COLOURS, (axis for axis in AXES if axis.compiles), strict=False):
        found = points(rows, axis)
        if len(found) > 1:
            sizes, spent = list(found), [row["compile_seconds"] for row in found.values()]
            label = f"{axis.curve} ({fit(sizes, spent).exponent:.2f})"
            axes.plot(sizes, spent, color=colour, marker="o", markersize=4, linewidth=1.4, label=label)
    if sizes:
        _logarithmic(axes, "encoder_layers, blocks", "compiling the step, s", sizes)


def _logarithmic(axes, across: str, up: str, sizes: list[int]) -> None:
    from matplotlib.ticker import LogLocator

    styled(axes).set_visible(True)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlim(sizes[0] / ROOM, sizes[-1] * ROOM)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("")
    axes.set(xlabel=across, ylabel=up)
    axes.legend(frameon=False, fontsize=8)
