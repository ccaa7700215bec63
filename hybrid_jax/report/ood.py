"""The report's outliers: how well each score tells them, how scores are spread, and which images are the extremes.

Dimensions: n images, H W C image.
"""

import html

import numpy as np

from hybrid_jax.evaluators.features import FeatureStore
from hybrid_jax.evaluators.ood import KEPT, MEAN, MEAN_AT_CHANCE, Outcome
from hybrid_jax.report.curves import COLOURS, figure_uri, new_figure
from hybrid_jax.report.images import image_uri
from hybrid_jax.report.page import captioned
from hybrid_jax.utils.image_grid import laid_out, rgb

# Whose histograms are drawn, after the joint score.
_DRAWN = ("Mahalanobis", "likelihood", "likelihood less code length")
_BINS = 50


def condensed(results: list[dict]) -> list[dict]:
    """Returns the results with one in the place of all on outliers: the first score's mean AUROC and best floor."""
    others = [row for row in results if not row["metric"].startswith("ood_")]
    first = next((row for row in results if row["metric"] == "ood_auroc"), None)
    if first is None:
        return others
    best = max(first["floor"], key=lambda name: first["floor"][name])
    return [*others, first | {"floor": {best: first["floor"][best]}}]


def sections(features: FeatureStore, results: list[dict]) -> list[tuple[str, str]]:
    """Returns (title, HTML) of each section; none where outliers were not looked for.

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
    figures = "".join(captioned(*_histogram(outcome, name)) for name in drawn)
    body = f'{_table(rows, results)}<div class="grid">{figures}</div>'
    return [("Outliers", body), ("The most and the least anomalous images", _extremes(outcome, first))]


def _table(rows: list[dict], results: list[dict]) -> str:
    """AUROC of every score and pair, those of a model first, the best of each column in bold."""
    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    table: dict[str, dict[str, float]] = {}
    errors: dict[str, dict[str, float | None]] = {}
    for row in rows:
        table.setdefault(row["score"], {})[row["pair"]] = row["value"]
        errors.setdefault(row["score"], {})[row["pair"]] = row.get("standard_error")
    trivial = {name: {row["pair"]: row["floor"][name] for row in rows} for name in rows[0]["floor"]}
    best = {pair: max(f"{scores[pair]:.3f}" for scores in (*table.values(), *trivial.values())) for pair in pairs}
    names = {MEAN: "mean", MEAN_AT_CHANCE: "mean where trivial statistics are at chance"}
    head = "".join(f"<th>{html.escape(names.get(text, text))}</th>" for text in ("score (AUROC)", *pairs))
    lines = [_line(name, scores, best, errors[name]) for name, scores in _by_mean(table)]
    lines.append(f'<tr><td colspan="{len(pairs) + 1}"><small>without the model</small></td></tr>')
    lines += [_line(name, scores, best, {}) for name, scores in _by_mean(trivial)]
    told = _caption(rows[0], results)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div><p class="caption note">{told}</p>'


def _by_mean(table: dict[str, dict[str, float]]) -> list[tuple[str, dict[str, float]]]:
    return sorted(table.items(), key=lambda item: -item[1][MEAN])


def _line(name: str, scores: dict[str, float], best: dict[str, str], errors: dict[str, float | None]) -> str:
    cells = [f"<td>{html.escape(name)}</td>"]
    for pair, value in scores.items():
        text = f"{value:.3f}"
        error = f"<small>± {errors[pair]:.3f}</small>" if errors.get(pair) is not None else ""
        cells.append(f'<td class="tight">{f"<b>{text}</b>" if text == best[pair] else text}{error}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _caption(first: dict, results: list[dict]) -> str:
    means = {
        row["metric"] + row["positive"]: row["value"]
        for row in results
        if row.get("score") == first["score"] and row.get("pair") == MEAN
    }
    others = (
        f"Of the {first['score']} the mean average precision is {means['ood_auprood']:.3f}; to find 95 % of the "
        f"outliers flags {means['ood_fpr95ood']:.1%} of the test images, and to keep 95 % of the test images misses "
        f"{means['ood_fpr95id']:.1%} of the outliers."
    )
    return html.escape(
        "How often a score puts an outlier above a test image: .5 is chance, 1 perfect; bold: the best of a column; ±: "
        "one standard error over images (DeLong et al. 1988; a test image and the outliers made of it count as one). "
        f"{first['n_id']:,} test images against at most as many outliers of each kind, protocol {first['protocol']}. "
        "Shuffled and rotated images have the mean, the deviation and the zeros of the images they were made of. Image "
        f"mean, deviation and share of zeros take the better direction of each column. {others}"
    )


def _histogram(outcome: Outcome, name: str) -> tuple[str, str]:
    """Histograms of one score, one above the other: of the test images, then of every kind of outlier."""
    sets = {"test images": outcome.inliers[name], **{pair: found[name] for pair, found in outcome.pairs.items()}}
    low = min(float(np.quantile(values, 0.01)) for values in sets.values())
    # One kind that lies very far out would leave the others a single bin.
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
    axes.set_xlabel(f"{name} (higher = more anomalous)")
    caption = f"{name}: its spread in each set, drawn to one height; line: median. The last bar holds all beyond it."
    return figure_uri(figure), caption


def _extremes(outcome: Outcome, name: str) -> str:
    """Two rows of images a set: the most and the least anomalous."""
    parts = []
    for pair, ends in outcome.shown.items():
        tiles = [rgb(images)[None] for images in ends if len(images)]
        told = f"{pair}: the most anomalous, and the least, which are missed first" if pair else "test images"
        parts.append(captioned(image_uri(laid_out(np.concatenate(tiles), 1)), told))
    caption = (
        f"The extremes by the {name}: of each set the {len(outcome.shown[''][0])} images with the highest scores "
        "above, and those with the lowest below. Test images that score high are worth a look: odd, or mislabelled."
    )
    return f'<p class="caption note">{html.escape(caption)}</p><div class="grid">{"".join(parts)}</div>'
