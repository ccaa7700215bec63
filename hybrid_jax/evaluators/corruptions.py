"""The linear probe on corrupted test images (protocol corruptions-v2).

The probe of `linear-probe-v1` on the default layer is fitted to clean features, then tested on the first test images
under each of fifteen CIFAR-10-C-style corruptions at each severity (`hybrid_jax.corruptions`: not CIFAR-10-C, and the
frost is drawn, not photographed). Random numbers depend on the index of an image, not on `seed`, so that every model
sees the same images. The main result is the mean over corruptions and severities; the share retained divides it by the
clean accuracy on the same images. The floor is the probe on raw pixels of the same corrupted images. (`corruptions-v1`
had no frost: its means are not comparable.)

Dimensions: n images, D features.
"""

import functools
from collections.abc import Iterator

import numpy as np

from hybrid_jax import corruptions
from hybrid_jax.evaluators import linear_probe
from hybrid_jax.evaluators.features import FeatureStore, FloorCache, raw_pixels, raw_pixels_name, standard_error
from hybrid_jax.evaluators.logistic import side_by_side, workers

PROTOCOL = "corruptions-v2"
SEED = 0

Cell = tuple[str, int]


def evaluate(features: FeatureStore, config, floors: FloorCache) -> list[dict]:
    """Runs the protocol, with at most one corrupted copy of the images per core in memory.

    Args:
      features: store of a model and labelled data.
      config: resolved; `eval.corruptions` and `eval.linear_probe` are read.
      floors: cache of the raw pixels' accuracies.

    Returns:
      `corruption_accuracy`, the mean, with `accuracy` {corruption: {severity: accuracy}} and `floor_accuracy`, the same
      of raw pixels; and `corruption_share_retained`. Both hold `clean_value` and `floor_clean_value`.

    Raises:
      Skipped: no test split, no labels, or one class only.
    """
    data, settings = features.data, config.eval.linear_probe
    labels = linear_probe.split_labels(data)
    layer, count = linear_probe.default_layer(features), config.eval.corruptions.num_images or None
    fitted = linear_probe.of_layers(features, labels, (layer,), settings)
    answers = labels["test"][:count]
    severities = sorted(set(config.eval.corruptions.severities))
    key = {
        "protocol": PROTOCOL,
        "data": data.fingerprint,
        "c_values": linear_probe.grid_of(settings),
        "n": len(answers),
    }
    key |= {"max_iterations": settings.max_iterations, "corruption_seed": SEED, "floor": "raw pixels"}

    def pixels_accuracy(images: np.ndarray, kind: str, severity: int) -> float:
        found = lambda: linear_probe.of_pixels(features, labels, settings).predict(raw_pixels(images)) == answers
        return floors.get(lambda: float(np.mean(found())), corruption=kind, severity=severity, **key)

    clean = data.test.images[:count]
    clean_hits = fitted.predict(features.layers("test")[layer][:count]) == answers
    clean_floor = pixels_accuracy(clean, "none", 0)
    hits, floor = {}, {}
    for cell, images in cells(clean, severities):
        hits[cell] = fitted.predict(features.model.embed(images, layer)) == answers
        floor[cell] = pixels_accuracy(images, *cell)
    common = {"n": len(answers), "protocol": PROTOCOL, "split": "test", "layer": layer, "C": fitted.c}
    common |= {"severities": severities, "corruption_seed": SEED, "clean_value": float(np.mean(clean_hits))}
    common |= {"floor_clean_value": clean_floor}
    return _rows(hits, clean_hits, floor, raw_pixels_name(clean), common)


def cells(images: np.ndarray, severities: list[int]) -> Iterator[tuple[Cell, np.ndarray]]:
    """Yields ((corruption, severity), corrupted) of (n, H, W, C) uint8 images, for each corruption in `MAIN`."""
    asked = [(kind, severity) for kind in corruptions.MAIN for severity in severities]
    bytes_each = images.nbytes + corruptions.BYTES_AT_ONCE
    at_once = workers(len(asked), bytes_each)
    for start in range(0, len(asked), at_once):
        some = asked[start : start + at_once]
        tasks = [functools.partial(corruptions.corrupt, images, *cell, SEED) for cell in some]
        yield from zip(some, side_by_side(tasks, bytes_each), strict=True)


def _rows(
    hits: dict[Cell, np.ndarray], clean: np.ndarray, floor: dict[Cell, float], floor_name: str, common: dict
) -> list[dict]:
    each = np.mean(list(hits.values()), axis=0)
    mean, mean_floor = float(np.mean(each)), float(np.mean(list(floor.values())))
    accuracy = {
        "metric": "corruption_accuracy",
        "value": mean,
        "standard_error": standard_error(each),
        "floor": {floor_name: mean_floor},
        "accuracy": _table({cell: float(np.mean(found)) for cell, found in hits.items()}),
        "floor_accuracy": _table(floor),
    }
    rows = [{**accuracy, **common}]
    if clean.any() and common["floor_clean_value"]:
        share = mean / float(np.mean(clean))
        # Both means are over the same images: the ratio's error by the delta method.
        error = standard_error((each - share * clean) / np.mean(clean))
        retained = {"metric": "corruption_share_retained", "value": share, "standard_error": error}
        rows.append({**retained, "floor": {floor_name: mean_floor / common["floor_clean_value"]}, **common})
    return rows


def _table(values: dict[Cell, float]) -> dict[str, dict[str, float]]:
    """{(kind, severity): value} -> {kind: {severity: value}}, with string keys for JSON."""
    table: dict[str, dict[str, float]] = {}
    for (kind, severity), value in values.items():
        table.setdefault(kind, {})[str(severity)] = value
    return table
