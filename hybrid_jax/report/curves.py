"""The report's training curves, and the accuracy of every layer."""

import math
import pathlib
import statistics

from hybrid_jax.report import reference
from hybrid_jax.report.page import Section, figure, folded, grid, paragraph
from hybrid_jax.report.plots import COLOURS, GREY, MUTED, figure_uri, new_figure
from hybrid_jax.report.reference import Comparison
from hybrid_jax.report.verdicts import METRICS

# The name in the legend, and its (step, value).
Curve = tuple[str, list[tuple[int, float]]]

MOST_DIFFERENCES = 5
_SHOWN = 4  # figures; those after them are folded


def sections(metrics: list[dict], model, results: list[dict], reference_dir: pathlib.Path) -> list[Section]:
    """Returns the section of the training curves; arguments as in `training_curves`."""
    if not metrics:
        return [("Training curves", paragraph("There is no training log (metrics.jsonl) beside this report."))]
    comparison = reference.comparable(model.config, reference.load(reference_dir))
    figures = [figure(*drawn) for drawn in training_curves(metrics, model, results, comparison)]
    body = grid(figures[:_SHOWN]) + paragraph(reference_note(comparison, model), "note")
    if figures[_SHOWN:]:
        body += folded("Balance of the losses, learning rate", grid(figures[_SHOWN:]))
    return [("Training curves", body)]


def training_curves(
    metrics: list[dict], model, results: list[dict], comparison: Comparison | None
) -> list[tuple[str, str]]:
    """Draws the logged metrics.

    Args:
      metrics: rows of metrics.jsonl, by step.
      model: its branches, tokens and batch size.
      results: the floor of the likelihood is drawn beside the generative loss.
      comparison: whose curves are drawn behind the run's; None = there are none.

    Returns:
      (PNG data URI, caption) of each figure, the losses first; figures of absent branches are left out.
    """
    # A run that goes on is compared up to its planned end, a short one no further than it goes.
    end = max(metrics[-1]["step"], model.config.train.total_steps)

    def behind(key: str) -> Curve | None:
        points = comparison.points(key, end) if comparison else []
        return (f"reference: {comparison.reference.name}", points) if comparison and points else None

    drawn = []
    if model.has_likelihood:
        drawn.append(_generative_loss(metrics, model.spec, results, behind("generative_loss")))
    if model.has_contrastive:
        others = 2 * model.config.train.batch_size - 1
        drawn.append(_contrastive_loss(metrics, others, behind("contrastive_loss")))
        drawn.append(_contrastive_accuracy(metrics, others, behind("contrastive_accuracy")))
    drawn.append(_gradient_norms(metrics))
    if any(row.get("encoder_gradient_cosine") is not None for row in metrics):
        drawn += [_gradient_balance(metrics, model.config.objective), _gradient_cosine(metrics)]
    caption = "Learning rate: a linear warm-up, then the decay of the schedule."
    drawn.append((_lines(metrics, {"learning_rate": "learning rate"}, "learning rate"), caption))
    return drawn


def _generative_loss(metrics: list[dict], spec, results: list[dict], behind: Curve | None) -> tuple[str, str]:
    exact = spec.kind == "intensity" and spec.vocab_size == 256
    nats = {"bits_per_dim": math.log(2), "nats_per_token": 1}
    floors = [
        min(row["floor"].values()) * nats[row["metric"]]
        for row in results
        if row["metric"] in nats and row.get("floor")
    ]
    caption = (
        "Generative loss: mean negative log-likelihood per token in the training batches; lower is better. A uniform "
        f"guess costs log {spec.vocab_size} = {math.log(spec.vocab_size):.2f} nats."
    )
    if floors:
        caption += " Below the dashed line the model is better than a histogram of every position."
    level = (floors[0], "histograms, test split") if floors else None
    line = {"generative_loss": "model, training batches"}
    return _lines(metrics, line, "nats/token", level=level, behind=behind, bits=exact), caption


def _contrastive_loss(metrics: list[dict], others: int, behind: Curve | None) -> tuple[str, str]:
    guess = (math.log(others), "random guess")
    line = {"contrastive_loss": "training batches"}
    caption = (
        f"Contrastive loss: finding the other view of an image among {others:,} views; lower is better. A curve that "
        "stays at the dashed line means that nothing is learnt, or that all embeddings have collapsed to one point."
    )
    return _lines(metrics, line, "contrastive loss, nats", level=guess, behind=behind), caption


