"""How the report tells each metric."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a metric is told.

    Attributes:
      title: what it is called.
      unit: after the value.
      lower: whether lower is better.
      share: whether it is a share in [0, 1], told in per cent.
      meaning: what it says, for a reader who meets it first.
      samples: whether it judges samples, whose stand-ins bound it from both sides.
      headline: whether the summary tells it.
    """

    title: str
    unit: str = ""
    lower: bool = False
    share: bool = False
    meaning: str = ""
    samples: bool = False
    headline: bool = True

    def tell(self, value: float, unit: bool = True) -> str:
        """Returns the value as text."""
        return f"{value:.1%}" if self.share else f"{value:.3f}" + (f" {self.unit}" if unit and self.unit else "")

    def lead(self, value: float, floor: float) -> float:
        """Returns by how much `value` is better than `floor`, in the metric's unit."""
        return floor - value if self.lower else value - floor

    def gap(self, lead: float) -> str:
        """Returns the size of a lead as text."""
        return f"{abs(lead) * 100:.1f} points" if self.share else f"{abs(lead):.3f} {self.unit}".strip()


def _of_samples(title: str, meaning: str, lower: bool = False, share: bool = False) -> Metric:
    # One of them is enough for the summary.
    headline = title.endswith("distance")
    return Metric(title, lower=lower, share=share, meaning=meaning, samples=True, headline=headline)


def _of_probe(title: str, unit: str = "", lower: bool = False, share: bool = False) -> Metric:
    return Metric(title, unit, lower, share, headline=False)


METRICS = {
    "linear_probe_accuracy": Metric("Linear probe", share=True),
    "few_label_accuracy": Metric("Few labels", share=True),
    "knn_accuracy": Metric("k-NN", share=True),
    "bits_per_dim": Metric("Likelihood", "bits/dim", lower=True),
    "nats_per_token": Metric("Likelihood", "nats/token", lower=True),
    "frechet_distance": _of_samples(
        "Samples' Frechet distance", "how far the samples' features, as a whole, lie from training images'", lower=True
    ),
    "precision": _of_samples(
        "Precision", "samples that lie where training images lie: are they realistic?", share=True
    ),
    "recall": _of_samples(
        "Recall",
        "training images that lie where samples lie: is everything drawn? High for any samples far apart: read "
        "coverage first",
        share=True,
    ),
    "density": _of_samples("Density", "how crowded with training images the samples' places are; real: about 1"),
    "coverage": _of_samples(
        "Coverage", "training images that have a sample for a near neighbour: is everything drawn?", share=True
    ),
    "near_copy_share": _of_samples(
        "Near copies",
        "samples as near to a training image as 1 % of the test images are; far above 1 % means memorised, 0 is fine",
        share=True,
        lower=True,
    ),
    "classification_accuracy_score": _of_samples(
        "Classification score",
        "accuracy on real test images of a classifier that learnt from samples, named by a classifier of real images",
        share=True,
    ),
    "corruption_accuracy": _of_probe("Corrupted images", share=True),
    "corruption_share_retained": _of_probe("Accuracy retained on corrupted images", share=True),
    "adversarial_accuracy": _of_probe("Under attack", share=True),
    "calibration_error": _of_probe("Calibration error", lower=True, share=True),
    "probe_nll": _of_probe("Probe's log-likelihood", "nats", lower=True),
    "brier_score": _of_probe("Brier score", lower=True),
}


# Of which a report does not say that they were not measured.
_MORE = {
    "ood_auroc": Metric("Outliers found (AUROC)"),
    "transfer_linear_probe_accuracy": Metric("Transfer, linear probe", share=True),
    "transfer_knn_accuracy": Metric("Transfer, k-NN", share=True),
    "finetune_accuracy": Metric("Fine-tuned", share=True),
}


def metric_of(row: dict) -> Metric:
    """Returns how a result is told; one without an entry goes by its name, higher is better."""
    name = row["metric"]
    return METRICS.get(name) or _MORE.get(name) or Metric(name.replace("_", " "), share=name.endswith("_accuracy"))
