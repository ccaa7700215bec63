"""Fits the joint anomaly score of a checkpoint, which `Model.anomaly_score` and the evaluator `ood` read."""

from collections.abc import Callable

import numpy as np

from hybrid_jax.anomaly import fit as anomaly_fit
from hybrid_jax.anomaly import joint_score
from hybrid_jax.anomaly.joint_score import FEWEST_IMAGES, JointScore, white_axes
from hybrid_jax.evaluators.features import FeatureStore, FloorCache, Skipped, has_split

AXES_IMAGES = 5_000  # training images


def evaluate(
    features: FeatureStore, config, floors: FloorCache, log: Callable[[str], None], between: Callable[[], None]
) -> list[dict]:
    """Fits the score and, if the store has a workdir, writes `anomaly/<step>.npz`.

    Args:
      features: store of a model and its data.
      config: resolved; `eval.anomaly` is read.
      floors: not used.
      log: takes a line about the fit.
      between: not used.

    Returns:
      No results: the evaluator `ood` measures the score.

    Raises:
      Skipped: there are too few images.
    """
    score = fitted(features, config)
    if score is None:
        raise Skipped(f"fewer than {FEWEST_IMAGES} validation images")
    about = score.about
    alone = "" if features.model.has_likelihood else "; no likelihood, so it is the distance of features alone"
    log(f"anomaly score: fitted on {about['n']:,} {about['split']} images{alone}")
    if about["split"] == "train":
        log("anomaly score: no validation split; a score fitted on training images is too strict")
    if features.workdir is not None:
        anomaly_fit.save(features.workdir, features.model, score)
    return []


def fitted(features: FeatureStore, config) -> JointScore | None:
    """Returns the joint score, fitted once per store; None if it is turned off or there are too few images."""
    return features.once("joint score", lambda: _fitted(features, config.eval.anomaly.num_images))


def _fitted(features: FeatureStore, limit: int) -> JointScore | None:
    data, split = features.data, "validation" if has_split(features.data, "validation") else "train"
    images = getattr(data, split).images[:limit]
    if len(images) < FEWEST_IMAGES:
        return None
    # Axes from training images: there are too few validation images for directions of low variance.
    axes = white_axes(features.first("train", AXES_IMAGES)[features.model.measured_layers[1]])
    measures = features.model.measures(images)
    about = {"n": len(images), "split": split, "n_axes": min(AXES_IMAGES, len(data.train.images))}
    if measures.nll is not None:
        about["mean_nll"] = float(np.mean(measures.nll))
    return JointScore(joint_score.fit(measures, axes).arrays, about)