def _contrastive_accuracy(metrics: list[dict], others: int, behind: Curve | None) -> tuple[str, str]:
    line = {"contrastive_accuracy": "training batches"}
    caption = (
        f"Contrastive accuracy: how often the other view of the image is the nearest of the {others:,} views. A random "
        f"guess: {1 / others:.2%}."
    )
    return _lines(metrics, line, "contrastive accuracy", behind=behind, share=True), caption


def _gradient_norms(metrics: list[dict]) -> tuple[str, str]:
    lines = {
        "grad_norm": "whole loss, all parameters",
        "encoder_gradient_norm_generative": "generative loss, encoder",
        "encoder_gradient_norm_contrastive": "contrastive loss, encoder",
    }
    caption = "Gradient norm. It should settle: steady growth or many spikes mean that the learning rate is too high."
    return _lines(metrics, lines, "gradient norm", log=True), caption


def _gradient_balance(metrics: list[dict], objective) -> tuple[str, str]:
    """The ratio of the two losses' gradient norms on the encoder, which include the losses' weights."""
    generative, contrastive = "encoder_gradient_norm_generative", "encoder_gradient_norm_contrastive"
    # The pixel head starts at zero and lets no gradient through at the first step.
    rows = [row for row in metrics if row.get(generative) and row.get(contrastive)]
    ratios = [{"step": row["step"], "ratio": row[contrastive] / row[generative]} for row in rows]
    caption = (
        "Balance of the losses: the gradient norm of the contrastive loss on the encoder over that of the generative "
        "loss, both with their weights. Above the dashed line the contrastive loss dominates, below it the generative "
        "loss."
    )
    if ratios:
        usual = statistics.median(row["ratio"] for row in ratios[len(ratios) // 2 :])
        weight = objective.contrastive_weight
        caption += (
            f" Median of the second half of the run: {usual:.2g}. The ratio is proportional to "
            f"objective.contrastive_weight, now {weight:g}: about {weight / usual:.2g} would make the norms equal. "
            "Equality is not a goal in itself, but below 0.1 or above 10 one loss hardly shapes the features."
        )
    line = {"ratio": "contrastive / generative"}
    return _lines(ratios, line, "ratio of gradient norms", level=(1, None), log=True), caption


def _gradient_cosine(metrics: list[dict]) -> tuple[str, str]:
    caption = (
        "Cosine of the angle between the two losses' gradients on the encoder. Above 0 the losses help each other, "
        "below 0 they work against each other. If it stays below 0, lower the weight of the loss that matters less to "
        "you (objective.contrastive_weight or objective.generative_weight), or increase model.width."
    )
    return _lines(metrics, {"encoder_gradient_cosine": "cosine"}, "gradient cosine", level=(0, None)), caption


def reference_note(comparison: Comparison | None, model) -> str:
    """Returns the origin of the grey curves, the differences of this run, and how to read a gap between the two."""
    if comparison is None:
        return "There is no reference curve: none was recorded on this data with these tokens."
    reference = comparison.reference
    values = [(METRICS[name], reference.result[name]) for name in METRICS if name in reference.result]
    reached = ", ".join(f"{metric.title} {metric.text(value)}" for metric, value in values)
    differs = [f"{name} {own} (reference {theirs})" for name, own, theirs in comparison.differences[:MOST_DIFFERENCES]]
    if len(comparison.differences) > len(differs):
        differs.append(f"{len(comparison.differences) - len(differs)} more fields")
    text = (
        f"Grey: the reference run {reference.name} of {reference.config.train.total_steps:,} steps, whose final "
        f"results are: {reached}."
    )
    if differs:
        text += (
            f" This run differs in: {', '.join(differs)}. If none of these explains a loss that stays above the grey "
            "curve long after the warm-up, or an accuracy below it, check the learning rate and the data."
        )
    else:
        text += (
            " This run has the same settings, so the curves should agree up to the randomness of the seed. If they do "
            "not, check the versions of the libraries and changes to the code."
        )
    if model.has_contrastive and "contrastive_loss" not in comparison.curves:
        text += (
            " There is no reference for the contrastive curves: batch size, temperature and views set their scale, "
            "and no recorded run has the same."
        )
    return text


def layer_sections(results: list[dict], default_layer: str) -> list[Section]:
    """Returns the section of each linear probe that was fitted to every layer."""
    rows = [r for r in results if r["metric"] == "linear_probe_accuracy" and r.get("layer_validation_accuracy")]
    return [("Accuracy by layer", figure(*layer_sweep(row, default_layer), beside=True)) for row in rows]


def layer_sweep(row: dict, default_layer: str) -> tuple[str, str]:
    """Draws the validation accuracy of every layer, from the first at the top to the last.

    Args:
      row: the linear probe's result with `layer_validation_accuracy`.
      default_layer: is marked, as is the layer that the row chose.

    Returns:
      PNG data URI and caption.
    """
    scores, count = row["layer_validation_accuracy"], row["layer_choice_n_validation"]
    figure, axes = new_figure(5.6, 0.8 + 0.28 * len(scores))
    axes.plot(list(scores.values()), range(len(scores)), color=GREY, linewidth=1)
    for place, (name, score) in enumerate(scores.items()):
        marks = [mark for mark, layer in (("best", row["layer"]), ("default", default_layer)) if layer == name]
        colour = COLOURS[{"best": 2, "default": 5}[marks[0]]] if marks else COLOURS[0]
        error = math.sqrt(score * (1 - score) / count)
        axes.errorbar(score, place, xerr=error, fmt="o", color=colour, markersize=6, elinewidth=1.4)
        text = f"{score:.1%}  {' and '.join(marks)}"
        axes.text(1.01, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=colour)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("validation accuracy")
    caption = (
        f"Linear probe of each layer, from the first to the last: trained on {row['layer_choice_n_train']:,} training "
        f"images at C = {row['layer_choice_C']:g}, evaluated on {count:,} validation images; bars are one standard "
        "error. The best layer of the results was chosen from these. The probes of the results have more labels and a "
        "tuned C, so their accuracies (and their floor) differ. Layers within two bars of each other do not differ "
        "clearly."
    )
    return figure_uri(figure), caption


def _lines(
    metrics: list[dict],
    names: dict[str, str],
    label: str,
    level: tuple[float, str | None] | None = None,
    behind: Curve | None = None,
    log: bool = False,
    bits: bool = False,
    share: bool = False,
) -> str:
    """Returns a plot of logged values against the step, null ones left out.

    Args:
      metrics: rows of metrics.jsonl.
      names: {key: its name in the legend}; keys that no row has are left out.
      label: of the vertical axis.
      level: a height and its name in the legend, or None; a dashed line.
      behind: another run's curve, in grey.
      log: a logarithmic axis.
      bits: a second axis in bits, of an axis in nats.
      share: the axis spans [0, 1].
    """
    figure, axes = new_figure()
    logged = _logged(metrics, names, log)
    curves = [(GREY, behind)] if behind else []
    curves += zip(COLOURS, logged, strict=False)
    for colour, (name, points) in curves:
        width, marker = 3 if colour == GREY else 1.5, "o" if len(points) == 1 else None
        axes.plot(*zip(*points, strict=True), color=colour, label=name, marker=marker, linewidth=width)
    if level:
        axes.axhline(level[0], color=MUTED, linestyle="--", linewidth=1.2, label=level[1])
    if log and logged:
        _logarithmic(axes)
    if share:
        axes.set_ylim(0, 1)
    if len(curves) > 1 or (level and level[1]):
        axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel="step", ylabel=label)
    if bits:
        ln2 = math.log(2)
        right = axes.secondary_yaxis("right", functions=(lambda nats: nats / ln2, lambda bits: bits * ln2))
        right.set_ylabel("bits/dim", fontsize=9)
        right.tick_params(labelsize=8, colors="#3c4753")
    return figure_uri(figure)


def _logged(metrics: list[dict], names: dict[str, str], log: bool) -> list[Curve]:
    """Returns (name, [(step, value)]) of the keys that a row has; `log` leaves out what is not above 0."""
    found = []
    for key, name in names.items():
        rows = [row for row in metrics if row.get(key) is not None]
        if rows:
            # A gradient can be 0, which has no place on a logarithmic axis.
            found.append((name, [(row["step"], row[key]) for row in rows if row[key] > 0 or not log]))
    return found


def _logarithmic(axes) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
