"""The report: every situation renders, nothing hostile gets through, and its words are honest."""

import json
import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from hybrid_jax import report, report_images, report_results
from hybrid_jax.config import default_config
from hybrid_jax.evaluators.features import FeatureStore
from hybrid_jax.models.tokens import TokenSpec

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


def render(tmp_path, model, data, results, views=None):
    path = report.write_report(tmp_path, model, data, results, views)
    assert path == tmp_path / "report.html"
    text = path.read_text("utf-8")
    page = Page(text)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "http" not in text and "@import" not in text and "url(" not in text
    return page, " ".join(page.text)


def test_the_hybrid_with_everything(tmp_path):
    write_metrics(tmp_path)
    views = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8, 1)).astype(np.uint8)
    page, text = render(tmp_path, make_model(), make_data(), make_results(), views)
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
    # Six curves, a sheet of views, a map, and 8 queries with 6 neighbours each.
    assert page.tags.count("img") == 6 + 1 + 1 + 8 * 7


def test_no_labels_no_test_split(tmp_path):
    page, text = render(tmp_path, make_model(), make_data(labels=False, test=False), [])
    assert "nothing was evaluated" in text and "There are no results" in text and "; no labels" in text
    assert "Not measured: linear probe (no test split), k-NN (no test split), likelihood (no test split)" in text
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
    assert ("Not measured: likelihood (no generative branch)." in text) == (not generative)


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
    assert text.endswith("Not measured: linear probe (no labels), k-NN (no labels).")
    text = report_results.summary(make_model(), make_data(), make_results()[:2])
    assert text.endswith("Not measured: k-NN (not asked for), likelihood (not asked for).")


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
    assert report.write_report(tmp_path, model, data, [], None, store).stat().st_size > 0


def test_thumbnails_keep_proportions_and_become_rgb():
    assert report_images._resized(np.zeros((28, 14, 1), np.uint8)).shape == (84, 42, 3)
    assert report_images._resized(np.zeros((100, 200, 3), np.uint8)).shape == (42, 84, 3)


def test_matplotlib_waits_until_a_figure_is_drawn():
    import subprocess
    import sys

    code = "import sys, hybrid_jax.report; assert not {'matplotlib', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_figure_is_larger_than_it_need_be(tmp_path):
    write_metrics(tmp_path)
    render(tmp_path, make_model(), make_data(), make_results())
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    assert len(re.findall("<figcaption>[^<]{40,}", (tmp_path / "report.html").read_text("utf-8"))) >= 7
