"""Linear probe: L2 multinomial logistic regression on frozen features (protocol linear-probe-v1).

Features are the mean over positions of a layer, standardised by the training split. C is chosen by
accuracy on the validation split (ties: the smaller C), the classifier is refitted on training and
validation images at that C, and the test split is read once. Three variants are reported:

- `default`: the checkpoint's default layer, fixed before any label is seen;
- `best_layer`: the layer with the best validation accuracy at the middle C, fitted on at most the first
  5,000 training images (ties: the earlier layer); its result holds these validation accuracies,
  from the first to the last layer, as `layer_validation_accuracy` {layer: accuracy}, with `layer_choice_C`,
  `layer_choice_n_train` and `layer_choice_n_validation`;
- `last_four`: the outputs of the last four encoder blocks concatenated (of the decoder if there is no encoder; of all
  blocks if there are fewer), before the final norm.

With `eval.linear_probe.normed` all three read the layers whose names end in `:normed`, and no others: a block's output
(or the stack's input, `decoder/0:normed`) after the norm that follows it, as in Image GPT (Chen et al. 2020).

Dimensions: n images, D features, K classes.
"""

import dataclasses
import functools

import numpy as np

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
from hybrid_jax.evaluators.logistic import LogisticRegression, fit_bytes, side_by_side, solver
from hybrid_jax.models.hybrid import NORMED

PROTOCOL = "linear-probe-v1"
LAYER_CHOICE_IMAGES = 5_000


@dataclasses.dataclass(frozen=True)
class FittedProbe:
    """A linear probe with the standardisation of its features.

    Attributes:
      mean: (D,) float32, mean of the training split's features.
      deviation: (D,) float32, their standard deviation.
      classifier: fitted to training and validation images.
      held_out: fitted to training images alone at the same C, so that validation images are held out.
      c: inverse penalty.
      n_train: number of images that `classifier` was fitted to.
      validation_accuracy: of `held_out`; None without a validation split.
    """

    mean: np.ndarray
    deviation: np.ndarray
    classifier: LogisticRegression
    held_out: LogisticRegression
    c: float
    n_train: int
    validation_accuracy: float | None

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(n, D) -> (n,) labels."""
        return self.classifier.predict(self._standardised(x))

    def logits(self, x: np.ndarray) -> np.ndarray:
        """(n, D) -> (n, K) float32, in the order of `classifier.classes`."""
        return self.classifier.logits(self._standardised(x))

    def held_out_logits(self, x: np.ndarray) -> np.ndarray:
        """(n, D) -> (n, K) float32 of `held_out`, in the order of its classes."""
        return self.held_out.logits(self._standardised(x))

    def _standardised(self, x: np.ndarray) -> np.ndarray:
        return ((x - self.mean) / self.deviation).astype(np.float32)


def fit(parts: dict[str, np.ndarray], labels: dict[str, np.ndarray], c_values, max_iterations: int) -> FittedProbe:
    """Fits the probe: C by validation accuracy (ties: the smaller), then a refit on both splits at that C.

    Args:
      parts: {split: (n, D)} for `train` and, if there is one, `validation`; others are not read.
      labels: {split: (n,)} for the same splits.
      c_values: inverse penalties; without a validation split the middle one is used.
      max_iterations: limit of the solver in each fit.

    Raises:
      Skipped: one class only.
    """
    mean, deviation = moments(parts["train"])
    seen = [split for split in ("train", "validation") if split in parts]
    x = {split: ((parts[split] - mean) / deviation).astype(np.float32) for split in seen}
    solve = solver(x["train"])
    tried = sorted(c_values) if "validation" in x else [middle(c_values)]
    fits = solve(x["train"], labels["train"], tried, max_iterations)
    if "validation" not in x:
        return FittedProbe(mean, deviation, fits[0], fits[0], float(tried[0]), len(x["train"]), None)
    scores = [np.mean(fitted.predict(x["validation"]) == labels["validation"]) for fitted in fits]
    best = int(np.argmax(scores))
    x_seen, y_seen = (np.concatenate([source[split] for split in seen]) for source in (x, labels))
    (last,) = solve(x_seen, y_seen, [tried[best]], max_iterations)
    return FittedProbe(mean, deviation, last, fits[best], float(tried[best]), len(y_seen), float(scores[best]))


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and deviation, (D,), of (n, D) features; a constant feature has deviation 1."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation[deviation < 1e-6] = 1
    return mean, deviation


def middle(c_values) -> float:
    """Returns the middle value, of two the lower one."""
    ordered = sorted(c_values)
    return ordered[(len(ordered) - 1) // 2]


def of_layers(features: FeatureStore, labels: dict[str, np.ndarray], layers, settings) -> FittedProbe:
    """Returns the probe on some layers concatenated, fitted once per store.

    Args:
      features: the store.
      labels: {split: (n,)} for `train` and, if there is one, `validation`.
      layers: names of the layers.
      settings: `config.eval.linear_probe`.

    Raises:
      Skipped: one class only.
    """
    part = lambda split: np.concatenate([features.layers(split)[name] for name in layers], axis=1)
    return _kept(features, labels, ("layers", *layers), part, settings)


def of_pixels(features: FeatureStore, labels: dict[str, np.ndarray], settings) -> FittedProbe:
    """Returns the probe on raw pixels, the floor; arguments as in `of_layers`."""
    part = lambda split: raw_pixels(getattr(features.data, split).images)
    return _kept(features, labels, ("raw pixels",), part, settings)


def _kept(features: FeatureStore, labels, name: tuple, part, settings) -> FittedProbe:
    grid, limit = grid_of(settings), settings.max_iterations
    seen = [split for split in labels if split != "test"]
    compute = lambda: fit({split: part(split) for split in seen}, labels, grid, limit)
    return features.once(("probe", name, grid, limit), compute)


def grid_of(settings) -> tuple[float, ...]:
    """Returns the inverse penalties of `config.eval.linear_probe`, ascending."""
    return tuple(sorted(float(c) for c in settings.c_values))


def standardise(parts: dict[str, np.ndarray], reference: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns {split: (n, D) float32}, shifted and scaled by the mean and deviation of a (m, D) reference.

    The reference is `train` by default. Features that are constant in it are only shifted.
    """
    mean, deviation = moments(parts["train"] if reference is None else reference)
    return {split: ((x - mean) / deviation).astype(np.float32) for split, x in parts.items()}


