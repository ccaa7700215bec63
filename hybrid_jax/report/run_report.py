"""The report of a run: one self-contained HTML file for readers who see the project for the first time.

It opens with pictures: curves, views, samples, neighbours, the map of the features. Then follow the results, one row
per subject with all others folded below, and figures on single subjects.
"""

import html
import pathlib

import numpy as np

from hybrid_jax import config as config_lib
from hybrid_jax import metrics as metrics_lib
from hybrid_jax.evaluators.features import SPLITS, FeatureStore, has_split
from hybrid_jax.report import curves, images, ood, reference, results, robustness, samples, views
from hybrid_jax.report.page import folded, page, paragraph
from hybrid_jax.storage.files import write_whole


def write_report(
    workdir: pathlib.Path,
    model,
    data,
    measured: list[dict],
    sample_views: views.SampleViews | None,
    features: FeatureStore | None = None,
    reference_dir: pathlib.Path = reference.SHIPPED,
) -> pathlib.Path:
    """Writes `workdir`/report.html, reading `workdir`/metrics.jsonl where it exists.

    Args:
      workdir: an existing directory.
      model: a restored checkpoint, as `hybrid_jax.load` returns; its config says how many samples are shown.
      data: a data set with `train`, `validation`, `test`, `class_names`, `name`.
      measured: results as `evaluators.evaluate` returns them; may be empty.
      sample_views: images and their views; None for a model without views.
      features: of the same model and data; images whose features it lacks pass the network here.
      reference_dir: of the reference curves that are drawn behind this run's.

    Returns:
      The file's path.
    """
    features = features or FeatureStore(model, data)
    metrics, config = metrics_lib.read(workdir), model.config
    # Results of the validation split serve to choose checkpoints and settings.
    judged = [row for row in measured if row.get("split") != "validation"]
    rows = ood.condensed(judged)
    title = f"hybrid_jax: {data.name}, step {model.step:,}"
    head = paragraph(results.lead(model, data, rows), "lead") + paragraph(facts(model, data, metrics), "facts")
    sections = [
        *curves.sections(metrics, model, rows, reference_dir),
        *views.sections(sample_views, config),
        *samples.sections(features, config.eval.report_samples, config.seed),
        *images.sections(features),
        *results.sections(model, data, rows),
        *curves.layer_sections(rows, model.default_layer),
        *ood.sections(features, judged),
        *robustness.sections(rows, data),
        ("Configuration", folded("All fields", f"<pre>{html.escape(config_lib.to_json(config))}</pre>")),
    ]
    path = workdir / "report.html"
    write_whole(path, page(title, head, sections))
    return path


def facts(model, data, metrics: list[dict]) -> str:
    """Returns a description of the model and the data, and what a floor is."""
    branches = {(True, True): "hybrid", (True, False): "generative only", (False, True): "contrastive only"}
    counts = [f"{len(getattr(data, s).images):,} {s}" for s in SPLITS if has_split(data, s)]
    height, width, channels = data.train.images.shape[1:]
    labels = data.train.labels
    parts = [
        f"Model: {branches[model.has_likelihood, model.has_contrastive]}",
        f"images: {', '.join(counts)}, {height}x{width}, {'grey' if channels == 1 else 'colour'}",
        "no labels" if labels is None else f"{len(np.unique(labels))} classes",
    ]
    speeds = [row["images_per_second"] for row in metrics if row.get("images_per_second")]
    if speeds:
        parts.append(f"trained at {np.median(speeds):,.0f} images/s (median)")
    return (
        "; ".join(parts) + ". A floor is the result of the same protocol without the model, for instance on raw pixels."
    )
