"""Exponents of growth, fitted to measured sizes, beside those of the mathematics; as a Markdown table."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.growth_points import AXES, Axis

# A measured exponent this much above the mathematics' is marked.
EXCESS = 0.15
MIB = 2**20

Row = dict[str, Any]
Points = dict[int, Row]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A power law y = c x^exponent through points, by least squares of logarithms.

    Attributes:
      exponent: its slope.
      error: standard error of the slope; NaN for two points.
      local: slopes between neighbouring points, in order.
    """

    exponent: float
    error: float
    local: tuple[float, ...]


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Fits two or more points with different x; all values above 0."""
    u, v = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    spread = sum((a - mean_u) ** 2 for a in u)
    slope = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / spread
    left = sum((b - mean_v - slope * (a - mean_u)) ** 2 for a, b in zip(u, v, strict=True))
    error = math.sqrt(left / (len(u) - 2) / spread) if len(u) > 2 else math.nan
    pairs = itertools.pairwise(zip(u, v, strict=True))
    return Fit(slope, error, tuple((d - b) / (c - a) for (a, b), (c, d) in pairs))


def dearer(measured: Sequence[float], required: Sequence[float]) -> float:
    """Returns what a further unit of the mathematics' count costs between the last two sizes over that of the first.

    Above 1 something grows that the mathematics does not have. A part of fixed size, which bends exponents, cancels.
    NaN where the count stays as it is.
    """
    if 0 in (required[1] - required[0], required[-1] - required[-2]):
        return math.nan
    pairs = list(itertools.pairwise(zip(required, measured, strict=True)))
    costs = [(d - b) / (c - a) for (a, b), (c, d) in (pairs[0], pairs[-1])]
    return costs[-1] / costs[0] if costs[0] > 0 else math.nan


def points(rows: list[Row], axis: Axis) -> Points:
    """Returns {size: its row}, in rising order; of several passes the least disturbed time.

    Other work on the machine only ever adds to times, so the lowest of the passes' medians tells most. Peak RSS is the
    lowest too: that of a pass which found its compiled program.
    """
    lowest = ("seconds", "trace_seconds", "compile_seconds", "peak_rss")
    found: Points = {}
    for row in sorted((row for row in rows if row["axis"] == axis.name), key=lambda row: row["size"]):
        known = found.setdefault(row["size"], dict(row))
        for name in lowest:
            # A program that was found, not compiled, says nothing of compile time.
            if name in row and not (name == "compile_seconds" and row["cached"]):
                known[name] = min(known[name], row[name])
    return found


QUANTITIES: dict[str, tuple[Callable[[Row], float], Callable[[Row], float]]] = {
    "s/step": (lambda row: row["seconds"], lambda row: row["counts"]["operations"]),
    "peak bytes": (
        lambda row: row["temporaries"] + row["arguments"],
        lambda row: row["counts"]["temporaries"] + row["counts"]["arguments"],
    ),
    "temporaries": (lambda row: row["temporaries"], lambda row: row["counts"]["temporaries"]),
}


def table(rows: list[Row]) -> str:
    """Returns exponents of time and memory along every axis, each beside the mathematics' own.

    `a further unit` is `dearer`.
    """
    lines = [
        "| against | sizes | quantity | smallest to largest | exponent | between neighbours | mathematics "
        "| | a further unit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for axis in AXES:
        found = points(rows, axis)
        if len(found) < 2:
            continue
        for name, (measured, required) in QUANTITIES.items():
            lines.append(_line(axis, found, name, [(measured(row), required(row)) for row in found.values()]))
    return "\n".join(lines)


def _line(axis: Axis, found: Points, name: str, pairs: list[tuple[float, float]]) -> str:
    sizes, (measured, required) = list(found), zip(*pairs, strict=True)
    ours, theirs = fit(sizes, measured), fit(sizes, required).exponent
    unit_cost = dearer(measured, required)
    sign = "" if math.isnan(ours.error) else f" ± {ours.error:.2f}"
    unit = (lambda value: f"{value * 1e3:,.0f} ms") if name == "s/step" else (lambda value: f"{value / MIB:,.0f} MiB")
    return (
        f"| {axis.label} | {', '.join(map(str, sizes))} | {name} | {unit(pairs[0][0])} to {unit(pairs[-1][0])} "
        f"| {ours.exponent:.2f}{sign} | {min(ours.local):.2f} to {max(ours.local):.2f} | {theirs:.2f} "
        f"| {'**above**' if ours.exponent > theirs + EXCESS else ''} "
        f"| {'' if len(sizes) < 3 or math.isnan(unit_cost) else f'x {unit_cost:.2f}'} |"
    )


def compile_table(rows: list[Row]) -> str:
    """Returns seconds of tracing and compiling against depth, with `model.scan_layers` off and on."""
    off, on = (points(rows, axis) for axis in AXES if axis.compiles)
    lines = [
        "| encoder_layers | traced, compiled, s | with scan_layers, s | s/step, off | on |",
        "|---|---|---|---|---|",
    ]
    for depth in (size for size in off if size in on):
        cells = [f"{row['trace_seconds']:.1f}, {row['compile_seconds']:.1f}" for row in (off[depth], on[depth])]
        cells += [f"{row['seconds'] * 1e3:,.0f} ms" for row in (off[depth], on[depth])]
        lines.append(f"| {depth} | {' | '.join(cells)} |")
    shared = [size for size in off if size in on]
    if len(shared) > 1:
        slopes = [fit(shared, [part[size]["compile_seconds"] for size in shared]) for part in (off, on)]
        lines.append("| exponent of compiling | " + " | ".join(f"{slope.exponent:.2f}" for slope in slopes) + " | | |")
    return "\n".join(lines)
