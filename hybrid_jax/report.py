"""The report of a run: one self-contained HTML file that a newcomer can read.

Everything is inline (style, PNG figures), nothing is loaded from elsewhere, and every text that comes
from the user (names, classes, config) is escaped.
"""

import html
import pathlib

import numpy as np

from hybrid_jax import config as config_lib
from hybrid_jax import metrics as metrics_lib
from hybrid_jax import (
    reference,
    report_figures,
    report_images,
    report_ood,
    report_quality,
    report_results,
    report_robustness,
    report_samples,
    report_views,
)
from hybrid_jax.evaluators.features import SPLITS, FeatureStore, has_split
from hybrid_jax.files import write_whole
from hybrid_jax.report_metrics import metric_of
from hybrid_jax.text import printable


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
    results = report_ood.condensed(measured)
    sweeps = [
        row for row in results if row["metric"] == "linear_probe_accuracy" and row.get("layer_validation_accuracy")
    ]
    judged, others = report_quality.table(results), [row for row in results if not metric_of(row).samples]
    title = html.escape(f"hybrid_jax: {data.name}, step {model.step:,}")
    body = [
        f"<h1>{title}</h1>",
        f'<p class="lead">{html.escape(report_results.summary(model, data, results))}</p>',
        f'<p class="facts">{html.escape(facts(model, data, metrics))}</p>',
        *([_section("Results", report_results.table(others))] if others or not judged else []),
        *([_section("Quality of the samples", judged)] if judged else []),
        *(_section(*section) for section in report_ood.sections(features, measured)),
        *(_section("Layers", _figure(*report_figures.layer_sweep(row, model.default_layer))) for row in sweeps),
        *(_section(*section) for section in report_robustness.sections(results, data)),
        _section("Training", _curves(metrics, model, results, reference_dir)),
    ]
    if sample_views is not None:
        table = report_views.recipe_table(model.config)
        body.append(_section("Views", table + _figure(*report_views.sheet(sample_views))))
    asked = model.config.eval.report_samples, model.config.seed
    body += [_section(*section) for section in report_samples.sections(features, *asked)]
    body += [
        _section("Nearest neighbours", _neighbours(features)),
        _section("Map of the features", _map(features)),
        "<details><summary>Configuration</summary>"
        f"<pre>{html.escape(config_lib.to_json(model.config))}</pre></details>",
    ]
    path = workdir / "report.html"
    page = _PAGE.format(title=title, style=_STYLE, body="\n".join(body))
    write_whole(path, printable(page, keep="\n"))
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
    drawn = report_figures.training_curves(metrics, model, results, comparison)
    note = html.escape(report_results.reference_note(comparison, model))
    grid = "".join(_figure(*figure) for figure in drawn)
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
    return f'<div class="legend">{dots}</div>{_figure(uri, caption)}'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _figure(uri: str, caption: str) -> str:
    text = html.escape(caption)
    return f'<figure><img src="{uri}" alt="{text}"><figcaption>{text}</figcaption></figure>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><main>
{body}
</main></body></html>
"""

_STYLE = """
body { margin: 0; background: #f6f7f9; color: #1c2530; font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 0 0 14px; }
section, details { background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; }
section, details { margin-top: 20px; padding: 20px 22px; }
.lead { font-size: 18px; margin: 0 0 8px; overflow-wrap: anywhere; }
.facts, .caption, figcaption, small, th { color: #566270; }
.facts { margin: 0; font-size: 14px; }
.caption, figcaption { font-size: 14px; line-height: 1.45; margin: 10px 0 0; max-width: 80ch; }
.note { margin: 0 0 18px; }
section > p { margin: 0 0 12px; }
.wide + figure { margin-top: 18px; }
section > figure + figure { margin-top: 28px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid #e1e5ea; padding: 6px 14px 6px 0; }
td { vertical-align: top; border-bottom: 1px solid #eceff2; padding: 8px 14px 8px 0; }
td small { display: block; font-size: 12.5px; line-height: 1.4; overflow-wrap: anywhere; }
.tight { white-space: nowrap; }
.good { color: #17703d; }
.bad { color: #b3261e; font-weight: 600; }
.grid { display: grid; gap: 24px 28px; }
.grid { grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); }
figure { margin: 0; }
img { max-width: 100%; height: auto; display: block; }
.neighbours { display: grid; gap: 12px; margin-bottom: 12px; min-width: 520px; }
.neighbours { grid-template-columns: 1fr 12px repeat(6, 1fr); }
.thumb:first-child { grid-column: 1 / span 1; margin-right: 0; }
.thumb:nth-child(2) { grid-column: 3; }
.thumb img { box-sizing: border-box; width: 100%; border: 4px solid #d5dae0; border-radius: 4px; }
.thumb.same img { border-color: #2e9e5b; }
.thumb.other img { border-color: #d0483e; }
.thumb figcaption { font-size: 12px; margin: 3px 0 0; text-align: center; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; margin-bottom: 10px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 6px; }
summary { cursor: pointer; font-weight: 600; }
pre { font-size: 13px; line-height: 1.4; overflow-x: auto; }
"""
