"""The page: every situation renders, nothing hostile gets through, and it opens with what can be looked at."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from hybrid_jax.evaluators.features import FeatureStore
from hybrid_jax.evaluators.ood import KEPT, Outcome
from hybrid_jax.report import images, ood, robustness, run_report, views
from hybrid_jax.utils import image_grid
from tests.report import fakes
from tests.report.fakes import HOSTILE, make_data, make_model, make_results

VOID = {"img", "meta", "br"}
NEIGHBOURS = 8 * 7  # images: a query and six neighbours in eight rows


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.anchors, self.text, self.open, self.folded = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        self.anchors += [value for name, value in attributes if name == "id"]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.folded if "details" in self.open else self.text).append(data)


def render(tmp_path, model, data, results, sample_views=None):
    path = run_report.write_report(tmp_path, model, data, results, sample_views, reference_dir=tmp_path)
    assert path == tmp_path / "report.html"
    text = path.read_text("utf-8")
    page = Page(text)
    inside = {f"#{name}" for name in page.anchors}
    assert all(link in inside or link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "http" not in text and "@import" not in text and "url(" not in text
    return page, " ".join(page.text), " ".join(page.folded)


def test_the_hybrid_with_everything(tmp_path):
    fakes.write_metrics(tmp_path)
    model, data = make_model(), make_data()
    model.config.eval.report_samples = 5
    results = [*make_results(), fakes.make_sweep(), fakes.samples_row()]
    page, text, folded = render(tmp_path, model, data, results, views.sample_views(model.config, data))
    whole = (tmp_path / "report.html").read_text("utf-8")
    assert re.findall("<h2>(.*?)</h2>", whole) == [
        "Training curves", "Views", "Samples", "Completions", "Nearest neighbours", "Map of the features", "Results",
        "Accuracy by layer", "Configuration",
    ]  # fmt: skip
    assert text.count(HOSTILE) > 4 and HOSTILE in folded, "names are shown, escaped"
    for expected in ("1,500 training steps", "linear-probe-v1", "85.0%", "two augmented views", "of 48 neighbours"):
        assert expected in text
    assert "There is no reference curve" in text and "evaluated on 1,000 validation images" in text
    for expected in ("work against each other", "2,000 test", "augment.blur", "learning_rate", "70.0%"):
        assert expected in folded and expected not in text
    # Seven curves, eight groups of views, samples, real images, five and five groups, a map, the layers.
    assert page.tags.count("img") == 7 + 8 + 2 + 5 + 5 + NEIGHBOURS + 1 + 1
    assert len(whole) < 2_000_000 and len(re.findall("<figcaption>[^<]{40,}", whole)) >= 7


def test_no_labels_no_test_split(tmp_path):
    page, text, _ = render(tmp_path, make_model(), make_data(labels=False, test=False), [])
    assert "nothing was evaluated" in text and "No results" in text and "; no labels" in text
    assert "images of the validation split" in text and "neighbours have" not in text
    assert "There is no training log" in text
    assert page.tags.count("img") == 1 + NEIGHBOURS


def test_few_training_images_alone_are_never_their_own_neighbours(tmp_path):
    data = make_data(test=False, validation=False)
    rows, caption = images.neighbours(FeatureStore(make_model(), data))
    assert "images of the train split" in caption
    assert all(row[0].uri not in [cell.uri for cell in row[1:]] for row in rows)
    for count in (3, 1):
        data.train = SimpleNamespace(images=data.train.images[:count], labels=data.train.labels[:count])
        _, text, _ = render(tmp_path, make_model(), data, [])
        assert f"{count} train" in text and "Nearest neighbours" in text


@pytest.mark.parametrize(
    ("generative", "contrastive", "curves", "kind"),
    [(True, False, 3, "generative only"), (False, True, 4, "contrastive only")],
)
def test_one_branch(tmp_path, generative, contrastive, curves, kind):
    fakes.write_metrics(tmp_path, generative, contrastive)
    results = make_results() if generative else make_results()[:3]
    page, text, _ = render(tmp_path, make_model(generative, contrastive), make_data(channels=3), results)
    assert f"Model: {kind}" in text
    assert page.tags.count("img") == curves + 1 + NEIGHBOURS
    assert ("likelihood and sample quality (no generative branch)" in text) == (not generative)


def test_many_classes_share_one_grey(tmp_path):
    assert "all other classes" in render(tmp_path, make_model(), make_data(classes=15), [])[1]


def test_known_features_are_not_computed_again(tmp_path):
    model, data = make_model(), make_data()
    store = FeatureStore(model, data)
    for split in ("train", "test"):
        store.layers(split)
    # Calling either would now be a TypeError.
    model.features = model.embed = None
    assert run_report.write_report(tmp_path, model, data, [], None, store).stat().st_size > 0


def test_robustness_has_sections_of_its_own(tmp_path):
    page, text, folded = render(tmp_path, make_model(), make_data(channels=3), fakes.make_robustness())
    for expected in ("not photographed", "full knowledge of encoder and probe", "divided by 1.5", "PGD, 4 of 255"):
        assert expected in text
    assert "severity 5" in folded and "90.0% on the same images unchanged" in folded
    # A figure for each family, the sheet, by epsilon, two of reliability; a map.
    assert page.tags.count("img") == 4 + 16 + 1 + 2 + 1 + NEIGHBOURS
    titles = lambda some: [title for title, _ in robustness.sections(some, make_data())]
    assert titles(fakes.make_robustness()) == ["Robustness to corruptions", "Adversarial robustness", "Calibration"]
    assert titles(fakes.make_robustness()[1:2]) == ["Adversarial robustness"] and titles(make_results()) == []


def test_outlier_detection_shows_scores_extremes_and_the_best_of_each_column():
    features, rng = FeatureStore(make_model(), make_data()), np.random.default_rng(0)
    rows = fakes.make_outliers()
    assert ood.sections(features, rows) == []
    score = lambda: {"joint score": rng.normal(size=20)}
    ends = features.data.test.images[:3], features.data.test.images[3:6]
    outcome = Outcome(
        score(), {"rotated": score(), "noisy": score()}, (), dict.fromkeys(("", "rotated", "noisy"), ends)
    )
    features.once(KEPT, lambda: outcome)
    [(title, body)] = ood.sections(features, rows)
    assert title == "Out-of-distribution detection" and body.count("<img") == 1 + 3
    assert body.count('<span class="best">0.900</span>') == 4 and "<small>floor</small>" in body
    assert "mean of rotated" in body and "misses 90.0% of the outliers" in body
    one, other = ood.condensed([*rows, *make_results()[2:3]])
    assert one["metric"] == "knn_accuracy" and other["floor"] == {"image mean": 0.8}


def test_tiles_keep_proportions_become_rgb_and_lie_in_a_grid():
    assert image_grid.resized(np.zeros((28, 14, 1), np.uint8)).shape == (84, 42, 3)
    assert image_grid.resized(np.zeros((100, 200, 3), np.uint8)).shape == (42, 84, 3)
    # Groups lie further apart than their tiles, and single tiles no further than that.
    assert image_grid.laid_out(np.zeros((3, 2, 84, 84, 3), np.uint8), 2).shape == (2 * 92, 2 * (2 * 88 + 24) - 24, 3)
    assert image_grid.laid_out(np.zeros((3, 1, 84, 84, 3), np.uint8), 2).shape == (2 * 92, 2 * 92 - 4, 3)


def test_matplotlib_waits_until_a_figure_is_drawn():
    code = "import sys, hybrid_jax.report.run_report; assert not {'matplotlib', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
