"""The report: every situation renders, nothing hostile gets through, and its words are honest."""

import json
import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from hybrid_jax import corruptions, evaluate, metrics
from hybrid_jax.config import default_config
from hybrid_jax.evaluators.features import FeatureStore
from hybrid_jax.models.tokens import TokenSpec
from hybrid_jax.report import curves as report_curves
from hybrid_jax.report import images as report_images
from hybrid_jax.report import reference, robustness, run_report
from hybrid_jax.report import results as report_results
from hybrid_jax.report import views as report_views
from hybrid_jax.utils import image_grid

HOSTILE = "<script>alert('x')</script>"
VOID = {"img", "meta", "br"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def make_model(generative=True, contrastive=True):
    config = default_config()
    config.data.path = HOSTILE
    config.eval.report_samples = 0
    flat = lambda images: images.reshape(len(images), -1)[:, ::9].astype(np.float32)
    return SimpleNamespace(
        config=config,
        spec=TokenSpec("intensity", 256, 4, 8, 8, 1),
        has_likelihood=generative,
        has_contrastive=contrastive,
        step=1500,
        default_layer="encoder",
        features=lambda images: {"encoder": flat(images)},
        embed=lambda images, layer=None: flat(images),
    )


def make_data(labels=True, test=True, validation=True, classes=3, channels=1):
    rng = np.random.default_rng(0)

    def split(n):
        y = np.arange(n, dtype=np.int32) % classes
        images = rng.integers(0, 60, (n, 8, 8, channels)) + 60 * (y % 3)[:, None, None, None]
        return SimpleNamespace(images=images.astype(np.uint8), labels=y if labels else None)

    return SimpleNamespace(
        train=split(60),
        validation=split(12) if validation else None,
        test=split(20) if test else None,
        class_names=[HOSTILE, "_hidden", "$\\frac$", *map(str, range(3, classes))] if labels else None,
        name=f"mine & {HOSTILE}",
        fingerprint="f",
    )


def make_results():
    common = {"n": 2000, "split": "test", "standard_error": 0.009}
    probe = {"metric": "linear_probe_accuracy", "protocol": "linear-probe-v1", "floor": {"raw pixels": 0.8}}
    likelihood = {"metric": "bits_per_dim", "protocol": "likelihood-v1", "train_value": 3.0, "train_n": 2000}
    likelihood["floor"] = {"per-position histogram": 4.6}
    knn = {"metric": "knn_accuracy", "protocol": "knn-v1", "floor": {"raw pixels": 0.8}}
    rows = [
        {**probe, "value": 0.85, "variant": "default", "layer": HOSTILE},
        {**probe, "value": 0.7, "variant": "last_four", "C": 1.0, "c_values": [0.1, 1.0]},
        {**knn, "value": 0.74},
        {**likelihood, "value": 3.1},
    ]
    return [{**common, **row} for row in rows]


def write_metrics(workdir, generative=True, contrastive=True, gradients=True):
    with open(workdir / "metrics.jsonl", "w") as file:
        for step in range(1, 200, 20):
            row = {
                "step": step,
                "loss": 5.0,
                "learning_rate": 1e-3,
                "grad_norm": 2.0,
                "images_per_second": 800.0,
            }
            row["generative_loss"] = 5.5 - step / 100 if generative else None
            row["contrastive_loss"] = 6.0 - step / 100 if contrastive else None
            row["contrastive_accuracy"] = step / 300 if contrastive else None
            if gradients and generative and contrastive:
                row["encoder_gradient_cosine"] = math.sin(step)
                row["encoder_gradient_norm_generative"] = row["encoder_gradient_norm_contrastive"] = 1.0
            file.write(json.dumps(row) + "\n")
        file.write('{"step": 201, "loss": 4.')  # killed while it wrote


def make_sweep(best="encoder/2"):
    names = ("embedding", "encoder/1", "encoder/2", "encoder", "decoder/1", "decoder")
    row = {**make_results()[0], "variant": "best_layer", "layer": best, "layer_choice_C": 0.1}
    counts = {"layer_choice_n_train": 5000, "layer_choice_n_validation": 1000}
    return {**row, **counts, "layer_validation_accuracy": dict(zip(names, (0, 0.5, 1, 0.6, 0.5, 0.4), strict=True))}


def make_recipe(**changes):
    config = default_config()
    config.augment.update(changes)
    return config


def make_views(share=0.5):
    return evaluate.sample_views(make_recipe(view_keep=share), make_data())


def make_comparison(differences=(), curves=(*reference.GENERATIVE, *reference.CONTRASTIVE)):
    curve = [{"step": step, **dict.fromkeys(curves, 0.5)} for step in (1, 500, 1000, 5000)]
    run = reference.Reference("quick", default_config(), {"knn_accuracy": 0.25, "bits_per_dim": 3.5}, curve)
    return reference.Comparison(run, curves, differences)


@pytest.fixture
def figures(monkeypatch):
    """Keeps the matplotlib figures that are drawn."""
    kept = []
    monkeypatch.setattr(report_curves, "figure_uri", lambda figure: kept.append(figure) or "")
    return kept


def render(tmp_path, model, data, results, views=None):
    path = run_report.write_report(tmp_path, model, data, results, views, reference_dir=tmp_path)
    assert path == tmp_path / "report.html"
    text = path.read_text("utf-8")
    page = Page(text)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "http" not in text and "@import" not in text and "url(" not in text
    return page, " ".join(page.text)


def test_the_hybrid_with_everything(tmp_path):
    write_metrics(tmp_path)
    page, text = render(tmp_path, make_model(), make_data(), [*make_results(), make_sweep()], make_views())
    assert text.count(HOSTILE) > 4, "names are shown, escaped"
    for expected in (
        "linear-probe-v1",
        "knn-v1",
        "likelihood-v1",
        "2,000 test",
        "After 1,500 steps",
        "85.0%",
    ):
        assert expected in text
    for expected in ("undoes part", "two augmented views", "of 48 agree", "test split", "learning_rate"):
        assert expected in text
    for expected in ("No reference curve is drawn", "judged on 1,000 validation images", "grey_small", "augment.blur"):
        assert expected in text
    # The layers, seven curves, a sheet of views, a map, and 8 queries with 6 neighbours each.
    assert page.tags.count("img") == 1 + 7 + 1 + 1 + 8 * 7


def test_no_labels_no_test_split(tmp_path):
    page, text = render(tmp_path, make_model(), make_data(labels=False, test=False), [])
    assert "nothing was evaluated" in text and "There are no results" in text and "; no labels" in text
    assert "Not measured: linear probe (no test split), " in text and ", likelihood (no test split)." in text
    assert "images of the validation split" in text and "agree" not in text
    assert "There is no training log" in text
    assert page.tags.count("img") == 1 + 8 * 7


def test_only_training_images_are_never_their_own_neighbours(tmp_path):
    data = make_data(test=False, validation=False)
    rows, caption = report_images.neighbours(FeatureStore(make_model(), data))
    assert "images of the train split" in caption
    assert all(row[0].uri not in [cell.uri for cell in row[1:]] for row in rows)
    render(tmp_path, make_model(), data, [])


@pytest.mark.parametrize(
    ("generative", "contrastive", "curves", "kind"),
    [(True, False, 3, "generative only"), (False, True, 4, "contrastive only")],
)
def test_one_branch(tmp_path, generative, contrastive, curves, kind):
    write_metrics(tmp_path, generative, contrastive)
    results = make_results() if generative else make_results()[:3]
    page, text = render(tmp_path, make_model(generative, contrastive), make_data(channels=3), results)
    assert f"Model: {kind}" in text
    assert page.tags.count("img") == curves + 1 + 8 * 7
    assert ("likelihood (no generative branch)." in text) == (not generative)


def test_many_classes_share_one_grey(tmp_path):
    _, text = render(tmp_path, make_model(), make_data(classes=15), [])
    assert "all other classes" in text


def test_tiny_data_still_renders(tmp_path):
    data = make_data(test=False, validation=False)
    for count in (3, 1):
        data.train = SimpleNamespace(images=data.train.images[:count], labels=data.train.labels[:count])
        _, text = render(tmp_path, make_model(), data, [])
        assert f"{count} train" in text and "Nearest neighbours" in text


def test_the_summary_says_what_is_absent_and_why():
    text = report_results.summary(make_model(), make_data(labels=False), make_results()[3:])
    assert text.endswith("Not measured: linear probe (no labels), few labels (no labels), k-NN (no labels).")
    text = report_results.summary(make_model(), make_data(), make_results()[:2])
    assert text.endswith(", k-NN (not asked for), likelihood (not asked for).")


def test_the_summary_tells_the_first_row_of_each_metric():
    text = report_results.summary(make_model(), make_data(), make_results())
    assert "linear probe, default layer 85.0% (raw pixels 80.0%: better than its floor by 5.0 points)" in text
    assert "k-NN 74.0% (raw pixels 80.0%: worse than its floor by 6.0 points)" in text
    assert "likelihood 3.100 bits/dim (per-position histogram 4.600 bits/dim: better than" in text
    assert "70.0%" not in text


@pytest.mark.parametrize(
    ("metric", "value", "more", "expected"),
    [
        ("knn_accuracy", 0.81, {"standard_error": 0.01}, "no clear difference, 1.0 points"),
        ("knn_accuracy", 0.70, {"standard_error": 0.01}, "worse than its floor by 10.0 points"),
        ("bits_per_dim", 0.9, {}, "worse than its floor by 0.100 bits/dim"),
        ("bits_per_dim", 0.7, {}, "better than its floor by 0.100 bits/dim"),
        ("knn_accuracy", 0.95, {"floor": {"a": 0.9, "b": 0.1}}, "better than its floor by 5.0 points"),
        ("knn_accuracy", 0.95, {"floor": None}, "no floor applies"),
        ("some_new_score", 1.0, {}, "better than its floor by 0.200"),
    ],
)
def test_verdicts(metric, value, more, expected):
    row = {"metric": metric, "value": value, "floor": {"raw": 0.8}, **more}
    assert report_results.verdict(row) == expected


def test_details_warn_of_an_edge_and_of_an_unfinished_fit():
    row = {**make_results()[1], "converged": False, "note": HOSTILE}
    text = report_results.table([row])
    assert "the largest C that was tried" in text and "iteration limit" in text and HOSTILE not in text


def test_known_features_are_not_computed_again(tmp_path):
    model, data = make_model(), make_data()
    store = FeatureStore(model, data)
    for split in ("train", "test"):
        store.layers(split)
    # Calling either would now be a TypeError.
    model.features = model.embed = None
    assert run_report.write_report(tmp_path, model, data, [], None, store).stat().st_size > 0


def test_thumbnails_keep_proportions_and_become_rgb():
    assert image_grid.resized(np.zeros((28, 14, 1), np.uint8)).shape == (84, 42, 3)
    assert image_grid.resized(np.zeros((100, 200, 3), np.uint8)).shape == (42, 84, 3)


def test_a_reference_that_fits_lies_behind_the_curves(tmp_path):
    write_metrics(tmp_path)
    stored = {"config": json.loads(make_model().config.to_json()), "result": {"knn_accuracy": 0.25}}
    curve = [{"step": step, **dict.fromkeys((*reference.GENERATIVE, *reference.CONTRASTIVE), 1.0)} for step in (1, 90)]
    (tmp_path / "mine.json").write_text(json.dumps({**stored, "curve": curve}))
    _, text = render(tmp_path, make_model(), make_data(), [])
    assert "Grey: the reference run mine, 1,000 steps, which in the end reached k-NN 25.0%." in text
    assert "Yours has the same settings" in text and "stand alone" not in text


def test_the_reference_is_drawn_in_grey_as_far_as_the_run_is_planned(tmp_path, figures):
    write_metrics(tmp_path)
    comparison = make_comparison(curves=reference.GENERATIVE)
    report_curves.training_curves(metrics.read(tmp_path), make_model(), [], comparison)
    behind, own = figures[0].axes[0].lines
    assert behind.get_label() == "reference: quick" and behind.get_color() == report_curves.GREY
    assert list(behind.get_xdata()) == [1, 500, 1000] and own.get_xdata()[-1] == 181
    assert all(report_curves.GREY not in [line.get_color() for line in f.axes[0].lines] for f in figures[1:])


def test_the_note_names_a_handful_of_differences():
    differences = tuple((f"model.x{i}", i, HOSTILE) for i in range(7))
    text = report_results.reference_note(make_comparison(differences, reference.GENERATIVE), make_model())
    assert "reached k-NN 25.0%, likelihood 3.500 bits/dim" in text
    assert f"model.x4 4 (reference {HOSTILE}), 2 more fields." in text and "model.x5" not in text
    assert "contrastive curves stand alone" in text
    text = report_results.reference_note(
        make_comparison(differences[:1], reference.GENERATIVE), make_model(True, False)
    )
    assert "differs in: model.x0" in text and "more fields" not in text and "stand alone" not in text


def test_gradients_are_weighed_against_each_other(figures):
    keys = ("encoder_gradient_norm_contrastive", "encoder_gradient_norm_generative")
    rows = [{"step": i, "encoder_gradient_cosine": 0.5, **dict(zip(keys, (2.0, i), strict=True))} for i in range(9)]
    drawn = report_curves.training_curves(rows, make_model(), [], None)
    assert "Second half of the run: 0.31 (median)" in drawn[4][1] and "now 0.1" in drawn[4][1]
    assert "about 0.32 would make the pulls equal" in drawn[4][1]
    ratio, one = figures[4].axes[0].lines
    # Where one norm is 0 there is no ratio, and no point on a logarithmic axis.
    assert list(ratio.get_xdata()) == list(range(1, 9)) and list(ratio.get_ydata()) == [2 / i for i in range(1, 9)]
    assert list(figures[3].axes[0].lines[0].get_xdata()) == list(range(1, 9))
    assert list(one.get_ydata()) == [1, 1] and figures[4].axes[0].get_yscale() == "log"


@pytest.mark.parametrize(
    ("best", "marks"), [("encoder/2", {2: "best", 3: "default"}), ("encoder", {3: "best and default"})]
)
def test_layers_are_drawn_in_order_and_marked(figures, best, marks):
    _, caption = report_curves.layer_sweep(make_sweep(best), "encoder")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(make_sweep()["layer_validation_accuracy"])
    assert axes.yaxis_inverted() and "5,000 training images at C = 0.1" in caption
    told = [text.get_text() for text in axes.texts]
    assert told[4].strip() == "50.0%" and all(told[i].endswith(mark) for i, mark in marks.items())
    assert sum(word in text for text in told for word in ("best", "default")) == 2


def test_sample_views_mark_what_the_encoder_gets():
    sample = make_views()
    assert sample.images.shape == (8, 8, 8, 1) and sample.views.shape == (8, 2, 8, 8, 1)
    assert sample.kept.shape == (8, 2, 4) and (sample.kept.sum(axis=2) == 2).all()
    assert (sample.kept[:, 0] != sample.kept[:, 1]).any() and (sample.views[:, 0] != sample.views[:, 1]).any()
    shown = report_views._without_dropped(np.zeros((8, 2, 8, 8, 3), np.uint8), sample.kept, 4)
    for patch, corner in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        inside = shown[:, :, corner[0] : corner[0] + 4, corner[1] : corner[1] + 4]
        hidden = (inside == image_grid.HIDDEN).all(axis=(2, 3, 4))
        assert (hidden == ~sample.kept[:, :, patch]).all()
    assert report_views.sheet(sample)[1].endswith("2 of 4 patches, drawn anew at each step.")
    whole = make_views(1.0)
    assert whole.kept is None and report_views.sheet(whole)[1].startswith("Groups of three")


def test_the_recipe_is_told_step_by_step():
    config = make_recipe(view_keep=0.75, blur=0.0, flip=0.25)
    text = report_views.recipe_table(config)
    steps = ["crop, resized", "horizontal flip", "brightness", "contrast", "patches kept"]
    assert re.findall("<tr><td>([^<]*)", text) == steps
    assert "30% to 100% of the area" in text and "factor 0.6 to 1.4" in text and "75%, drawn at random" in text
    assert "augment.flip = 0.25 instead of the recipe&#x27;s 0.5" in text
    config.augment.recipe, config.data.channels = "simclr", 3
    text = report_views.recipe_table(config)
    assert re.findall("<tr><td>([^<]*)", text) == [
        *steps[:2], "jitter: the steps below up to hue", *steps[2:4], "saturation", "hue", "colour removed", steps[4],
    ]  # fmt: skip
    assert "80% of the time, in one random order for the whole batch" in text and "first view" not in text
    assert "up to 0.2 of the colour circle" in text
    assert "no step is active" in report_views.recipe_table(make_recipe(recipe="none", view_keep=1.0))


def test_the_recipe_is_told_for_each_view_where_they_differ():
    config = make_recipe(recipe="moco_v3", view_keep=1.0)
    text = report_views.recipe_table(config)
    # On grey images the jitter has two steps, and no colour is removed.
    assert re.findall("<tr><td>([^<]*)", text) == [
        "crop, resized", "horizontal flip", "jitter: the steps below up to contrast", "brightness", "contrast", "blur",
        "values from 128 up inverted (solarize)",
    ]  # fmt: skip
    assert text.count("first view: ") == 2
    assert "first view: 100% of the time, sigma 0.1 to 2 pixels; second view: 10% of the time, sigma" in text
    assert "first view: never; second view: 20% of the time" in text
    config.augment.update({"blur": 0.5, "solarize": 0.0})
    text = report_views.recipe_table(config)
    assert "first view" not in text and "solarize" not in text
    assert "augment.blur = 0.5 instead of the recipe&#x27;s 1 and 0.1" in text


def test_sample_views_follow_the_recipe_of_each_view():
    plain = make_recipe(recipe="moco_v3", view_keep=1.0, crop_min_area=1.0, flip=0.0, brightness=0.0, contrast=0.0)
    sample = evaluate.sample_views(plain, make_data(), count=64)
    as_it_was = (sample.views == sample.images[:, None]).all(axis=(2, 3, 4)).mean(axis=0)
    # A tenth of a pixel of blur vanishes in rounding.
    assert as_it_was[0] < 0.4 < 0.6 < as_it_was[1] < 1, "the first view is always blurred, the second seldom"


def test_matplotlib_waits_until_a_figure_is_drawn():
    import subprocess
    import sys

    code = "import sys, hybrid_jax.report.run_report; assert not {'matplotlib', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_figure_is_larger_than_it_need_be(tmp_path):
    write_metrics(tmp_path)
    render(tmp_path, make_model(), make_data(), make_results())
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    assert len(re.findall("<figcaption>[^<]{40,}", (tmp_path / "report.html").read_text("utf-8"))) >= 7


def make_robustness():
    common = {"n": 2000, "split": "test", "standard_error": 0.01, "layer": HOSTILE, "clean_value": 0.9}
    table = {kind: {"1": 0.8, "5": 0.3} for kind in corruptions.MAIN}
    corrupted = {"metric": "corruption_accuracy", "protocol": "corruptions-v2", "value": 0.55, "severities": [1, 5]}
    corrupted |= {"accuracy": table, "floor_accuracy": table, "floor_clean_value": 0.7, "corruption_seed": 0}
    attack = {"metric": "adversarial_accuracy", "protocol": "adversarial-v1", "value": 0.2, "steps": 10, "epsilon": 4}
    attack |= {"variant": "PGD, 4 of 255", "fgsm_value": 0.3, "noise_value": 0.9}
    bins = [{"low": 14 / 15, "high": 1.0, "count": 2000, "confidence": 0.97, "accuracy": 0.9}]
    error = {"metric": "calibration_error", "protocol": "calibration-v1", "value": 0.07, "reliability": bins}
    rows = [corrupted, attack, error | {"variant": "as fitted"}]
    rows.append(error | {"variant": "temperature scaled", "temperature": 1.5})
    return [{**common, "floor": {"raw pixels": 0.1}, **row} for row in rows]


def test_robustness_has_sections_of_its_own(tmp_path):
    page, text = render(tmp_path, make_model(), make_data(channels=3), make_robustness())
    for expected in ("Corrupted images", "not photographed", "severity 5", "knows encoder and probe", "divided by 1.5"):
        assert expected in text
    assert "90.0% on the same images unchanged" in text and "Under attack, PGD, 4 of 255" in text
    # By severity, the sheet, by epsilon, reliability; a map, and 8 queries with 6 neighbours each.
    assert page.tags.count("img") == 4 + 1 + 8 * 7


def test_robustness_tells_what_there_is():
    rows = make_robustness()
    titles = lambda some: [title for title, _ in robustness.sections(some, make_data())]
    assert titles(rows) == ["Corrupted images", "Images under attack", "Calibration"]
    assert titles(rows[1:2]) == ["Images under attack"] and titles(make_results()) == []
    (section,) = robustness.sections(rows[2:3], make_data())
    assert "Right:" not in section[1]
