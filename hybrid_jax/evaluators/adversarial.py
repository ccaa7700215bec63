"""Adversarial accuracy of the linear probe over the frozen encoder (protocol adversarial-v1).

An attacker who knows the encoder and the probe changes every pixel of a test image by at most epsilon grey levels to
make the probe err. Attacked images hold whole grey levels in 0..255. Gradients pass through the quantiser (rounding,
and the bins of fewer than 256 levels) as if it were the identity.

- FGSM (Goodfellow et al. 2015, arXiv 1412.6572): one step of epsilon along the gradient's sign;
- PGD (Madry et al. 2018, arXiv 1706.06083): from a random point of the ball, steps of 2.5 epsilon / steps along the
  sign, each projected onto the ball. Of all iterates, the clean image and FGSM's, the one with the largest margin
  (largest wrong logit minus the correct one) is kept, so that PGD is never weaker than FGSM;
- noise: plus or minus epsilon at random, a change of the same size without an attacker.

The accuracy is an upper bound: a stronger attack may lower it. The floor is the probe on raw pixels under its own PGD.

Dimensions: B batch, n images, H W C image, D features, K classes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.evaluators import linear_probe
from hybrid_jax.evaluators.features import (
    PIXEL_SIDE,
    FeatureStore,
    FloorCache,
    Skipped,
    raw_pixels,
    raw_pixels_name,
    standard_error,
)
from hybrid_jax.models import hybrid, tokens

PROTOCOL = "adversarial-v1"
SEED = 0
IMAGES_AT_ONCE = 100

# Takes weights and (B, H, W, C) float32 images on the 0..255 scale; returns (B, K) logits.
Logits = Callable[[Any, jax.Array], jax.Array]


def soft_tokens(images: jax.Array, spec: tokens.TokenSpec) -> jax.Array:
    """(B, H, W, C) float32 images -> (B, N, S) float32 intensity tokens, whole numbers with the gradient of pixels."""
    exact = tokens.encode(images, spec).astype(jnp.float32)
    smooth = tokens.patchify(images, spec.patch_size) * (spec.vocab_size / 256)
    return exact + (smooth - jax.lax.stop_gradient(smooth))


def encoder_logits(config, layer: str) -> Logits:
    """Returns encoder and probe as one classifier; weights: the model's parameters, the probe's matrix and bias."""
    # Without a mesh: each process attacks by itself, on one device.
    module = hybrid.build_model(config)

    def logits(weights, images: jax.Array) -> jax.Array:
        params, matrix, bias = weights
        found = hybrid.token_features(module, params, soft_tokens(images, module.spec), None, hybrid.NORMED in layer)
        return jnp.matmul(found[layer], matrix, precision=jax.lax.Precision.HIGHEST) + bias

    return logits


def pixel_logits(weights, images: jax.Array) -> jax.Array:
    """The probe on `raw_pixels`; weights are its matrix and bias."""
    images = images + jax.lax.stop_gradient(jnp.round(images) - images)
    block = -(-max(images.shape[1:3]) // PIXEL_SIDE)
    if block > 1:
        beyond = ((0, 0), (0, -images.shape[1] % block), (0, -images.shape[2] % block), (0, 0))
        images = jnp.pad(images, beyond, mode="edge")
        b, height, width, c = images.shape
        images = images.reshape(b, height // block, block, width // block, block, c).mean(axis=(2, 4))
    flat = images.reshape(len(images), -1) / 255
    return jnp.matmul(flat, weights[0], precision=jax.lax.Precision.HIGHEST) + weights[1]


def folded(fitted: linear_probe.FittedProbe) -> tuple[np.ndarray, np.ndarray]:
    """Returns a probe's matrix (D, K) and bias (K,), float32, with its standardisation folded in."""
    matrix = fitted.classifier.weights / fitted.deviation[:, None]
    return matrix, fitted.classifier.bias - fitted.mean @ matrix


def margins(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """(B, K) logits, (B,) int targets -> (B,) largest wrong logit minus the correct one; below 0 = correct."""
    right = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return jnp.max(jnp.where(jax.nn.one_hot(targets, logits.shape[1], dtype=bool), -jnp.inf, logits), axis=1) - right


@functools.partial(jax.jit, static_argnames=("logits_of", "steps"))
def attack(
    logits_of: Logits, weights, images: jax.Array, targets: jax.Array, epsilon: jax.Array, first: int, steps: int
) -> dict[str, jax.Array]:
    """Attacks one batch.

    Args:
      logits_of: the classifier.
      weights: its first argument.
      images: (B, H, W, C) uint8.
      targets: (B,) int32, the columns of the labels in the logits.
      epsilon: () grey levels, a whole number.
      first: index of the first image, which seeds the random start and the noise.
      steps: number of PGD steps.

    Returns:
      `fgsm`, `pgd` and `noise`: (B, H, W, C) uint8, each pixel at most epsilon from `images`.
    """
    clean = images.astype(jnp.float32)
    low, high = jnp.maximum(clean - epsilon, 0), jnp.minimum(clean + epsilon, 255)

    def loss(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_of(weights, x)
        right = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)
        return -jnp.sum(right), margins(logits, targets)

    def moved(x: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
        gradient, margin = jax.grad(loss, has_aux=True)(x)
        return jnp.clip(x + size * jnp.sign(gradient), low, high), margin

    def better(found, x: jax.Array, margin: jax.Array):
        more = margin > found[1]
        return jnp.where(more[:, None, None, None], x, found[0]), jnp.where(more, margin, found[1])

    def step(_, state):
        x, found = state
        after, margin = moved(x, 2.5 * epsilon / steps)
        return after, better(found, x, margin)

    fgsm, margin = moved(clean, epsilon)
    found = better((clean, margin), fgsm, loss(fgsm)[1])
    start_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(SEED), first))
    start = low + jax.random.uniform(start_key, clean.shape) * (high - low)
    x, found = jax.lax.fori_loop(0, steps, step, (start, found))
    pgd, _ = better(found, x, loss(x)[1])
    shifted = jnp.clip(clean + epsilon * jax.random.rademacher(noise_key, clean.shape, jnp.float32), 0, 255)
    return {name: jnp.round(x).astype(jnp.uint8) for name, x in (("fgsm", fgsm), ("pgd", pgd), ("noise", shifted))}


