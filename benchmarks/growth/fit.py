"""Exponents of growth, fitted to measured sizes, beside those of the mathematics: tables, and a plot.

`Measured` is {task: what `growth.points` said of it in each pass}; the first compiles, later ones find the program.
"""

import itertools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks.common import MIB, table
from benchmarks.growth.points import AXES, Axis
from hybrid_jax.report.plots import COLOURS, GREY, styled

# A measured exponent this much above the mathematics' is marked.
EXCESS = 0.15

Row = dict[str, Any]
Measured = dict[str, list[Row]]


class Fit(NamedTuple):
    """A power law y = c x^exponent: the standard error is NaN for two points; `local` are slopes between neighbours."""

    exponent: float
    error: float
    local: list[float]


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Fits two or more points with different x by least squares of logarithms; all values above 0."""
    u, v = np.log(x), np.log(y)
    found = stats.linregress(u, v)
    return Fit(float(found.slope), float(found.stderr) if len(u) > 2 else math.nan, list(np.diff(v) / np.diff(u)))


def dearer(measured: Sequence[float], required: Sequence[float]) -> float:
    """Returns what a further unit of the mathematics' count costs between the last two sizes over that of the first.

    Above 1 something grows that the mathematics does not have. A part of fixed size, which bends exponents, cancels.
    NaN where the count stays as it is.
    """
    pairs = list(itertools.pairwise(zip(required, measured, strict=True)))
    ends = pairs[0], pairs[-1]
    if any(a == c for (a, _), (c, _) in ends):
        return math.nan
    first, last = ((d - b) / (c - a) for (a, b), (c, d) in ends)
    return last / first if first > 0 else math.nan


def points(found: Measured, axis: Axis) -> dict[int, Row]:
    """Returns {size: its row}: of several passes the least disturbed times, as other work only ever adds to them."""
    rows = {size: found[axis.task(size)] for size in axis.sizes if found.get(axis.task(size))}
    least = lambda passes: {name: min(row[name] for row in passes) for name in ("seconds", "trace_seconds")}
    return {size: passes[0] | least(passes) for size, passes in rows.items()}


_sum = lambda *names: lambda row: sum(row[name] for name in names)
# What is measured of a row, and what of its counts it is compared with.
QUANTITIES: dict[str, tuple[Callable[[Row], float], Callable[[Row], float]]] = {
    "s/step": (_sum("seconds"), _sum("operations")),
    "peak bytes": (_sum("temporaries", "arguments"),) * 2,
    "temporaries": (_sum("temporaries"),) * 2,
}


def curves(rows: dict[int, Row], quantity: str) -> tuple[list[float], list[float]]:
    """Returns what was measured at each size, and what is required."""
    measured, required = QUANTITIES[quantity]
    return [measured(row) for row in rows.values()], [required(row["counts"]) for row in rows.values()]


def exponents(found: Measured) -> str:
    """Returns exponents of time and memory along every axis, each beside the mathematics' own; see `dearer`."""
    axes = [(axis, rows) for axis in AXES.values() if len(rows := points(found, axis)) > 1]
    lines = [_line(axis.label, list(rows), name, *curves(rows, name)) for axis, rows in axes for name in QUANTITIES]
    columns = "against|sizes|quantity|smallest to largest|exponent|between neighbours|mathematics||a further unit"
    return table(columns, lines)


def _line(label: str, sizes: list[int], name: str, measured: list[float], required: list[float]) -> list[str]:
    ours, theirs, unit = fit(sizes, measured), fit(sizes, required).exponent, dearer(measured, required)
    tell = (lambda y: f"{y * 1e3:,.0f} ms") if name == "s/step" else (lambda y: f"{y / MIB:,.0f} MiB")
    return [
        label, ", ".join(map(str, sizes)), name, f"{tell(measured[0])} to {tell(measured[-1])}",
        f"{ours.exponent:.2f}" + ("" if math.isnan(ours.error) else f" ± {ours.error:.2f}"),
        f"{min(ours.local):.2f} to {max(ours.local):.2f}", f"{theirs:.2f}",
        "**above**" if ours.exponent > theirs + EXCESS else "",
        "" if len(sizes) < 3 or math.isnan(unit) else f"x {unit:.2f}",
    ]  # fmt: skip


def compilation(found: Measured) -> str:
    """Returns seconds of tracing and compiling against depth, with `model.scan_layers` off and on."""
    off, on = (points(found, AXES[name]) for name in ("depth", "depth_scan"))
    shared, lines = [size for size in off if size in on], []
    for depth in shared:
        both = off[depth], on[depth]
        cells = [f"{row['trace_seconds']:.1f}, {row['compile_seconds']:.1f}" for row in both]
        lines.append([depth, *cells, *(f"{row['seconds'] * 1e3:,.0f} ms" for row in both)])
    if len(shared) > 1:
        slopes = [fit(shared, [part[size]["compile_seconds"] for size in shared]).exponent for part in (off, on)]
        lines.append(["exponent of compiling", *(f"{slope:.2f}" for slope in slopes), "", ""])
    return table("encoder_layers|traced, compiled, s|with scan_layers, s|s/step, off|on", lines)


def draw(found: Measured, path: pathlib.Path) -> None:
    """Writes a PNG: for each axis a panel of milliseconds and below it one of MiB."""
    from matplotlib.figure import Figure  # not pyplot: no display and no global state
    from matplotlib.ticker import LogLocator

    axes = {name: rows for name, axis in AXES.items() if len(rows := points(found, axis)) > 1}
    across = min(len(axes), 5)
    down = -(-len(axes) // across)
    figure = Figure(figsize=(3.4 * across, 5.6 * down), dpi=80, layout="constrained")
    grid = figure.subplots(2 * down, across, squeeze=False)
    for panel in grid.flat:
        panel.set_visible(False)
    for place, (name, rows) in enumerate(axes.items()):
        # With more devices each holds less: the state, which all hold whole, would hide it.
        memory = "temporaries" if name == "devices" else "peak bytes"
        for i, (quantity, unit, label) in enumerate((("s/step", 1e-3, "a step, ms"), (memory, MIB, f"{memory}, MiB"))):
            panel, sizes = styled(grid[2 * (place // across) + i][place % across]), list(rows)
            ours, theirs = (np.array(values) / unit for values in curves(rows, quantity))
            required = f"required ({fit(sizes, theirs).exponent:.2f})"
            panel.plot(sizes, theirs * ours[-1] / theirs[-1], color=GREY, linewidth=4, label=required)
            measured = f"measured ({fit(sizes, ours).exponent:.2f})"
            panel.plot(sizes, ours, color=COLOURS[0], marker="o", markersize=4, linewidth=1.4, label=measured)
            panel.set(visible=True, xscale="log", yscale="log", xlabel=AXES[name].label, ylabel=label)
            panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
            panel.set_xticks([], minor=True)
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:,g}")
            panel.yaxis.set_minor_formatter("")
            panel.legend(frameon=False, fontsize=8)
    figure.suptitle("Measured (points, exponent in brackets) and required, scaled to the largest size (grey)")
    figure.savefig(path)
