"""Exact likelihood of the test split (protocol likelihood-v1).

The floor is an independent categorical distribution for every token position, counted on the training split with
add-one smoothing: a model that ignores all other tokens of the image.

Dimensions: n images, N patches, S tokens per patch, V vocabulary.
"""

import functools
import math
from collections.abc import Iterator

import jax
import numpy as np

from hybrid_jax.evaluators.features import (
    FeatureStore,
    FloorCache,
    Skipped,
    has_split,
    require_split,
    standard_error,
    validation_row,
)
from hybrid_jax.models import tokens as tokens_lib
from hybrid_jax.models.tokens import TokenSpec

PROTOCOL = "likelihood-v1"

_encode = functools.partial(jax.jit, static_argnums=1)(tokens_lib.encode)


def fit_histograms(images: np.ndarray, spec: TokenSpec, palette, batch_size: int) -> np.ndarray:
    """Counts tokens at every position.

    Args:
      images: (n, H, W, C) uint8.
      spec: how images become tokens.
      palette: the palette of palette tokens, else None.
      batch_size: number of images encoded at once.

    Returns:
      (N*S, V) float32 log-probabilities, nats: log((count + 1) / (n + V)).
    """
    positions, vocab = spec.num_patches * spec.tokens_per_patch, spec.vocab_size
    counts = np.zeros(positions * vocab, np.int64)
    for tokens in _token_batches(images, spec, palette, batch_size):
        cells = tokens + np.arange(positions) * vocab
        counts += np.bincount(cells.ravel(), minlength=len(counts))
    return np.log((counts.reshape(positions, vocab) + 1) / (len(images) + vocab)).astype(np.float32)


def histogram_log_prob(
    log_probs: np.ndarray, images: np.ndarray, spec: TokenSpec, palette, batch_size: int
) -> np.ndarray:
    """Returns the (n,) float64 log-likelihood, nats per image, under `fit_histograms`'s result."""
    positions = np.arange(len(log_probs))
    batches = _token_batches(images, spec, palette, batch_size)
    return np.concatenate([log_probs[positions, tokens].sum(axis=1, dtype=np.float64) for tokens in batches])


def _token_batches(images: np.ndarray, spec: TokenSpec, palette, batch_size: int) -> Iterator[np.ndarray]:
    """Yields (b, N*S) int32 tokens."""
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size]
        # Padding keeps one compiled shape for every chunk.
        padded = np.pad(chunk, [(0, batch_size - len(chunk)), (0, 0), (0, 0), (0, 0)])
        yield np.asarray(_encode(padded, spec, palette))[: len(chunk)].reshape(len(chunk), -1)


def unit_of(spec: TokenSpec) -> tuple[str, float]:
    """Returns the metric's name and the number of nats per image in one unit of it.

    Intensities: bits/dim = nats / (H*W*C * ln 2). Palette: nats per token.
    """
    size = spec.num_patches * spec.tokens_per_patch
    if spec.kind == "palette":
        return "nats_per_token", size
    return "bits_per_dim", size * math.log(2)


def _description(model, images: np.ndarray) -> dict:
    spec = model.spec
    if spec.kind == "palette":
        note = "lossy: scores the nearest palette colours, not the pixels, so it has no bits/dim"
        return {
            "token_kind": "palette",
            "palette_size": spec.vocab_size,
            "comparable_with_literature": False,
            "palette_psnr_db": tokens_lib.palette_psnr(images, spec, model.palette),
            "note": note,
        }
    exact = spec.vocab_size == 256
    row = {"token_kind": "intensity", "levels": spec.vocab_size, "comparable_with_literature": exact}
    if not exact:
        row["note"] = f"images quantised to {spec.vocab_size} levels; only 256 are comparable with the literature"
    return row


def evaluate(features: FeatureStore, config, floors: FloorCache) -> list[dict]:
    """Scores the test split, and as many training images to show overfitting.

    Args:
      features: store of a model with a likelihood; no features are extracted.
      config: resolved; `eval.likelihood` and `eval.batch_size` are read.
      floors: cache of the histogram's likelihood.

    Returns:
      One result, lower is better: `value` on the test split with its `standard_error`, `train_value` on
      the first `train_n` training images, `comparable_with_literature`, and for palette tokens
      `palette_psnr_db` on the same test images. Then one on the validation split, if there is one.

    Raises:
      Skipped: no likelihood, or no test split.
    """
    model, data, batch = features.model, features.data, config.eval.batch_size
    if not model.has_likelihood:
        raise Skipped("the checkpoint has no likelihood (objective.generative_weight = 0)")
    train, test = require_split(data, "train").images, require_split(data, "test").images
    test = test[: config.eval.likelihood.num_images or None]
    metric, unit = unit_of(model.spec)

    def floor() -> float:
        # On one device of this process: others may have the floor cached.
        palette = jax.device_put(jax.device_get(model.palette))
        fitted = fit_histograms(train, model.spec, palette, batch)
        return -float(np.mean(histogram_log_prob(fitted, test, model.spec, palette, batch))) / unit

    key = {"protocol": PROTOCOL, "data": data.fingerprint, "spec": repr(model.spec), "n": len(test)}
    if model.palette is not None:
        key["palette"] = model.palette.digest()
    values = -np.asarray(features.model.log_prob(test), np.float64) / unit
    known = [train[: len(test)]]
    if has_split(data, "validation"):
        known.append(data.validation.images[: config.eval.likelihood.num_images or None])
    # In one pass, so that no other shape is compiled.
    known_values = -np.asarray(features.model.log_prob(np.concatenate(known)), np.float64) / unit
    train_values, held_out = np.split(known_values, [len(known[0])])
    row = {
        "metric": metric,
        "value": float(values.mean()),
        "standard_error": standard_error(values),
        "n": len(test),
        "protocol": PROTOCOL,
        "split": "test",
        "train_value": float(train_values.mean()),
        "train_n": len(train_values),
        "floor": {"per-position histogram": floors.get(floor, **key)},
        **_description(model, test),
    }
    if not len(held_out):
        return [row]
    told = {"standard_error": standard_error(held_out)}
    return [row, validation_row(row, float(held_out.mean()), len(held_out), **told)]
