"""Curves of the report, as PNG data URIs; matplotlib is imported only when one is drawn."""

import base64
import io
import math
import statistics

from hybrid_jax.report.reference import Comparison

# What the legend calls it, and its (step, value).
Curve = tuple[str, list[tuple[int, float]]]

GREY = "#c3c9d0"
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#222255", "#44bb99", "#999933")


def training_curves(
    metrics: list[dict], model, results: list[dict], comparison: Comparison | None
) -> list[tuple[str, str]]:
    """Draws what was logged.

    Args:
      metrics: rows of metrics.jsonl, by step.
      model: names the branches, the tokens and the batch size.
      results: the likelihood's floor is drawn beside the generative loss.
      comparison: whose curves lie behind the run's; None = there are none.

    Returns:
      (PNG data URI, caption) of each figure; figures of absent branches are left out.
    """
    # A run that goes on is compared up to its planned end, a short one no further than it goes.
    end = max(metrics[-1]["step"], model.config.train.total_steps)

    def behind(key: str) -> Curve | None:
        points = comparison.points(key, end) if comparison else []
        return (f"reference: {comparison.reference.name}", points) if comparison and points else None

    drawn = []
    if model.has_likelihood:
        drawn.append(_generative_curve(metrics, model.spec, results, behind("generative_loss")))
    if model.has_contrastive:
        others = 2 * model.config.train.batch_size - 1
        drawn.append(_contrastive_loss(metrics, others, behind("contrastive_loss")))
        drawn.append(_contrastive_accuracy(metrics, others, behind("contrastive_accuracy")))
    drawn.append(_gradient_norms(metrics))
    if any(row.get("encoder_gradient_cosine") is not None for row in metrics):
        drawn += [_gradient_balance(metrics, model.config.objective), _gradient_cosine(metrics)]
    caption = "The step size of the optimiser: a linear warm-up, then the schedule's decay."
    drawn.append((_lines(metrics, {"learning_rate": "learning rate"}, "learning rate"), caption))
    return drawn


def _generative_curve(metrics: list[dict], spec, results: list[dict], behind: Curve | None) -> tuple[str, str]:
    exact = spec.kind == "intensity" and spec.vocab_size == 256
    nats = {"bits_per_dim": math.log(2), "nats_per_token": 1}
    floors = [
        min(row["floor"].values()) * nats[row["metric"]]
        for row in results
        if row["metric"] in nats and row.get("floor")
    ]
    caption = (
        "Mean negative log-likelihood of a token in the training batches; lower is better. A blind guess "
        f"costs log {spec.vocab_size} = {math.log(spec.vocab_size):.2f} nats."
    )
    if floors:
        caption += " Below the dashed line the model knows more than a histogram of every position."
    level = (floors[0], "histograms, test split") if floors else None
    line = {"generative_loss": "model, training batches"}
    return _lines(metrics, line, "nats/token", level=level, behind=behind, bits=exact), caption


def _contrastive_loss(metrics: list[dict], others: int, behind: Curve | None) -> tuple[str, str]:
    guess = (math.log(others), "blind guess")
    line = {"contrastive_loss": "training batches"}
    caption = (
        f"How hard it is to find a view's partner among {others:,} other views; lower is better. A curve "
        "that stays at the dashed line has learnt nothing, or its embeddings have collapsed to a point."
    )
    return _lines(metrics, line, "contrastive loss, nats", level=guess, behind=behind), caption


def _contrastive_accuracy(metrics: list[dict], others: int, behind: Curve | None) -> tuple[str, str]:
    line = {"contrastive_accuracy": "training batches"}
    caption = f"How often the partner is the nearest of the {others:,} views. A blind guess: {1 / others:.2%}."
    return _lines(metrics, line, "contrastive accuracy", behind=behind, share=True), caption


def _gradient_norms(metrics: list[dict]) -> tuple[str, str]:
    lines = {
        "grad_norm": "whole loss, all parameters",
        "encoder_gradient_norm_generative": "generative loss, encoder",
        "encoder_gradient_norm_contrastive": "contrastive loss, encoder",
    }
    caption = (
        "Length of the gradient. It should settle; lasting growth or many spikes mean that the learning "
        "rate is too high."
    )
    return _lines(metrics, lines, "gradient norm", log=True), caption


