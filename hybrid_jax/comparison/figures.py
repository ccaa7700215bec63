"""Figures of a comparison: differences beside their margins, every run of every arm, outliers by kind."""

import statistics

from hybrid_jax.comparison.claims import LIKELIHOODS
from hybrid_jax.comparison.table import COLUMNS, values
from hybrid_jax.report.plots import COLOURS, DARK, GREY, figure_uri, new_figure

_FARTHEST = 3  # ranges of the runs: a floor further away would squeeze them into a dot
VERDICT_COLOURS = {"supported": COLOURS[2], "not supported": COLOURS[1], "undecided": COLOURS[0]}


def claims(rows: list[dict]) -> tuple[str, str]:
    """Draws the differences of one table, each in units of its margin.

    Args:
      rows: results of `claims.judge` for one arm and table.

    Returns:
      PNG data URI and caption.
    """
    drawn = [row for row in rows if row["estimate"] is not None]
    figure, axes = new_figure(5.8, 0.9 + 0.42 * len(drawn))
    limits = ("estimate", "lower", "upper")
    reach = [_in_margins(row, row[key]) for row in drawn for key in limits if row[key] is not None]
    low, high = min([-2.0, *reach]) - 0.3, max([1.0, *reach]) + 0.3
    axes.axvspan(low, -1, color="#f6dedc", zorder=0)
    axes.axvline(0, color=DARK, linewidth=1)
    axes.axvline(-1, color=COLOURS[1], linewidth=1.2, linestyle="--")
    for place, row in enumerate(drawn):
        colour = VERDICT_COLOURS[row["verdict_without_premise"]]
        ends = [edge if x is None else _in_margins(row, x) for x, edge in ((row["lower"], low), (row["upper"], high))]
        axes.plot(ends, [place, place], color=colour, linewidth=3, solid_capstyle="butt")
        filled = row["verdict"] == row["verdict_without_premise"]
        axes.plot(
            _in_margins(row, row["estimate"]), place, "o", color=colour, markerfacecolor=colour if filled else "white"
        )
    axes.set_yticks(range(len(drawn)), [row["claim"] for row in drawn])
    axes.invert_yaxis()
    axes.set(xlim=(low, high), xlabel="hybrid minus reference, in units of the margin")
    caption = (
        "Difference between the hybrid and the reference arm of each claim. Bars reach from the lower to the upper "
        "bound (95% each). Bar to the right of the dashed line (minus the margin): supported; to the left: not "
        "supported; across it: undecided. Open circle: premise not reproduced, so the claim is not decided."
    )
    return figure_uri(figure), caption


def _in_margins(row: dict, value: float) -> float:
    """A difference as a multiple of the margin; rows of the likelihood have the margin subtracted."""
    if row["metric"] not in LIKELIHOODS:
        return value / row["margin"]
    return -value / ((row["margin"] - 1) * row["reference_value"]) - 1


def runs(result: dict) -> list[tuple[str, str]]:
    """Draws every run: one figure per metric, one line per arm, one dot per seed.

    Returns:
      (PNG data URI, name of the metric) of each figure.
    """
    found = values(result["runs"])
    floors = {row["metric"]: row["value"] for row in result["floors"]}
    arms = list(dict.fromkeys(row["arm"] for row in result["runs"]))
    drawn = []
    for metric in (name for name in COLUMNS if name in floors):
        figure, axes = new_figure(4.7, 0.6 + 0.3 * len(arms))
        for place, arm in enumerate(arms):
            numbers = found.get((arm, metric), [])
            axes.plot(numbers, [place] * len(numbers), "o", color=COLOURS[place % len(COLOURS)], alpha=0.55)
            if numbers:
                axes.plot(statistics.mean(numbers), place, "|", color=DARK, markersize=13, markeredgewidth=1.8)
        every = [x for arm in arms for x in found.get((arm, metric), [])]
        away = min(abs(floors[metric] - x) for x in every) > _FARTHEST * (max(every) - min(every))
        if not away:
            axes.axvline(floors[metric], color=GREY, linewidth=3, zorder=1)
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=6)
        if metric not in LIKELIHOODS:
            axes.xaxis.set_major_formatter("{x:.1%}")
        drawn.append((figure_uri(figure), COLUMNS[metric] + (f" (floor: {floors[metric]:.3f})" if away else "")))
    return drawn


def pairs(result: dict) -> tuple[str, str]:
    """Draws the AUROC of each kind of outlier, mean over seeds; returns PNG data URI and caption."""
    rows = [row for row in result["runs"] if row["metric"] == "ood_auroc"]
    floor = next(row for row in result["floors"] if row["metric"] == "ood_auroc")
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    names = list(floor["pairs"])
    figure, axes = new_figure(5.8, 1.3 + 0.4 * len(names))
    axes.plot(list(floor["pairs"].values()), range(len(names)), "D", color=GREY, markersize=8, label="raw pixels")
    for colour, arm in zip(COLOURS, arms, strict=False):
        means = [statistics.mean(row["pairs"][name] for row in rows if row["arm"] == arm) for name in names]
        axes.plot(means, range(len(names)), "o", color=colour, label=arm, alpha=0.85)
    axes.axvline(0.5, color=DARK, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("AUROC of the Mahalanobis distance")
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    caption = (
        "AUROC by kind of outlier: how often an outlier scores higher than a test image; dashed: chance. Shuffled and "
        "rotated images and held-out classes cannot be detected by brightness or contrast."
    )
    return figure_uri(figure), caption


def trade_off(result: dict) -> tuple[str, str] | None:
    """Draws accuracy against likelihood of every arm that has both; None for fewer than three arms."""
    found = values(result["runs"])
    metric = next((name for name in LIKELIHOODS if any(m == name for _, m in found)), None)
    arms = [arm for arm in dict.fromkeys(row["arm"] for row in result["runs"]) if (arm, metric) in found]
    if metric is None or len(arms) < 3:
        return None
    figure, axes = new_figure(5.8, 3.6)
    for colour, arm in zip(COLOURS * 3, arms, strict=False):
        x, y = found[arm, metric], found[arm, "linear_probe_accuracy"]
        axes.plot(x, y, ".", color=colour, alpha=0.5)
        axes.plot(statistics.mean(x), statistics.mean(y), "o", color=colour)
        place = statistics.mean(x), statistics.mean(y)
        axes.annotate(arm, place, xytext=(5, 5), textcoords="offset points", fontsize=8, color=colour)
    best = [statistics.mean(found[arm, metric]) for arm in arms if arm == "generative"]
    for value in best:
        axes.axvline(1.02 * value, color=COLOURS[1], linestyle="--", linewidth=1.2)
    axes.yaxis.set_major_formatter("{x:.1%}")
    axes.set(xlabel=f"{COLUMNS[metric]} (left is better)", ylabel="linear probe")
    caption = "Trade-off between discrimination and likelihood: up and left is better."
    if best:
        caption += " Dashed: 2% above the generative arm, the margin of the claim."
    return figure_uri(figure), caption
