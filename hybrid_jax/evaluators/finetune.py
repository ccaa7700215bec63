"""End-to-end fine-tuning with labels (protocol finetune-v1).

A linear head on the default layer's mean features and all parameters below it are trained on the labels of the first
`eval.finetune.num_images` training images: AdamW, cosine decay after a warm-up, smaller rates for lower blocks
(`layer_decay`), the flips and mild crops of the run's own recipe. Each of `learning_rates` is a separate training; the
one with the best validation accuracy after its last step is kept (ties: the smaller rate), or the middle one without a
labelled validation split. The test split is read once. Floors:

- the same network from random initial values, trained the same way with the same choice of the rate, but with one rate
  for all blocks: smaller ones for lower blocks suit trained blocks only;
- the linear probe on the frozen default layer with the same labels: C by validation, no refit.

There is one seed: the standard error covers the test images alone. Not among the default evaluators, since it trains.

Dimensions: n images, D features, K classes.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hybrid_jax.data import augment, pipeline
from hybrid_jax.evaluators import linear_probe
from hybrid_jax.evaluators.features import FeatureStore, FloorCache, Skipped, standard_error, validation_row
from hybrid_jax.evaluators.linear_probe import moments, split_labels
from hybrid_jax.models import hybrid, tokens
from hybrid_jax.optim import is_decayed

SMALLEST_CROP = 0.6
CLIP_NORM = 1.0
_TOLD_EVERY = 30  # seconds
_STACKS = ("encoder", "decoder")
PROTOCOL = "finetune-v1"
RANDOM, PROBE = "from random values", "linear probe, same labels"


def light_recipe(config) -> augment.Recipe:
    """Returns the first view's recipe reduced to its flips and its crops, of at least 60 % of the area."""
    first, _ = augment.recipes_from_config(config.augment)
    return augment.Recipe(crop_min_area=max(first.crop_min_area, SMALLEST_CROP), flip=first.flip)


def rate_scales(trained: Any, layer: str, depth: int, decay: float) -> Any:
    """Returns the factor of each parameter's learning rate, a tree of floats or broadcastable arrays.

    Block i of the `depth` blocks below the layer gets decay^(depth + 1 - i), the embeddings decay^(depth + 1), head and
    final norm 1 (as in BEiT, arXiv 2106.08254, and MAE).

    Args:
      trained: the tree of trained parameters.
      layer: the layer that the head reads.
      depth: number of blocks up to it, in its stack.
      decay: in (0, 1].
    """
    stack = layer.partition("/")[0]

    def scale(path, leaf):
        names = [key.key for key in path]
        if names[0] == "head" or names[:2] == [stack, "norm"]:
            return 1.0
        if names[:2] != [stack, "transformer"]:
            return decay ** (depth + 1)
        if names[2] == "blocks":  # stacked along the first axis
            above = depth + 1 - np.arange(1, len(leaf) + 1)
            return (decay ** np.maximum(above, 0)).astype(np.float32).reshape(-1, *[1] * (leaf.ndim - 1))
        return decay ** max(depth + 1 - int(names[2].removeprefix("block_")), 0)

    return jax.tree_util.tree_map_with_path(scale, trained)


def _schedule(peak: float, total: int) -> np.ndarray:
    """(total,) float32 learning rates: linear warm-up over a tenth of the steps, then cosine decay to 0."""
    warmup = total // 10
    schedule = optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, total)
    return np.asarray(jax.vmap(schedule)(jnp.arange(total)), np.float32)