def attacked(
    logits_of: Logits, weights, images: np.ndarray, targets: np.ndarray, epsilon: int, steps: int
) -> dict[str, np.ndarray]:
    """Returns `attack`'s images of (n, H, W, C) uint8 images, 100 at a time."""
    parts: list[dict[str, np.ndarray]] = []
    size = min(IMAGES_AT_ONCE, len(images))
    for start in range(0, len(images), size):
        # The last batch is filled with the first images, so that one shape is compiled.
        rows = np.arange(start, start + size) % len(images)
        found = attack(logits_of, weights, images[rows], targets[rows], np.float32(epsilon), start, steps)
        parts.append({name: np.asarray(x)[: len(images) - start] for name, x in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compilation(features: FeatureStore, num_images: int, num_classes: int, steps: int) -> Callable[[], object]:
    """Returns a function that compiles the attack on the encoder for these numbers of images, classes and steps."""
    model, like = features.model, jax.ShapeDtypeStruct
    size, width = min(IMAGES_AT_ONCE, num_images), model.config.model.width
    params = jax.tree.map(lambda x: like(x.shape, x.dtype), model.params)
    weights = params, like((width, num_classes), np.float32), like((num_classes,), np.float32)
    batch = like((size, *model.spec.image_shape), np.uint8), like((size,), np.int32), like((), np.float32)
    logits_of = _logits_of(features, model.default_layer)
    return lambda: attack.lower(logits_of, weights, *batch, 0, steps).compile()


def _logits_of(features: FeatureStore, layer: str) -> Logits:
    # The same function object every time, so that it is compiled once.
    return features.once(("logits", layer), lambda: encoder_logits(features.model.config, layer))


def evaluate(features: FeatureStore, config, floors: FloorCache) -> list[dict]:
    """Runs the protocol on the first test images and the default layer.

    Args:
      features: store of a model and labelled data.
      config: resolved; `eval.adversarial` and `eval.linear_probe` are read.
      floors: cache of the raw pixels' accuracies.

    Returns:
      One result per epsilon: `value` is the accuracy under PGD; `fgsm_value`, `noise_value` and `clean_value` are
      those on the same images under FGSM, under noise and unchanged.

    Raises:
      Skipped: tokens without a gradient, no test split, no labels, or one class only.
    """
    model, data, settings = features.model, features.data, config.eval.adversarial
    if model.spec.kind == "palette" or model.spec.tokens_per_patch == 1:
        raise Skipped("tokens are looked up in an embedding table, so pixels have no gradient")
    labels, layer = linear_probe.split_labels(data), linear_probe.default_layer(features)
    fitted = linear_probe.of_layers(features, labels, (layer,), config.eval.linear_probe)
    images, answers = (x[: settings.num_images or None] for x in (data.test.images, labels["test"]))
    if not np.isin(answers, fitted.classifier.classes).all():
        raise Skipped("the test split has a class that the training split lacks")
    targets = np.searchsorted(fitted.classifier.classes, answers).astype(np.int32)
    logits_of = _logits_of(features, layer)
    weights = jax.device_put((jax.device_get(model.params), *folded(fitted)))
    common = {"metric": "adversarial_accuracy", "protocol": PROTOCOL, "split": "test", "n": len(images)}
    clean = np.mean(fitted.predict(features.layers("test")[layer][: len(images)]) == answers)
    common |= {"layer": layer, "C": fitted.c, "steps": settings.steps, "clean_value": float(clean)}
    rows = []
    for epsilon in sorted(set(settings.epsilons)):
        found = attacked(logits_of, weights, images, targets, epsilon, settings.steps)
        # Evaluated like any other image, not by the attack's own copy of the encoder.
        hits = {name: fitted.predict(model.embed(x, layer)) == answers for name, x in found.items()}
        told = {f"{name}_value": float(np.mean(hits[name])) for name in ("fgsm", "noise")}
        floor = _pixels_floor(features, labels, images, targets, epsilon, config, floors)
        row = {**common, "variant": f"PGD, {epsilon} of 255", "epsilon": epsilon, "value": float(np.mean(hits["pgd"]))}
        rows.append({**row, "standard_error": standard_error(hits["pgd"]), **told, "floor": floor})
    return rows


def _pixels_floor(features, labels, images, targets, epsilon, config, floors: FloorCache) -> dict[str, float]:
    """The raw pixels' accuracy under their own PGD."""
    settings, steps = config.eval.linear_probe, config.eval.adversarial.steps

    def compute() -> float:
        fitted = linear_probe.of_pixels(features, labels, settings)
        found = attacked(pixel_logits, folded(fitted), images, targets, epsilon, steps)
        return float(np.mean(fitted.predict(raw_pixels(found["pgd"])) == fitted.classifier.classes[targets]))

    name = raw_pixels_name(images)
    key = {
        "protocol": PROTOCOL,
        "data": features.data.fingerprint,
        "c_values": linear_probe.grid_of(settings),
        "floor": name,
    }
    key |= {"max_iterations": settings.max_iterations, "n": len(images), "epsilon": epsilon, "steps": steps}
    return {name: floors.get(compute, **key)}