def probe(parts: dict[str, np.ndarray], labels: dict[str, np.ndarray], c_values, max_iterations: int) -> dict:
    """Applies the protocol to one set of features.

    Args:
      parts: {split: (n, D)} for `train`, `test` and, if there is one, `validation`.
      labels: {split: (n,)} for the same splits.
      c_values: inverse penalties; without a validation split the middle one is used.
      max_iterations: limit of the solver in each fit.

    Returns:
      `value` (test accuracy), its `standard_error`, `n`, `n_train` (images of the last fit), `C`,
      `validation_accuracy` (None without that split), `iterations`, `converged`.
    """
    return _measured(fit(parts, labels, c_values, max_iterations), parts["test"], labels["test"])


def _measured(fitted: FittedProbe, x: np.ndarray, labels: np.ndarray) -> dict:
    """Returns the result of `probe` for a fitted probe, (n, D) features and (n,) labels of the test split."""
    hits = fitted.predict(x) == labels
    return {
        "value": float(np.mean(hits)),
        "standard_error": standard_error(hits),
        "n": len(hits),
        "n_train": fitted.n_train,
        "C": fitted.c,
        "validation_accuracy": fitted.validation_accuracy,
        "iterations": fitted.classifier.iterations,
        "converged": fitted.classifier.converged,
    }


def layer_scores(
    features: FeatureStore, labels: dict[str, np.ndarray], c: float, max_iterations: int
) -> dict[str, float]:
    """Returns {layer: validation accuracy of its probe}, by which the best layer is chosen."""
    names = candidates(features)
    scores = choice_scores(features, labels, [(name,) for name in names], c, max_iterations)
    return {name: scores[name,] for name in names}


def choice_scores(
    features: FeatureStore,
    labels: dict[str, np.ndarray],
    options: list[tuple[str, ...]],
    c: float,
    max_iterations: int,
) -> dict[tuple[str, ...], float]:
    """Returns {layers: validation accuracy of the probe on them concatenated, from at most 5,000 training images}."""
    y = labels["train"][:LAYER_CHOICE_IMAGES]
    known, held_out = features.layers("train"), features.layers("validation")

    def score(layers: tuple[str, ...]) -> float:
        parts = {
            "train": np.concatenate([known[name][:LAYER_CHOICE_IMAGES] for name in layers], axis=1),
            "validation": np.concatenate([held_out[name] for name in layers], axis=1),
        }
        x = standardise(parts)
        (fitted,) = solver(x["train"])(x["train"], y, [c], max_iterations)
        return float(np.mean(fitted.predict(x["validation"]) == labels["validation"]))

    width = max(sum(known[name].shape[1] for name in layers) for layers in options)
    bytes_each = fit_bytes(y, y) + 4 * width * (len(y) + len(labels["validation"]))
    found = side_by_side([functools.partial(score, layers) for layers in options], bytes_each)
    return dict(zip(options, found, strict=True))


