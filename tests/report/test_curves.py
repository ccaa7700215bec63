"""Curves: what is drawn, the reference behind it, and what the captions say."""

import json

import pytest

from hybrid_jax import metrics
from hybrid_jax.config import default_config
from hybrid_jax.report import curves, reference
from hybrid_jax.report.plots import GREY
from tests.report.fakes import HOSTILE, make_model, make_sweep, write_metrics


def make_comparison(differences=(), shared=(*reference.GENERATIVE, *reference.CONTRASTIVE)):
    curve = [{"step": step, **dict.fromkeys(shared, 0.5)} for step in (1, 500, 1000, 5000)]
    run = reference.Reference("quick", default_config(), {"knn_accuracy": 0.25, "bits_per_dim": 3.5}, curve)
    return reference.Comparison(run, shared, differences)


@pytest.fixture
def figures(monkeypatch):
    """Keeps the matplotlib figures that are drawn."""
    kept = []
    monkeypatch.setattr(curves, "figure_uri", lambda figure: kept.append(figure) or "")
    return kept


def test_a_reference_that_fits_lies_behind_the_curves(tmp_path):
    write_metrics(tmp_path)
    stored = {"config": json.loads(make_model().config.to_json()), "result": {"knn_accuracy": 0.25}}
    curve = [{"step": step, **dict.fromkeys((*reference.GENERATIVE, *reference.CONTRASTIVE), 1.0)} for step in (1, 90)]
    (tmp_path / "mine.json").write_text(json.dumps({**stored, "curve": curve}))
    [(_, text)] = curves.sections(metrics.read(tmp_path), make_model(), [], tmp_path)
    assert "Grey: the reference run mine of 1,000 steps, whose final results are: k-NN accuracy 25.0%." in text
    assert "This run has the same settings" in text and "no reference for" not in text


def test_the_reference_is_drawn_in_grey_as_far_as_the_run_is_planned(tmp_path, figures):
    write_metrics(tmp_path)
    comparison = make_comparison(shared=reference.GENERATIVE)
    curves.training_curves(metrics.read(tmp_path), make_model(), [], comparison)
    behind, own = figures[0].axes[0].lines
    assert behind.get_label() == "reference: quick" and behind.get_color() == GREY
    assert list(behind.get_xdata()) == [1, 500, 1000] and own.get_xdata()[-1] == 181
    assert all(GREY not in [line.get_color() for line in f.axes[0].lines] for f in figures[1:])


def test_the_note_names_a_handful_of_differences():
    differences = tuple((f"model.x{i}", i, HOSTILE) for i in range(7))
    text = curves.reference_note(make_comparison(differences, reference.GENERATIVE), make_model())
    assert "results are: k-NN accuracy 25.0%, Negative log-likelihood 3.500 bits/dim" in text
    assert f"model.x4 4 (reference {HOSTILE}), 2 more fields." in text and "model.x5" not in text
    assert "There is no reference for the contrastive curves" in text
    text = curves.reference_note(make_comparison(differences[:1], reference.GENERATIVE), make_model(True, False))
    assert "differs in: model.x0" in text and "more fields" not in text and "no reference for" not in text


def test_gradients_are_weighed_against_each_other(figures):
    keys = ("encoder_gradient_norm_contrastive", "encoder_gradient_norm_generative")
    rows = [{"step": i, "encoder_gradient_cosine": 0.5, **dict(zip(keys, (2.0, i), strict=True))} for i in range(9)]
    drawn = curves.training_curves(rows, make_model(), [], None)
    assert "second half of the run: 0.31" in drawn[4][1] and "now 0.1: about 0.32 would make" in drawn[4][1]
    ratio, one = figures[4].axes[0].lines
    # Where one norm is 0 there is no ratio, and no point on a logarithmic axis.
    assert list(ratio.get_xdata()) == list(range(1, 9)) and list(ratio.get_ydata()) == [2 / i for i in range(1, 9)]
    assert list(figures[3].axes[0].lines[0].get_xdata()) == list(range(1, 9))
    assert list(one.get_ydata()) == [1, 1] and figures[4].axes[0].get_yscale() == "log"


@pytest.mark.parametrize(
    ("best", "marks"), [("encoder/2", {2: "best", 3: "default"}), ("encoder", {3: "best and default"})]
)
def test_layers_are_drawn_in_order_and_marked(figures, best, marks):
    _, caption = curves.layer_sweep(make_sweep(best), "encoder")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(make_sweep()["layer_validation_accuracy"])
    assert axes.yaxis_inverted() and "5,000 training images at C = 0.1" in caption
    told = [text.get_text() for text in axes.texts]
    assert told[4].strip() == "50.0%" and all(told[i].endswith(mark) for i, mark in marks.items())
    assert sum(word in text for text in told for word in ("best", "default")) == 2
