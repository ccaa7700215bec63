"""Classification of frozen features from few labels (protocol few-label-v1).

A setting fixes the number of labels: a share of each class of the training split, rounded and at least one, or a number
of images per class (all images of a smaller class). Each is drawn `num_seeds` times. Draws depend on the labels,
`config.seed` and the index of the draw alone, so that every model sees the same images; the smaller sets of a draw are
subsets of the larger ones. Two classifiers are fitted to each draw:

- `logistic`: L2 multinomial logistic regression on features standardised by the whole training split, which needs no
  labels (standardised by ten images per class, raw pixels lost 3.5 points); C is chosen for each draw by accuracy on
  the validation split (ties: the smaller C), which may hold more labels than the draw. There is no refit, which would
  use those labels;
- `ridge`: least squares at a fixed penalty on features standardised by the images of the draw, as in big_vision's
  few-shot evaluator: no labels but those of the draw are read.

Each runs on the checkpoint's default layer and on its last four blocks concatenated, as in the linear probe.

Dimensions: n images, D features, K classes.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import scipy.linalg

from hybrid_jax.evaluators.features import FeatureStore, FloorCache, raw_pixels, raw_pixels_name, validation_row
from hybrid_jax.evaluators.linear_probe import last_four, middle, moments, split_labels
from hybrid_jax.evaluators.logistic import side_by_side, solver

PROTOCOL = "few-label-v1"
RIDGE_PENALTY = 2.0**10
RIDGE_BIAS = 100.0

Parts = dict[str, np.ndarray]
# Takes {split: (n, D)}, `train` the draw, with mean and deviation of the whole training split as `unlabelled` (2, D),
# and {split: (n,) labels}; returns (n,) labels for `test`, and details of the fit.
Classifier = Callable[[Parts, Parts], tuple[np.ndarray, dict]]


class Source:
    """One set of features; what all draws share is computed once."""

    def __init__(self, rows: Callable[[str, np.ndarray | slice], np.ndarray]):
        """Takes a function that returns the (n, D) features of some rows of a split."""
        self.rows = rows
        self.whole = functools.cache(lambda split: rows(split, slice(None)))

    @functools.cached_property
    def unlabelled(self) -> np.ndarray:
        """(2, D) float32, mean and deviation of the training split."""
        return np.stack(moments(self.rows("train", slice(None))))


@dataclasses.dataclass(frozen=True)
class Ridge:
    """A fitted classifier, with standardisation and constant folded in.

    Attributes:
      classes: (K,) labels, ascending.
      weights: (D, K) float64.
      bias: (K,) float64.
    """

    classes: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(n, D) -> (n,) labels; of equal scores the lower label wins."""
        return self.classes[np.argmax(x @ self.weights + self.bias, axis=1)]