def candidates(features: FeatureStore) -> list[str]:
    """Returns the layers among which the best is chosen: the normed ones if the store has them, else all."""
    return [name for name in features.layers("train") if name.endswith(NORMED) == features.normed]


def normed_name(layer: str, names: list[str]) -> str:
    """Returns the one of the normed layers `names` that reads the same block as `layer`; of `encoder` the last."""
    return [name for name in names if name.startswith((f"{layer}{NORMED}", f"{layer}/"))][-1]


def default_layer(features: FeatureStore) -> str:
    """Returns the layer of the variant `default`."""
    name = features.model.default_layer
    return normed_name(name, candidates(features)) if features.normed else name


def last_four(names) -> list[str]:
    """Returns the last four blocks of the encoder, or of the decoder if there is no encoder."""
    names = [name for name in names if not name.endswith(NORMED)]
    for stack in ("encoder/", "decoder/"):
        numbers = sorted(int(name.removeprefix(stack)) for name in names if name.startswith(stack))
        if numbers:
            return [f"{stack}{number}" for number in numbers[-4:]]
    return []


def evaluate(features: FeatureStore, config, floors: FloorCache) -> list[dict]:
    """Runs the protocol.

    Args:
      features: store of a model and labelled data.
      config: resolved; `eval.linear_probe` is read.
      floors: cache of the raw pixels' accuracy.

    Returns:
      One result per variant, the default layer first; `value` is top-1 accuracy in [0, 1]. Then, if there is a
      labelled validation split, the default layer's accuracy on it before the refit, at the chosen C.

    Raises:
      Skipped: no test split, no labels, or one class only.
    """
    data, settings = features.data, config.eval.linear_probe
    labels = split_labels(data)
    grid, limit = grid_of(settings), settings.max_iterations

    def floor() -> float:
        fitted = of_pixels(features, labels, settings)
        return _measured(fitted, raw_pixels(data.test.images), labels["test"])["value"]

    key = {"protocol": PROTOCOL, "data": data.fingerprint, "c_values": grid, "max_iterations": limit}
    name = raw_pixels_name(data.train.images)
    common: dict[str, object] = {
        "metric": "linear_probe_accuracy",
        "protocol": PROTOCOL,
        "split": "test",
        "c_values": list(grid),
    }
    common |= {"max_iterations": limit, "floor": {name: floors.get(floor, floor=name, **key)}}
    rows, outcomes = [], {}
    for variant in _variants(features, labels, middle(grid), limit):
        layers = tuple(variant["layers"])
        if layers not in outcomes:
            fitted = of_layers(features, labels, layers, settings)
            x = np.concatenate([features.layers("test")[name] for name in layers], axis=1)
            outcomes[layers] = _measured(fitted, x, labels["test"])
        rows.append({**common, **variant, **outcomes[layers]})
    accuracy = rows[0]["validation_accuracy"]
    if accuracy is not None:
        n_train = len(labels["train"])
        rows.append(validation_row(rows[0], accuracy, len(labels["validation"]), n_train=n_train))
    return rows


def split_labels(data) -> dict[str, np.ndarray]:
    """Returns {split: (n,) labels} of `train`, `test` and, if it has labels, `validation`.

    Raises:
      Skipped: no test split or no labels.
    """
    labels = {split: require_split(data, split, labels=True).labels for split in ("train", "test")}
    if has_split(data, "validation") and data.validation.labels is not None:
        labels["validation"] = data.validation.labels
    return labels


def _variants(features: FeatureStore, labels: dict[str, np.ndarray], c: float, limit: int) -> list[dict]:
    def row(variant: str, layers: list[str], selection: str, **more) -> dict:
        return {
            "variant": variant,
            "layer": ", ".join(layers),
            "layers": layers,
            "selection": selection,
            **more,
        }

    name, names = default_layer(features), last_four(features.layers("train"))
    if features.normed:
        names = [f"{name}{NORMED}" for name in names]
    default = row("default", [name], "default layer")
    four = row("last_four", names, "concatenation of the last four layers")
    if "validation" not in labels:
        note = "no labelled validation split: C is the middle of the grid, and no best layer is chosen"
        return [{**default, "note": note}, {**four, "note": note}]
    scores = layer_scores(features, labels, c, limit)
    best = row(
        "best_layer",
        [max(scores, key=lambda name: scores[name])],
        "best layer by validation",
        layer_choice_C=c,
        layer_choice_n_train=min(LAYER_CHOICE_IMAGES, len(labels["train"])),
        layer_choice_n_validation=len(labels["validation"]),
        layer_validation_accuracy=scores,
    )
    return [default, best, four]