def _gradient_balance(metrics: list[dict], objective) -> tuple[str, str]:
    """The ratio of the two losses' gradient norms on the encoder, which include the losses' weights."""
    generative, contrastive = "encoder_gradient_norm_generative", "encoder_gradient_norm_contrastive"
    # The pixel head starts at zero and lets no gradient through at the first step.
    rows = [row for row in metrics if row.get(generative) and row.get(contrastive)]
    ratios = [{"step": row["step"], "ratio": row[contrastive] / row[generative]} for row in rows]
    caption = (
        "How much harder the contrastive loss pulls at the encoder than the generative one, their weights included. "
        "Above the dashed line the contrastive loss steers it, below the generative one."
    )
    if ratios:
        usual = statistics.median(row["ratio"] for row in ratios[len(ratios) // 2 :])
        weight = objective.contrastive_weight
        caption += (
            f" Second half of the run: {usual:.2g} (median). To shift it, change objective.contrastive_weight, now "
            f"{weight:g}: it moves in proportion, so about {weight / usual:.2g} would make the pulls equal. Equal is "
            "no goal in itself; below 0.1 or above 10 one loss hardly shapes the features."
        )
    line = {"ratio": "contrastive / generative"}
    return _lines(ratios, line, "ratio of gradient norms", level=(1, None), log=True), caption


def _gradient_cosine(metrics: list[dict]) -> tuple[str, str]:
    caption = (
        "Cosine between the two losses' gradients on the encoder. Above 0 they help each other, at 0 they ignore each "
        "other, below 0 each undoes part of the other's work. If it stays below 0, lower the weight of the loss you "
        "need less (objective.contrastive_weight or objective.generative_weight), or try a larger model.width."
    )
    return _lines(metrics, {"encoder_gradient_cosine": "cosine"}, "gradient cosine", level=(0, None)), caption


def layer_sweep(row: dict, default_layer: str) -> tuple[str, str]:
    """Draws the validation accuracy of every layer, from the first at the top to the last.

    Args:
      row: the linear probe's result with `layer_validation_accuracy`.
      default_layer: is marked, as is the layer that the row chose.

    Returns:
      PNG data URI and caption.
    """
    scores, count = row["layer_validation_accuracy"], row["layer_choice_n_validation"]
    figure, axes = new_figure(8.6, 0.8 + 0.24 * len(scores))
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
        f"Linear probes on each layer, from the first to the last: fitted on {row['layer_choice_n_train']:,} training "
        f"images at C = {row['layer_choice_C']:g}, judged on {count:,} validation images; bars are one standard error. "
        "This is how the best layer above was chosen. The probes above use more labels and tune C, so their "
        "accuracies (and their floor) differ from these. Layers within two bars of each other cannot be told apart."
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
      names: {key: what the legend calls it}; keys that no row has are left out.
      label: of the vertical axis.
      level: a height and what the legend calls it, or None; a dashed line.
      behind: another run's curve, in grey.
      log: a logarithmic axis.
      bits: a second axis in bits, of an axis in nats.
      share: the axis spans [0, 1].
    """
    figure, axes = new_figure(4.7, 2.8)
    present = {key: name for key, name in names.items() if any(row.get(key) is not None for row in metrics)}
    curves: list[tuple[str, Curve]] = [(GREY, behind)] if behind else []
    for colour, (key, name) in zip(COLOURS, present.items(), strict=False):
        # A gradient can be 0, which has no place on a logarithmic axis.
        drawn = [row for row in metrics if row.get(key) is not None and (row[key] > 0 or not log)]
        curves.append((colour, (name, [(row["step"], row[key]) for row in drawn])))
    for colour, (name, points) in curves:
        width, marker = 3 if colour == GREY else 1.5, "o" if len(points) == 1 else None
        axes.plot(*zip(*points, strict=True), color=colour, label=name, marker=marker, linewidth=width)
    if level:
        axes.axhline(level[0], color="#566270", linestyle="--", linewidth=1.2, label=level[1])
    if log and present:
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


def _logarithmic(axes) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def new_figure(width: float, height: float):
    """Returns an empty matplotlib figure, in inches, and its axes in the report's style."""
    from matplotlib.figure import Figure  # not pyplot: no display and no global state

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, styled(figure.add_subplot())


def styled(axes):
    """Gives matplotlib axes the report's style and returns them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e8ebef", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=8, colors="#3c4753")
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    return axes


def figure_uri(figure) -> str:
    """Returns a matplotlib figure as a PNG data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return data_uri(buffer.getvalue())


def data_uri(png: bytes) -> str:
    """Returns a PNG file's bytes as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
