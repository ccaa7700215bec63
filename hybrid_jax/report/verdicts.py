"""Results in words: the name of a metric, its values as text, and the verdict of a result against its floors."""

import dataclasses

from hybrid_jax.evaluators.sample_quality import HISTOGRAMS, REAL, TRAINING

# The subject of each evaluator, in the order of the report.
SUBJECTS = {
    "linear_probe": "Linear classification",
    "few_label": "Few labels",
    "knn": "Retrieval (k-NN)",
    "likelihood": "Likelihood",
    "sample_quality": "Sample quality",
    "ood": "Out-of-distribution detection",
    "corruptions": "Robustness to corruptions",
    "adversarial": "Adversarial robustness",
    "calibration": "Calibration",
    "transfer": "Transfer",
    "finetune": "Fine-tuning",
}
BETTER, WITHIN, WORSE = "better than the floor", "within two standard errors of the floor", "worse than the floor"
_NO_BETTER, _COPIES = "no better than histogram samples", "more than among real images: check for copies"
_VARIANTS = {
    "default": "default layer",
    "best_layer": "best layer by validation accuracy",
    "last_four": "last four layers concatenated",
}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric in words.

    Attributes:
      title: its name in the report.
      evaluator: its evaluator; empty for an unknown metric.
      unit: after the value.
      lower: whether lower is better.
      share: whether it is a share in [0, 1], written in per cent.
      meaning: an explanation for readers who do not know it.
    """

    title: str
    evaluator: str
    unit: str = ""
    lower: bool = False
    share: bool = False
    meaning: str = ""

    def text(self, value: float, unit: bool = True) -> str:
        """Returns the value as text."""
        return f"{value:.1%}" if self.share else f"{value:.3f}" + (f" {self.unit}" if unit and self.unit else "")

    def lead(self, value: float, floor: float) -> float:
        """Returns by how much `value` is better than `floor`, in the metric's unit."""
        return floor - value if self.lower else value - floor

    def gap(self, lead: float) -> str:
        """Returns the size of a lead as text."""
        return f"{abs(lead) * 100:.1f} points" if self.share else f"{abs(lead):.3f} {self.unit}".strip()


METRICS = {
    "linear_probe_accuracy": Metric("Linear probe", "linear_probe", share=True),
    "few_label_accuracy": Metric("Accuracy with few labels", "few_label", share=True),
    "knn_accuracy": Metric("k-NN accuracy", "knn", share=True),
    "bits_per_dim": Metric("Negative log-likelihood", "likelihood", "bits/dim", lower=True),
    "nats_per_token": Metric("Negative log-likelihood", "likelihood", "nats/token", lower=True),
    "frechet_distance": Metric(
        "Fréchet distance", "sample_quality", lower=True,
        meaning="distance between the feature distributions of samples and of training images; lower is better",
    ),
    "precision": Metric(
        "Precision", "sample_quality", share=True, meaning="samples that lie among training images: fidelity"
    ),
    "recall": Metric(
        "Recall", "sample_quality", share=True,
        meaning="training images that lie among samples: diversity. High for any scattered samples: prefer coverage",
    ),
    "density": Metric(
        "Density", "sample_quality", meaning="how densely training images surround a sample; about 1 for real images"
    ),
    "coverage": Metric(
        "Coverage", "sample_quality", share=True, meaning="training images with a sample close by: diversity"
    ),
    "near_copy_share": Metric(
        "Near copies", "sample_quality", share=True, lower=True,
        meaning="samples as close to a training image as the closest 1% of the test images; far above 1% means "
        "memorization, 0 is fine",
    ),
    "classification_accuracy_score": Metric(
        "Classification accuracy score", "sample_quality", share=True,
        meaning="test accuracy of a classifier trained on samples, which a classifier of real images labelled",
    ),
    "ood_auroc": Metric("Outlier detection (AUROC)", "ood"),
    "corruption_accuracy": Metric("Accuracy on corrupted images", "corruptions", share=True),
    "corruption_share_retained": Metric("Share of the clean accuracy retained", "corruptions", share=True),
    "adversarial_accuracy": Metric("Accuracy under attack", "adversarial", share=True),
    "calibration_error": Metric("Expected calibration error", "calibration", lower=True, share=True),
    "probe_nll": Metric("Negative log-likelihood of the probe", "calibration", "nats", lower=True),
    "brier_score": Metric("Brier score", "calibration", lower=True),
    "transfer_linear_probe_accuracy": Metric("Transfer, linear probe", "transfer", share=True),
    "transfer_knn_accuracy": Metric("Transfer, k-NN", "transfer", share=True),
    "finetune_accuracy": Metric("Accuracy after fine-tuning", "finetune", share=True),
}  # fmt: skip


