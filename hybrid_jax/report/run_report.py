"""The report of a run: one self-contained HTML file that a newcomer can read.

Everything is inline (style, PNG figures), nothing is loaded from elsewhere, and every text that comes
from the user (names, classes, config) is escaped.
"""

import html
import pathlib

import numpy as np

from hybrid_jax import config as config_lib
from hybrid_jax import metrics as metrics_lib
from hybrid_jax.evaluators.features import SPLITS, FeatureStore, has_split
from hybrid_jax.report import curves as report_curves
from hybrid_jax.report import images as report_images
from hybrid_jax.report import ood, quality, reference, robustness
from hybrid_jax.report import results as report_results
from hybrid_jax.report import samples as report_samples
from hybrid_jax.report import views as report_views
from hybrid_jax.report.metric_names import metric_of
from hybrid_jax.report.page import captioned, page, section
from hybrid_jax.storage.files import write_whole


def write_report(
    workdir: pathlib.Path,
    model,
    data,
    results: list[dict],
    sample_views: report_views.SampleViews | None,
    features: FeatureStore | None = None,
    reference_dir: pathlib.Path = reference.SHIPPED,
) -> pathlib.Path:
    """Writes `workdir`/report.html, reading `workdir`/metrics.jsonl where it exists.

    Args:
      workdir: an existing directory.
      model: a restored checkpoint, as `hybrid_jax.load` returns; its config says how many samples are shown.
      data: a data set with `train`, `validation`, `test`, `class_names`, `name`.
      results: as `evaluators.evaluate` returns them; may be empty.
      sample_views: images and their views; None where there are none.
      features: of the same model and data; images whose features it lacks pass the network here.
      reference_dir: where the reference curves lie that are drawn behind this run's.

    Returns:
      The file's path.
    """
    features = features or FeatureStore(model, data)
    metrics = metrics_lib.read(workdir)
    # Those of the validation split are there to choose by.
    measured = [row for row in results if row.get("split") != "validation"]
    results = ood.condensed(measured)
    sweeps = [
        row for row in results if row["metric"] == "linear_probe_accuracy" and row.get("layer_validation_accuracy")
    ]
    judged, others = quality.table(results), [row for row in results if not metric_of(row).samples]
    title = f"hybrid_jax: {data.name}, step {model.step:,}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">{html.escape(report_results.summary(model, data, results))}</p>',
        f'<p class="facts">{html.escape(facts(model, data, metrics))}</p>',
        *([section("Results", report_results.table(others))] if others or not judged else []),
        *([section("Quality of the samples", judged)] if judged else []),
        *(section(*part) for part in ood.sections(features, measured)),
        *(section("Layers", captioned(*report_curves.layer_sweep(row, model.default_layer))) for row in sweeps),
        *(section(*part) for part in robustness.sections(results, data)),
        section("Training", _curves(metrics, model, results, reference_dir)),
    ]
    if sample_views is not None:
        table = report_views.recipe_table(model.config)
        body.append(section("Views", table + captioned(*report_views.sheet(sample_views))))
    asked = model.config.eval.report_samples, model.config.seed
    body += [section(*part) for part in report_samples.sections(features, *asked)]
    body += [
        section("Nearest neighbours", _neighbours(features)),
        section("Map of the features", _map(features)),
        "<details><summary>Configuration</summary>"
        f"<pre>{html.escape(config_lib.to_json(model.config))}</pre></details>",
    ]
    path = workdir / "report.html"
    write_whole(path, page(title, body))
    return path


def facts(model, data, metrics: list[dict]) -> str:
    """Returns one line on the checkpoint and the data."""
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
    return "; ".join(parts) + "."


def _curves(metrics: list[dict], model, results: list[dict], reference_dir: pathlib.Path) -> str:
    if not metrics:
        return "<p>There is no training log (metrics.jsonl) beside this report.</p>"
    comparison = reference.comparable(model.config, reference.load(reference_dir))
    drawn = report_curves.training_curves(metrics, model, results, comparison)
    note = html.escape(report_results.reference_note(comparison, model))
    grid = "".join(captioned(*figure) for figure in drawn)
    return f'<p class="caption note">{note}</p><div class="grid">{grid}</div>'


def _neighbours(features: FeatureStore) -> str:
    rows, caption = report_images.neighbours(features)
    lines = [f'<div class="neighbours">{"".join(_thumbnail(cell) for cell in row)}</div>' for row in rows]
    return f'<div class="wide">{"".join(lines)}</div><p class="caption">{html.escape(caption)}</p>'


def _thumbnail(cell: report_images.Cell) -> str:
    text = html.escape(cell.name)
    image = f'<img src="{cell.uri}" alt="{text}">'
    return f'<figure class="thumb {cell.tone}">{image}<figcaption>{text}</figcaption></figure>'


def _map(features: FeatureStore) -> str:
    uri, caption, legend = report_images.feature_map(features)
    dots = "".join(f'<span><i style="background:{c}"></i>{html.escape(name)}</span>' for name, c in legend)
    return f'<div class="legend">{dots}</div>{captioned(uri, caption)}'
