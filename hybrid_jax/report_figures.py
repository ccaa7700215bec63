"""Curves of the report, as PNG data URIs; matplotlib is imported only when one is drawn."""

import base64
import io
import math

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#222255", "#44bb99", "#999933")


def training_curves(metrics: list[dict], model, results: list[dict]) -> list[tuple[str, str]]:
    """Draws what was logged.

    Args:
      metrics: rows of metrics.jsonl, by step.
      model: names the branches, the tokens and the batch size.
      results: the likelihood's floor is drawn beside the generative loss.

    Returns:
      (PNG data URI, caption) of each figure; figures of absent branches are left out.
    """
    drawn = []
    if model.has_likelihood:
        drawn.append(_generative_curve(metrics, model.spec, results))
    if model.has_contrastive:
        drawn += _contrastive_curves(metrics, 2 * model.config.train.batch_size - 1)
    drawn.append(_gradient_norms(metrics))
    if any(row.get("encoder_gradient_cosine") is not None for row in metrics):
        caption = (
            "Cosine between the two losses' gradients on the encoder. Above 0 they help each other, at 0 "
            "they ignore each other, below 0 each undoes part of the other's work."
        )
        line = {"encoder_gradient_cosine": "cosine"}
        drawn.append((_lines(metrics, line, "gradient cosine", reference=(0, None)), caption))
    caption = "The step size of the optimiser: a linear warm-up, then the schedule's decay."
    drawn.append((_lines(metrics, {"learning_rate": "learning rate"}, "learning rate"), caption))
    return drawn


def _generative_curve(metrics: list[dict], spec, results: list[dict]) -> tuple[str, str]:
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
    reference = (floors[0], "histograms, test split") if floors else None
    line = {"generative_loss": "model, training batches"}
    return _lines(metrics, line, "nats/token", reference=reference, bits=exact), caption


def _contrastive_curves(metrics: list[dict], others: int) -> list[tuple[str, str]]:
    guess = (math.log(others), "blind guess")
    loss = _lines(metrics, {"contrastive_loss": "training batches"}, "contrastive loss, nats", reference=guess)
    loss_caption = (
        f"How hard it is to find a view's partner among {others:,} other views; lower is better. A curve "
        "that stays at the dashed line has learnt nothing, or its embeddings have collapsed to a point."
    )
    accuracy = _lines(metrics, {"contrastive_accuracy": "training batches"}, "contrastive accuracy", share=True)
    caption = f"How often the partner is the nearest of the {others:,} views. A blind guess: {1 / others:.2%}."
    return [(loss, loss_caption), (accuracy, caption)]


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


def _lines(
    metrics: list[dict],
    names: dict[str, str],
    label: str,
    reference: tuple[float, str | None] | None = None,
    log: bool = False,
    bits: bool = False,
    share: bool = False,
) -> str:
    """Returns a plot of logged values against the step, null ones left out.

    Args:
      metrics: rows of metrics.jsonl.
      names: {key: what the legend calls it}; keys that no row has are left out.
      label: of the vertical axis.
      reference: a height and what the legend calls it, or None; a dashed line.
      log: a logarithmic axis.
      bits: a second axis in bits, of an axis in nats.
      share: the axis spans [0, 1].
    """
    from matplotlib.ticker import LogLocator

    figure, axes = new_figure(4.7, 2.8)
    present = {key: name for key, name in names.items() if any(row.get(key) is not None for row in metrics)}
    for colour, (key, name) in zip(COLOURS, present.items(), strict=False):
        steps, values = zip(*[(r["step"], r[key]) for r in metrics if r.get(key) is not None], strict=True)
        axes.plot(steps, values, color=colour, label=name, marker="o" if len(steps) == 1 else None)
    if reference:
        axes.axhline(reference[0], color="#566270", linestyle="--", linewidth=1.2, label=reference[1])
    if log and present:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    if share:
        axes.set_ylim(0, 1)
    if len(present) > 1 or (reference and reference[1]):
        axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel="step", ylabel=label)
    if bits:
        ln2 = math.log(2)
        right = axes.secondary_yaxis("right", functions=(lambda nats: nats / ln2, lambda bits: bits * ln2))
        right.set_ylabel("bits/dim", fontsize=9)
        right.tick_params(labelsize=8, colors="#3c4753")
    return figure_uri(figure)


def new_figure(width: float, height: float):
    """Returns an empty matplotlib figure, in inches, and its axes in the report's style."""
    from matplotlib.figure import Figure  # not pyplot: no display and no global state

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e8ebef", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=8, colors="#3c4753")
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    return figure, axes


def figure_uri(figure) -> str:
    """Returns a matplotlib figure as a PNG data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return data_uri(buffer.getvalue())


def data_uri(png: bytes) -> str:
    """Returns a PNG file's bytes as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