def metric_of(row: dict) -> Metric:
    """Returns the metric of a result; an unknown one goes by its name, higher is better."""
    name = row["metric"]
    return METRICS.get(name) or Metric(name.replace("_", " "), "", share=name.endswith("_accuracy"))


def judges_samples(row: dict) -> bool:
    """Returns whether a result judges samples, whose baselines bound it from both sides."""
    return metric_of(row).evaluator == "sample_quality"


def title(row: dict) -> str:
    """Returns the metric and its variant."""
    variant = [_VARIANTS.get(row["variant"], row["variant"])] if "variant" in row else []
    return score_name(", ".join([metric_of(row).title, *variant]))


def score_name(text: str) -> str:
    """Returns the text with the joint score under its present name; there used to be two."""
    return text.replace("joint score J1", "joint score")


def value(row: dict) -> str:
    """Returns the value and its standard error."""
    metric, error = metric_of(row), row.get("standard_error")
    return metric.text(row["value"]) + (f" ± {metric.text(error, unit=False)}" if error else "")


def floors(row: dict) -> str:
    """Returns the floors with their names."""
    return ", ".join(f"{name} {metric_of(row).text(found)}" for name, found in (row.get("floor") or {}).items())


def best_floor(row: dict) -> dict[str, float]:
    """Returns the floor that is hardest to beat by its name; empty where there is none."""
    found, metric = row.get("floor") or {}, metric_of(row)
    name = max(found, key=lambda name: metric.lead(found[name], 0), default=None)
    return {} if name is None else {name: found[name]}


def verdict(row: dict) -> str:
    """Returns how a result compares with its best floor, or samples with their baselines, in words."""
    if judges_samples(row):
        return _verdict_on_copies(row) if row["metric"] == "near_copy_share" else _verdict_on_samples(row)
    metric = metric_of(row)
    leads = [metric.lead(row["value"], floor) for floor in best_floor(row).values()]
    if not leads:
        return "no floor applies"
    gap, better = metric.gap(leads[0]), leads[0] > 0
    if abs(leads[0]) <= 2 * (row.get("standard_error") or 0):
        return f"{WITHIN} ({gap} {'better' if better else 'worse'})"
    return f"{BETTER if better else WORSE} by {gap}"


def _verdict_on_samples(row: dict) -> str:
    metric, found = metric_of(row), row["value"]
    real, blind = row["floor"][real_images(row)], row["floor"][HISTOGRAMS]
    span = metric.lead(real, blind)
    if span <= 0:
        return "not informative: histogram samples do as well as real images"
    share = metric.lead(found, blind) / span
    if share <= 0:
        return _NO_BETTER
    if metric.lower and real > 0:
        return f"{found / real:.2g} times that of real images (histogram samples: {blind / real:.2g} times)"
    return f"{min(share, 1):.0%} of the way from histogram samples to real images"


def _verdict_on_copies(row: dict) -> str:
    count = row["exact_copies"]
    exact = f"exact copies: {count}" if count else "no exact copy"
    if row["value"] - row["floor"][real_images(row)] > 2 * (row.get("standard_error") or 0):
        return f"{_COPIES} ({exact})"
    return f"no more than among real images ({exact})"


def real_images(row: dict) -> str:
    """Returns the name of the baseline of real images that samples are compared with."""
    return REAL if REAL in row["floor"] else TRAINING


def tone(words: str) -> str:
    """Returns `good`, `bad` or nothing for a verdict."""
    return "bad" if words.startswith((WORSE, _NO_BETTER, _COPIES)) else "good" if words.startswith(BETTER) else ""