def fit_ridge(x: np.ndarray, y: np.ndarray) -> Ridge:
    """Minimises |XW - Y|^2 + 1024 |W|^2, X the standardised features and a constant 100, Y in {-1, 1}.

    Formula and constants are those of big_vision's `evaluators/fewshot_lsr.py`. With the large constant the bias is
    almost unpenalised. It is solved in float64: the constant spreads the eigenvalues of X'X over more digits than
    float32 has.

    Args:
      x: (n, D) float32.
      y: (n,) labels, any integers; classes absent here are never predicted.

    Returns:
      The classifier.
    """
    classes, targets = np.unique(y, return_inverse=True)
    signs = np.where(np.arange(len(classes)) == targets[:, None], 1.0, -1.0)
    x = x.astype(np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-5
    padded = np.pad((x - mean) / deviation, ((0, 0), (0, 1)), constant_values=RIDGE_BIAS)
    n, d = padded.shape
    # (X'X + cI)^-1 X'Y = X'(XX' + cI)^-1 Y: the smaller of the two systems.
    gram = padded @ padded.T if n < d else padded.T @ padded
    gram[np.diag_indices_from(gram)] += RIDGE_PENALTY
    solved = scipy.linalg.solve(gram, signs if n < d else padded.T @ signs, assume_a="pos")
    weights = padded.T @ solved if n < d else solved
    scaled = weights[:-1] / deviation[:, None]
    return Ridge(classes, scaled, RIDGE_BIAS * weights[-1] - mean @ scaled)


def ridge(parts: Parts, labels: Parts) -> tuple[np.ndarray, dict]:
    """The `Classifier` of `fit_ridge`."""
    return fit_ridge(parts["train"], labels["train"]).predict(parts["test"]), {}


def logistic(parts: Parts, labels: Parts, c_values, max_iterations: int) -> tuple[np.ndarray, dict]:
    """The `Classifier` of `fit_logistic`; reports `chosen_C`, `converged` and `validation_accuracy`.

    Without a validation split C is the middle one of `c_values`.

    Raises:
      Skipped: the training labels hold one class only.
    """
    mean, deviation = parts["unlabelled"]
    x = {split: (part - mean) / deviation for split, part in parts.items() if split != "unlabelled"}
    if len(x["train"]) < x["train"].shape[1]:
        # The penalty keeps weights in the span of the images: the minimum in n coordinates is that in D.
        basis = np.linalg.qr(x["train"].T)[0]
        x = {split: part @ basis for split, part in x.items()}
    grid = sorted(c_values) if "validation" in x else [middle(c_values)]
    fits = solver(x["train"])(x["train"], labels["train"], grid, max_iterations)
    best, told = 0, {}
    if "validation" in x:
        scores = [float(np.mean(fit.predict(x["validation"]) == labels["validation"])) for fit in fits]
        best = int(np.argmax(scores))
        told["validation_accuracy"] = scores[best]
    told |= {"chosen_C": float(grid[best]), "converged": fits[best].converged}
    return fits[best].predict(x["test"]), told


def class_counts(labels: np.ndarray, shares, per_class) -> dict[str, np.ndarray]:
    """Returns {setting: (K,) images per class, in ascending order of labels} for (n,) labels."""
    have = np.unique(labels, return_counts=True)[1]
    counts = {f"{100 * share:.10g} %": np.maximum(1, np.rint(share * have).astype(int)) for share in shares}
    return counts | {f"{count} per class": np.minimum(have, count) for count in per_class}


def draw(labels: np.ndarray, counts: np.ndarray, seed: int, index: int) -> np.ndarray:
    """Draws images of each class without replacement.

    Args:
      labels: (n,) labels of a split.
      counts: (K,) images per class, in ascending order of labels; at most the size of the class.
      seed: the seed of the run.
      index: the index of the draw.

    Returns:
      (counts.sum(),) rows of the split, ascending. Larger counts add rows to those of smaller ones.
    """
    rng = np.random.default_rng([seed, index])
    ends = np.cumsum(np.unique(labels, return_counts=True)[1])[:-1]
    by_class = np.split(np.argsort(labels, kind="stable"), ends)
    return np.sort(np.concatenate([rng.permutation(rows)[:n] for rows, n in zip(by_class, counts, strict=True)]))


def measure(source: Source, labels: Parts, draws: list[np.ndarray], classify: Classifier) -> dict:
    """Measures one classifier on every draw of a setting.

    Args:
      source: the features.
      labels: {split: (n,)} for `train`, `test` and, if there is one, `validation`.
      draws: labelled rows of `train`, the same number in each.
      classify: fits, chooses and predicts, without the labels of the test split.

    Returns:
      `value` (mean test accuracy), `values` (one per draw), `standard_error` (over draws and test images: the variance
      of `values` divided by their number, plus that of the images' mean hits divided by theirs), `n`, `n_train`, and
      for the logistic classifier `chosen_C` (one per draw), `converged` (in all draws) and, with a validation split,
      the mean `validation_accuracy`.
    """
    held = {split: source.whole(split) for split in labels if split != "train"} | {"unlabelled": source.unlabelled}
    # Classifiers see everything but the labels of the test split.
    known = {split: y for split, y in labels.items() if split != "test"}

    def one(rows: np.ndarray) -> tuple[np.ndarray, dict]:
        predicted, details = classify(
            {"train": source.rows("train", rows), **held}, {**known, "train": known["train"][rows]}
        )
        return predicted == labels["test"], details

    # Standardised copies of the splits that are predicted, and of the draw.
    bytes_each = 8 * sum(values[:1].size * len(labels[s]) for s, values in held.items() if s != "unlabelled")
    hits, told = zip(*side_by_side([functools.partial(one, rows) for rows in draws], bytes_each), strict=True)
    values, by_image = np.mean(hits, axis=1), np.mean(hits, axis=0)
    draws_variance = np.var(values, ddof=1) / len(values) if len(values) > 1 else 0.0
    more: dict[str, object] = {}
    if told[0]:
        more = {"chosen_C": [d["chosen_C"] for d in told], "converged": all(d["converged"] for d in told)}
        if "validation_accuracy" in told[0]:
            more["validation_accuracy"] = float(np.mean([d["validation_accuracy"] for d in told]))
    return {
        "value": float(np.mean(values)),
        "values": values.tolist(),
        "standard_error": float(np.sqrt(draws_variance + np.var(by_image, ddof=1) / len(by_image))),
        "n": len(labels["test"]),
        "n_train": len(draws[0]),
        **more,
    }


def evaluate(features: FeatureStore, config, floors: FloorCache) -> list[dict]:
    """Runs the protocol.

    Args:
      features: store of a model and labelled data.
      config: resolved; `eval.few_label` and `seed` are read.
      floors: cache of the raw pixels' accuracies.

    Returns:
      One result for each choice of layers, setting and classifier, the default layer and the logistic
      classifier first; `value` is top-1 accuracy in [0, 1]. The floor is the same classifier on the raw
      pixels of the same draws. Last, the validation accuracy of the first logistic result, if there is that split.

    Raises:
      Skipped: no test split, no labels, or one class only.
    """
    data, labels = features.data, split_labels(features.data)
    cells, pixels = _cells(labels["train"], config), raw_pixels_name(data.train.images)
    of_pixels = Source(lambda split, rows: raw_pixels(getattr(data, split).images[rows]))

    def floor(told: dict, draws: list[np.ndarray], classify: Classifier) -> dict[str, float]:
        compute = lambda: measure(of_pixels, labels, draws, classify)["value"]
        return {pixels: floors.get(compute, floor=pixels, data=data.fingerprint, seed=config.seed, **told)}

    beside = [floor(*cell) for cell in cells]
    rows = []
    choices = {"": [features.model.default_layer], ", last four layers": last_four(features.layers("train"))}
    for suffix, layers in choices.items():
        source, where = _layers(features, layers), {"layer": ", ".join(layers), "layers": layers}
        for (told, draws, classify), found_floor in zip(cells, beside, strict=True):
            row = {"metric": "few_label_accuracy", "split": "test", **told, **where, "floor": found_floor}
            row["variant"] = f"{told['setting']} {told['classifier']}{suffix}"
            if told["classifier"] == "logistic" and "validation" not in labels:
                missing = "no labelled validation split: C is the middle of the grid"
                row["note"] = "; ".join(filter(None, [row.get("note"), missing]))
            rows.append(row | measure(source, labels, draws, classify))
    chosen = [row for row in rows if row.get("validation_accuracy") is not None]
    if chosen:
        accuracy, n_train = chosen[0]["validation_accuracy"], chosen[0]["n_train"]
        rows.append(validation_row(chosen[0], accuracy, len(labels["validation"]), n_train=n_train))
    return rows


def _cells(labels: np.ndarray, config) -> list[tuple[dict, list[np.ndarray], Classifier]]:
    """Returns each setting with each classifier: what both depend on, the draws, and the classifier."""
    settings = config.eval.few_label
    grid, limit = tuple(sorted(float(c) for c in settings.c_values)), settings.max_iterations
    classifiers: dict[str, tuple[Classifier, dict]] = {
        "logistic": (lambda x, y: logistic(x, y, grid, limit), {"C_grid": list(grid), "max_iterations": limit}),
        "ridge": (ridge, {"l2": RIDGE_PENALTY}),
    }
    cells = []
    for setting, counts in class_counts(labels, settings.shares, settings.per_class).items():
        draws = [draw(labels, counts, config.seed, i) for i in range(settings.num_seeds)]
        short = "per class" in setting and counts.min() < int(setting.split()[0])
        note = {"note": "all images of classes that have fewer"} if short else {}
        for name, (classify, parameters) in classifiers.items():
            told = {"protocol": PROTOCOL, "setting": setting, "classifier": name, "num_seeds": len(draws)}
            cells.append((told | parameters | note, draws, classify))
    return cells


def _layers(features: FeatureStore, layers: list[str]) -> Source:
    return Source(lambda split, rows: np.concatenate([features.layers(split)[name][rows] for name in layers], axis=1))
