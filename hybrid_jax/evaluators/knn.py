"""k-nearest-neighbour classifier on frozen features (protocol knn-v1), as in DINO (Caron et al. 2021).

The k nearest training images by cosine similarity vote for the label of a test image, with weights
exp(cosine / temperature). Ties: of equal cosines the earlier training image is the nearer, of equal
votes the lower label wins.

Dimensions: n queries, m bank images, D features, K classes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.errors import reject
from hybrid_jax.evaluators.features import (
    FeatureStore,
    FloorCache,
    has_split,
    raw_pixels,
    raw_pixels_name,
    require_split,
    standard_error,
    validation_row,
)

PROTOCOL = "knn-v1"
QUERIES_AT_ONCE = 500
FEWEST_NEIGHBOURS = 20


def nearest(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds each query's nearest bank rows by cosine.

    Memory grows with 500 * m, not n * m.

    Args:
      queries: (n, D) features; a zero vector has cosine 0 with everything.
      bank: (m, D) features.
      k: neighbours, at most m.

    Returns:
      (n, k) float32 cosines, descending, and (n, k) int32 rows of the bank; of equal cosines the lower
      row comes first.
    """
    unit_bank = jax.device_put(_normalise(bank))
    # Searching at least 20 does not change the first k, and few calls need a shape of their own.
    found_k = min(len(bank), max(k, FEWEST_NEIGHBOURS))
    cosines, rows = [], []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        chunk = _normalise(queries[start : start + QUERIES_AT_ONCE])
        # Padding keeps one compiled shape for every chunk.
        padded = np.pad(chunk, ((0, QUERIES_AT_ONCE - len(chunk)), (0, 0)))
        found = jax.device_get(_top(padded, unit_bank, found_k))
        cosines.append(found[0][: len(chunk), :k])
        rows.append(found[1][: len(chunk), :k])
    return np.concatenate(cosines), np.concatenate(rows)


@functools.partial(jax.jit, static_argnums=2)
def _top(queries: jax.Array, bank: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    # Float32 products also on TPUs, whose default would round them to bfloat16.
    return jax.lax.top_k(jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST), k)


def _normalise(x: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return (x / np.maximum(length, 1e-12)).astype(np.float32)


def classify(queries: np.ndarray, bank: np.ndarray, labels: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """Returns the (n,) predicted labels of the queries.

    Args:
      queries: (n, D) features.
      bank: (m, D) features.
      labels: (m,) labels of the bank, any integers.
      k: neighbours, at most m.
      temperature: divides cosines in the votes.
    """
    classes, targets = np.unique(labels, return_inverse=True)
    cosines, rows = nearest(queries, bank, k)
    # A factor common to one query's votes changes nothing: with the nearest at 1, none can overflow.
    weights = np.exp((cosines - cosines[:, :1]).astype(np.float64) / temperature)
    cells = np.arange(len(queries))[:, None] * len(classes) + targets[rows]
    votes = np.bincount(cells.ravel(), weights.ravel(), minlength=len(queries) * len(classes))
    return classes[np.argmax(votes.reshape(-1, len(classes)), axis=1)]


def check(data, config) -> None:
    """Raises UserError if `eval.knn.k` asks for more neighbours than there are labelled training images."""
    k, count = config.eval.knn.k, len(data.train.images)
    if data.train.labels is not None and k > count:
        raise reject("eval.knn.k", k, f"must be at most the {count} training images")


def evaluate(features: FeatureStore, config, floors: FloorCache) -> list[dict]:
    """Runs the protocol on the default layer, with the training split as the bank.

    Args:
      features: store of a model and labelled data.
      config: resolved; `eval.knn` is read.
      floors: cache of the raw pixels' accuracy.

    Returns:
      One result, and one on the validation split if that has labels; `value` is top-1 accuracy in [0, 1].

    Raises:
      Skipped: no test split or no labels.
      UserError: more neighbours than training images.
    """
    data, settings = features.data, config.eval.knn
    train, test = (require_split(data, split, labels=True) for split in ("train", "test"))
    check(data, config)

    def hits(queries: np.ndarray, bank: np.ndarray, labels: np.ndarray = test.labels) -> np.ndarray:
        return classify(queries, bank, train.labels, settings.k, settings.temperature) == labels

    def floor() -> float:
        return float(np.mean(hits(raw_pixels(test.images), raw_pixels(train.images))))

    correct = hits(features.default("test"), features.default("train"))
    shared = {"protocol": PROTOCOL, "k": settings.k, "temperature": settings.temperature}
    name = raw_pixels_name(train.images)
    row = {
        "metric": "knn_accuracy",
        "value": float(np.mean(correct)),
        "standard_error": standard_error(correct),
        "n": len(test.images),
        "n_train": len(train.images),
        "split": "test",
        "layer": features.model.default_layer,
        "floor": {name: floors.get(floor, floor=name, data=data.fingerprint, **shared)},
        **shared,
    }
    if not has_split(data, "validation") or data.validation.labels is None:
        return [row]
    correct = hits(features.default("validation"), features.default("train"), data.validation.labels)
    told = {"standard_error": standard_error(correct), "n_train": len(train.images)}
    return [row, validation_row(row, float(np.mean(correct)), len(correct), **told)]