@dataclasses.dataclass
class FineTuner:
    """Trains networks of one architecture on the same images; functions are compiled once for all of them.

    Each process trains by itself, on one device.

    Attributes:
      config: the resolved config of the network.
      layer: the layer whose mean features the head reads.
      palette: the palette of palette tokens, else None.
      num_classes: K.
      settings: `config.eval.finetune` of the evaluation.
      seed: the seed of order and augmentation.
      log: takes a progress line every half minute.
      between: called after each epoch; may raise to end the training.
    """

    config: Any
    layer: str
    palette: tokens.Palette | None
    num_classes: int
    settings: Any
    seed: int
    log: Callable[[str], None]
    between: Callable[[], None]

    def __post_init__(self) -> None:
        """Builds the network and the optimizer."""
        self._module = hybrid.build_model(self.config)
        self._recipe = light_recipe(self.config)
        decayed = optax.add_decayed_weights(self.settings.weight_decay, mask=is_decayed)
        self._optimizer = optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.scale_by_adam(), decayed)

    def train(
        self,
        params: Any,
        features: np.ndarray,
        images: np.ndarray,
        targets: np.ndarray,
        rate: float,
        decay: float,
        name: str,
    ) -> tuple[dict, float]:
        """Trains all parameters that the layer depends on, and a head that starts at zero.

        Args:
          params: the initial parameters.
          features: (n, D) float32 features of these images under `params`; their mean and deviation standardise the
            head's input throughout.
          images: (n, H, W, C) uint8.
          targets: (n,) int32 in [0, K).
          rate: peak learning rate; linear warm-up over a tenth of the steps, then cosine decay to 0.
          decay: factor of the learning rate from one block to the one below.
          name: of the training in progress lines.

        Returns:
          Weights for `predict`, and the last epoch's mean loss in nats.
        """
        trained, fixed = self._split(params, features)
        scales = rate_scales(trained, self.layer, self._depth(), decay)
        batch = min(self.settings.batch_size, len(images))
        per_epoch = pipeline.steps_per_epoch(len(images), batch)
        total = self.settings.epochs * per_epoch
        rates = _schedule(rate, total)
        state, told, mean = self._optimizer.init(trained), time.monotonic(), 0.0
        for epoch in range(self.settings.epochs):
            losses: list[jax.Array] = []
            for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
                rows = pipeline.batch_indices(self.seed, step, len(images), batch)
                key = jax.random.fold_in(jax.random.key(self.seed), step)
                data = images[rows], targets[rows], key, rates[step]
                trained, state, loss = self._step(trained, state, fixed, scales, *data)
                # At most two steps in flight, so that batches do not pile up.
                jax.block_until_ready(losses[-1:])
                losses.append(loss)
            mean = float(np.mean(jax.device_get(losses)))
            self.between()
            if time.monotonic() - told > _TOLD_EVERY:
                told = time.monotonic()
                self.log(f"  finetune {name}: epoch {epoch + 1}/{self.settings.epochs}, loss {mean:.3f}")
        return {"trained": trained, "fixed": fixed}, mean

    def predict(self, weights: dict, images: np.ndarray) -> np.ndarray:
        """Returns (n,) predicted targets of (n, H, W, C) uint8 images, computed in batches of one shape."""
        size = min(self.config.eval.batch_size, len(images))
        found = []
        for start in range(0, len(images), size):
            rows = np.minimum(np.arange(start, start + size), len(images) - 1)
            best = self._best(weights["trained"], weights["fixed"], images[rows])
            found.append(np.asarray(best)[: len(images) - start])
        return np.concatenate(found)

    def _depth(self) -> int:
        blocks = self.config.model
        return blocks.encoder_layers if self.layer == "encoder" else int(self.layer.partition("/")[2])

    def _split(self, params: Any, features: np.ndarray) -> tuple[dict, dict]:
        """Copies the trained parameters; the rest, which the layer does not depend on, is passed through."""
        stacks = _STACKS[:1] if self.layer.startswith("encoder") else _STACKS
        mean, deviation = moments(features)
        # A copy: steps donate the memory of their arguments.
        trained = {name: jax.tree.map(jnp.array, params[name]) for name in stacks}
        kernel = jnp.zeros((features.shape[1], self.num_classes))
        trained["head"] = {"kernel": kernel, "bias": jnp.zeros(self.num_classes)}
        rest = {name: part for name, part in params.items() if name not in stacks}
        return trained, jax.device_put({"rest": rest, "mean": mean, "deviation": deviation, "palette": self.palette})

    def _logits(self, trained: dict, fixed: dict, images: jax.Array) -> jax.Array:
        """(B, H, W, C) uint8, or float32 on the 0..255 scale -> (B, K)."""
        params = fixed["rest"] | {name: part for name, part in trained.items() if name != "head"}
        found = hybrid.image_features(self._module, params, images, fixed["palette"])[self.layer]
        standard = (found - fixed["mean"]) / fixed["deviation"]
        return standard @ trained["head"]["kernel"] + trained["head"]["bias"]

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
    def _step(self, trained: dict, state, fixed: dict, scales, images, targets, key, rate):
        views = augment.augment(key, images, self._recipe)

        def loss_of(trained: dict) -> jax.Array:
            logits = self._logits(trained, fixed, views)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))

        loss, gradients = jax.value_and_grad(loss_of)(trained)
        updates, state = self._optimizer.update(gradients, state, trained)
        return jax.tree.map(lambda p, u, s: p - rate * s * u, trained, updates, scales), state, loss

    @functools.partial(jax.jit, static_argnums=0)
    def _best(self, trained: dict, fixed: dict, images: jax.Array) -> jax.Array:
        return jnp.argmax(self._logits(trained, fixed, images), axis=1)

    __hash__ = object.__hash__
    __eq__ = object.__eq__


Labels = dict[str, np.ndarray]


