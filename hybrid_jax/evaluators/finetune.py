"""Fine-tuning end to end (protocol finetune-v1): is the network a good place to begin from, where there are labels?

A linear head is put on the default layer's mean features, and all parameters below it are trained with the labels of
the first `eval.finetune.num_images` training images: AdamW, cosine decay after a warm-up, smaller rates for lower
blocks (`layer_decay`), the flips and mild crops of the run's own recipe. Each of `learning_rates` is a training of its
own; the one with the best validation accuracy after its last step is kept (ties: the smaller), without a labelled
validation split the middle one. The test split is read once. Floors:

- the same network from random initial values, trained the same way with the same choice of the rate, but with one rate
  for all blocks: smaller ones for lower blocks suit what is learnt already, and would only hold it back;
- the linear probe on the frozen default layer with the same labels: C by validation, no refit.

One seed: the standard error is of the test images alone. Not among the default evaluators, because it trains.

Dimensions: n images, D features, K classes.
"""

import time
from collections.abc import Callable

import jax
import numpy as np

from hybrid_jax.evaluators import probe
from hybrid_jax.evaluators.features import FeatureStore, FloorCache, Skipped, standard_error, validation_row
from hybrid_jax.evaluators.finetuning import FineTuner
from hybrid_jax.evaluators.linear_probe import split_labels

PROTOCOL = "finetune-v1"
RANDOM, PROBE = "from random values", "linear probe, same labels"

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
      features: of a model and labelled data.
      config: resolved; `eval.finetune`, `eval.linear_probe` and `seed` are read.
      floors: where the accuracy from random values is kept.
      log: takes a line for every training.
      between: called after every epoch; may raise to end the evaluation.

    Returns:
      `finetune_accuracy` on the test split and, where it has labels, on the validation split.

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
    """Trains at every rate; returns (n,) bool, the chosen one's hits on test images, and what was chosen."""
    count = len(labels["train"])
    images, targets = data.train.images[:count], np.searchsorted(classes, labels["train"]).astype(np.int32)
    params, begun = jax.device_get(model.params), model.embed(images)
    rates = sorted(float(rate) for rate in tuner.settings.learning_rates)
    chosen = "validation" in labels
    best, weights, rate_of = -1.0, {}, rates[0]
    for rate in rates if chosen else [probe.middle(rates)]:
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
    fitted = probe.fit(parts, labels, probe.grid_of(settings), settings.max_iterations)
    answers = fitted.held_out.classes[np.argmax(fitted.held_out_logits(parts["test"]), axis=1)]
    return float(np.mean(answers == labels["test"]))
