"""The report's nearest neighbours and its map of the features.

Dimensions: n images, D features.
"""

import dataclasses
import html

import numpy as np

from hybrid_jax.evaluators.features import SPLITS, FeatureStore, has_split
from hybrid_jax.evaluators.knn import nearest
from hybrid_jax.report.page import Section, figure, paragraph
from hybrid_jax.report.plots import COLOURS, figure_uri, image_uri, new_figure
from hybrid_jax.utils.image_grid import resized

QUERIES, NEIGHBOURS = 8, 6
FEWEST_BANK_IMAGES = 2_000
MAP_POINTS = 2_000
OTHER = "#b8c0c9"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One image of the neighbours' table.

    Attributes:
      uri: the image as a PNG data URI.
      name: its class, empty without labels.
      tone: `same` or `other`, whether its class is the query's; empty for the query or without labels.
    """

    uri: str
    name: str
    tone: str


def sections(features: FeatureStore) -> list[Section]:
    """Returns the sections of the neighbours and of the map."""
    rows, caption = neighbours(features)
    lines = [
        f'<div class="neighbours">{"".join(thumbnail(*dataclasses.astuple(c)) for c in row)}</div>' for row in rows
    ]
    uri, map_caption, legend = feature_map(features)
    dots = "".join(f'<span><i style="background:{c}"></i>{html.escape(name)}</span>' for name, c in legend)
    return [
        ("Nearest neighbours", "".join(lines) + paragraph(caption, "caption")),
        ("Map of the features", f'<div class="legend">{dots}</div>{figure(uri, map_caption, beside=True)}'),
    ]


def thumbnail(uri: str, name: str, tone: str = "") -> str:
    """Returns a small image above its plain name, as HTML."""
    text = html.escape(name)
    return f'<figure class="thumb {tone}"><img src="{uri}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def neighbours(features: FeatureStore) -> tuple[list[list[Cell]], str]:
    """Finds the 6 nearest training images, by cosine of the default layer, of 8 evenly spaced images.

    Returns:
      A list of cells for every query, the query first; and a caption.
    """
    data, split = features.data, shown_split(features.data)
    pool, bank = getattr(data, split), features.at_least("train", FEWEST_BANK_IMAGES)
    # Where training images are the queries, each would be its own nearest neighbour.
    itself = split == "train"
    last = min(len(pool.images), len(bank)) - 1 if itself else len(pool.images) - 1
    chosen = np.unique(np.linspace(0, last, QUERIES).astype(int))
    _, found = nearest(features.rows(split, chosen), bank, min(NEIGHBOURS + itself, len(bank)))
    rows = []
    for query, row in zip(chosen, found, strict=True):
        others = [i for i in row if not (itself and i == query)][:NEIGHBOURS]
        rows.append([_cell(data, pool, query)] + [_cell(data, data.train, i, _label(pool, query)) for i in others])
    caption = (
        f"Left: images of the {split} split. Right: the nearest of {len(bank):,} training images, by cosine similarity "
        "of the default layer's features. Good neighbours share what the image shows, not only its brightness or "
        "outline."
    )
    return rows, caption + _agreement(rows, pool, chosen, data.train, len(bank))


def _agreement(rows: list[list[Cell]], pool, chosen: np.ndarray, train, bank_size: int) -> str:
    if pool.labels is None or train.labels is None:
        return ""
    tones = [cell.tone for row in rows for cell in row[1:]]
    shares = [np.mean(train.labels[:bank_size] == label) for label in pool.labels[chosen]]
    return (
        f" Green: the class of the query; red: another class. {tones.count('same')} of {len(tones)} neighbours have "
        f"the class of their query; of random images it would be about {np.mean(shares) * len(tones):.0f}."
    )


def _cell(data, split, index: int, query_label: int | None = None) -> Cell:
    label = _label(split, index)
    tone = "" if label is None or query_label is None else "same" if label == query_label else "other"
    name = "" if label is None else class_name(data, label)
    return Cell(image_uri(resized(split.images[index])), name, tone)


def _label(split, index: int) -> int | None:
    return None if split.labels is None else int(split.labels[index])


def class_name(data, label: int) -> str:
    """Returns the name of a class, its number where names are missing."""
    names = data.class_names or ()
    return str(names[label]) if 0 <= label < len(names) else str(label)


def shown_split(data) -> str:
    """Returns the split whose images are shown: test, else validation, else train."""
    return next(split for split in reversed(SPLITS) if has_split(data, split))


def feature_map(features: FeatureStore) -> tuple[str, str, list[tuple[str, str]]]:
    """Draws the two main directions of the features of at most 2,000 images.

    Returns:
      PNG data URI; caption; legend of (class name, colour) with at most ten classes.
    """
    data, split = features.data, shown_split(features.data)
    x = features.at_least(split, MAP_POINTS)[:MAP_POINTS]
    labels = getattr(data, split).labels
    # One image or one feature has one direction only: the other is flat.
    room = [(0, max(0, 2 - size)) for size in x.shape]
    left, scale, _ = np.linalg.svd(np.pad(x - x.mean(axis=0), room), full_matrices=False)
    points = left[: len(x), :2] * scale[:2]
    share = scale[:2] ** 2 / max(np.sum(scale**2), 1e-12)
    colours, legend = _class_colours(data, None if labels is None else labels[: len(x)], len(x))
    figure, axes = new_figure(5.8, 4.8)
    axes.scatter(*points.T, c=colours, s=7, linewidths=0)
    axes.set_xlabel(f"first principal component, {share[0]:.0%} of the variance")
    axes.set_ylabel(f"second principal component, {share[1]:.0%}")
    groups = "Groups (there are no labels to colour them by)" if labels is None else "Classes"
    caption = (
        f"The features of {len(x):,} images of the {split} split on their first two principal components; images with "
        f"similar features lie close together. {groups} that form separate clouds are easy to tell apart; those that "
        "overlap here may still be separate in other directions."
    )
    return figure_uri(figure), caption, legend


def _class_colours(data, labels: np.ndarray | None, n: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Colours of n points, and the legend; beyond the ten most frequent classes all are grey."""
    if labels is None:
        return [COLOURS[0]] * n, []
    classes, counts = np.unique(labels, return_counts=True)
    shown = sorted(classes[np.argsort(-counts, kind="stable")][: len(COLOURS)])
    colour_of = dict(zip(shown, COLOURS, strict=False))
    legend = [(class_name(data, int(label)), colour) for label, colour in colour_of.items()]
    if len(classes) > len(shown):
        legend.append(("all other classes", OTHER))
    return [colour_of.get(label, OTHER) for label in labels], legend