def evaluate(
    features: FeatureStore,
    config,
    floors: FloorCache,
    log: Callable[[str], None] = print,
    between: Callable[[], None] = lambda: None,
) -> list[dict]:
    """Runs the protocol.

    Args:
      features: store of a model and labelled data.
      config: resolved; `eval.finetune`, `eval.linear_probe` and `seed` are read.
      floors: cache of the accuracy from random values.
      log: takes a line per training.
      between: called after every epoch; may raise to end the evaluation.

    Returns:
      `finetune_accuracy` on the test split and, if it has labels, on the validation split.

    Raises:
      Skipped: no test split, no labels, or one class only.
    """
    model, data, settings = features.model, features.data, config.eval.finetune
    labels = split_labels(data)
    labels["train"] = labels["train"][: settings.num_images or None]
    classes = np.unique(labels["train"])
    if len(classes) < 2:
        raise Skipped("the labelled training images hold one class only")
    network = model.config, model.default_layer, jax.device_get(model.palette)
    tuner = FineTuner(*network, len(classes), settings, config.seed, log, between)
    hits, told = _tuned(tuner, model, data, labels, classes, settings.layer_decay, "from the checkpoint")

    def scratch() -> float:
        fresh = model.untrained(config.seed)
        return float(np.mean(_tuned(tuner, fresh, data, labels, classes, 1.0, RANDOM)[0]))

    key = {"protocol": PROTOCOL, "floor": RANDOM, "data": data.fingerprint, "seed": config.seed}
    key |= {"settings": settings.to_dict(), "model": model.config.model.to_dict(), "layer": tuner.layer}
    key |= {"augment": model.config.augment.to_dict(), "contrastive": model.has_contrastive}
    floor = {RANDOM: floors.get(scratch, **key), PROBE: _probed(features, labels, config.eval.linear_probe)}
    return _rows(hits, labels, floor, told | {"layer": tuner.layer}, settings)


def _rows(hits: np.ndarray, labels: Labels, floor: dict[str, float], told: dict, settings) -> list[dict]:
    row = {"metric": "finetune_accuracy", "protocol": PROTOCOL, "split": "test", "value": float(np.mean(hits))}
    row |= {"standard_error": standard_error(hits), "n": len(hits), "n_train": len(labels["train"]), "floor": floor}
    row |= told | {name: settings[name] for name in ("epochs", "batch_size", "layer_decay", "weight_decay")}
    accuracy = told["validation_accuracy"]
    if accuracy is None:
        return [row | {"note": "no labelled validation split: the rate is the middle of the grid"}]
    return [row, validation_row(row, accuracy, len(labels["validation"]), n_train=row["n_train"])]


def _tuned(
    tuner: FineTuner, model, data, labels: Labels, classes: np.ndarray, decay: float, name: str
) -> tuple[np.ndarray, dict]:
    """Trains at every rate; returns the chosen network's hits on test images, (n,) bool, and the choice."""
    count = len(labels["train"])
    images, targets = data.train.images[:count], np.searchsorted(classes, labels["train"]).astype(np.int32)
    params, begun = jax.device_get(model.params), model.embed(images)
    rates = sorted(float(rate) for rate in tuner.settings.learning_rates)
    chosen = "validation" in labels
    best, weights, rate_of = -1.0, {}, rates[0]
    for rate in rates if chosen else [linear_probe.middle(rates)]:
        start, label = time.monotonic(), f"{name}, learning rate {rate:g}"
        found, loss = tuner.train(params, begun, images, targets, rate, decay, label)
        score = 0.0
        if chosen:
            score = float(np.mean(classes[tuner.predict(found, data.validation.images)] == labels["validation"]))
        told = f", validation accuracy {score:.4f}" if chosen else ""
        tuner.log(f"  finetune {label}: loss {loss:.3f}{told}, {time.monotonic() - start:.0f} s")
        if score > best:
            best, weights, rate_of = score, found, rate
    hits = classes[tuner.predict(weights, data.test.images)] == labels["test"]
    told_of = {"learning_rate": rate_of, "learning_rates": rates, "validation_accuracy": best if chosen else None}
    return hits, told_of


def _probed(features: FeatureStore, labels: Labels, settings) -> float:
    """Test accuracy of the linear probe on the frozen default layer and the same labels."""
    parts = {"train": features.rows("train", np.arange(len(labels["train"])))}
    parts |= {split: features.default(split) for split in ("validation", "test") if split in labels}
    fitted = linear_probe.fit(parts, labels, linear_probe.grid_of(settings), settings.max_iterations)
    answers = fitted.held_out.classes[np.argmax(fitted.held_out_logits(parts["test"]), axis=1)]
    return float(np.mean(answers == labels["test"]))
