"""The report's outlier detection: every score and kind of outlier, the spread of the scores, and the extreme images.

Dimensions: n images, H W C image.
"""

import numpy as np

from hybrid_jax.evaluators.features import FeatureStore
from hybrid_jax.evaluators.ood import KEPT, MEAN, MEAN_AT_CHANCE, Outcome
from hybrid_jax.report.page import Section, cell, figure, folded, grid, paragraph, table
from hybrid_jax.report.plots import COLOURS, figure_uri, image_uri, new_figure
from hybrid_jax.report.verdicts import SUBJECTS, best_floor, score_name
from hybrid_jax.utils.image_grid import laid_out, rgb

# Whose histograms are drawn, after the joint score.
_DRAWN = ("Mahalanobis", "likelihood", "likelihood less code length")
_BINS = 50


def condensed(results: list[dict]) -> list[dict]:
    """Returns the results with one row for all of outlier detection: the first score's mean AUROC and best floor."""
    others = [row for row in results if not row["metric"].startswith("ood_")]
    first = next((row for row in results if row["metric"] == "ood_auroc"), None)
    return others if first is None else [*others, first | {"floor": best_floor(first)}]


def sections(features: FeatureStore, results: list[dict]) -> list[Section]:
    """Returns the sections; none where outlier detection was not evaluated.

    Args:
      features: the store that the evaluator `ood` read.
      results: its rows, and any others.
    """
    outcome: Outcome | None = features.known(KEPT)
    rows = [row for row in results if row["metric"] == "ood_auroc"]
    if outcome is None or not rows:
        return []
    first = rows[0]["score"]
    drawn = [first, *(name for name in _DRAWN if name in outcome.inliers and name != first)]
    body = grid(figure(*_histogram(outcome, name)) for name in drawn)
    body += "<h3>Most and least anomalous images</h3>" + _extremes(outcome, first)
    every = _table(rows) + paragraph(_caption(rows, results), "note")
    return [(SUBJECTS["ood"], body + folded("AUROC of every score and kind of outlier", every))]


def _table(rows: list[dict]) -> str:
    """AUROC of every score and kind of outlier, those of a model first, the best of each column in bold."""
    pairs = {row["pair"]: row["pairs"] for row in rows}
    names = {MEAN: "mean", MEAN_AT_CHANCE: f"mean of {' and '.join(pairs.get(MEAN_AT_CHANCE, ()))}"}
    scores: dict[str, dict[str, tuple[float, float | None]]] = {}
    trivial: dict[str, dict[str, tuple[float, float | None]]] = {}
    for row in rows:
        scores.setdefault(row["score"], {})[row["pair"]] = row["value"], row.get("standard_error")
        for name, value in row["floor"].items():
            trivial.setdefault(name, {})[row["pair"]] = value, None
    best = {pair: max(f"{found[pair][0]:.3f}" for found in (scores | trivial).values()) for pair in pairs}

    def line(name: str, small: str, found: dict[str, tuple[float, float | None]]) -> list[str]:
        cells = [cell(score_name(name), small)]
        for pair, (value, error) in found.items():
            tone = "best" if f"{value:.3f}" == best[pair] else ""
            cells.append(cell(f"{value:.3f}", "" if error is None else f"± {error:.3f}", tone))
        return cells

    by_mean = lambda found: sorted(found.items(), key=lambda item: -item[1][MEAN][0])
    lines = [line(name, "", found) for name, found in by_mean(scores)]
    lines += [line(name, "floor", found) for name, found in by_mean(trivial)]
    return table(("score", *(names.get(pair, pair) for pair in pairs)), lines, stacked=False)


def _caption(rows: list[dict], results: list[dict]) -> str:
    first = rows[0]
    means = {
        row["metric"] + row["positive"]: row["value"]
        for row in results
        if row.get("score") == first["score"] and row.get("pair") == MEAN
    }
    return (
        "AUROC: how often a score ranks an outlier above a test image; .5 is chance, 1 perfect. Bold: the best of a "
        "column. ±: one standard error over images (DeLong et al. 1988; a test image and the outliers made from it "
        f"count as one). {first['n_id']:,} test images against at most as many outliers of each kind, protocol "
        f"{first['protocol']}. Shuffled and rotated images keep the mean, the deviation and the share of zeros of the "
        "image they are made from. The floors image mean, image deviation and share of zeros take the better direction "
        f"of each column. The {score_name(first['score'])} has a mean average precision of {means['ood_auprood']:.3f}; "
        f"at a threshold that finds 95% of the outliers it flags {means['ood_fpr95ood']:.1%} of the test images, and "
        f"at one that keeps 95% of the test images it misses {means['ood_fpr95id']:.1%} of the outliers."
    )


def _histogram(outcome: Outcome, name: str) -> tuple[str, str]:
    """Histograms of one score, one above the other: of the test images, then of every kind of outlier."""
    sets = {"test images": outcome.inliers[name], **{pair: found[name] for pair, found in outcome.pairs.items()}}
    low = min(float(np.quantile(values, 0.01)) for values in sets.values())
    # A kind of outlier that is very far away would leave a single bin to the others.
    medians = [float(np.median(values)) for values in sets.values()]
    usual = np.quantile(sets["test images"], [0.01, 0.99])
    high = min(max(np.quantile(values, 0.95) for values in sets.values()), usual[1] + 3 * np.ptp(usual))
    low = max(low, usual[0] - 3 * np.ptp(usual))
    edges = np.linspace(low, max(high, low + 1e-9), _BINS + 1)
    figure, axes = new_figure(5.2, 0.55 + 0.42 * len(sets))
    for i, values in enumerate(sets.values()):
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        base, colour = -i, COLOURS[i % len(COLOURS)]
        heights = base + 0.85 * counts / max(1, counts.max())
        axes.stairs(heights, edges, baseline=base, fill=True, color=colour, alpha=0.75)
        axes.plot([np.clip(medians[i], low, edges[-1])] * 2, [base, base + 0.85], color="#1c2530", linewidth=1)
    axes.set_yticks([-i for i in range(len(sets))], list(sets))
    axes.grid(visible=False, axis="y")
    name = score_name(name)
    axes.set_xlabel(f"{name} (higher = more anomalous)")
    caption = "distribution in each set, scaled to one height; line: median. The last bar holds the rest."
    return figure_uri(figure), f"{name[0].upper()}{name[1:]}: {caption}"


def _extremes(outcome: Outcome, name: str) -> str:
    """Two rows of images a set: the most and the least anomalous."""
    parts = []
    for pair, ends in outcome.shown.items():
        tiles = [rgb(images)[None] for images in ends if len(images)]
        parts.append(figure(image_uri(laid_out(np.concatenate(tiles), 1)), pair or "test images"))
    caption = (
        f"By the {score_name(name)}: above, the {len(outcome.shown[''][0])} images of each set with the highest "
        "scores; below, those with the lowest. Outliers with low scores are the ones that are missed first. Test "
        "images with high scores are worth a look: they may be unusual or mislabelled."
    )
    return grid(parts) + paragraph(caption, "caption")
