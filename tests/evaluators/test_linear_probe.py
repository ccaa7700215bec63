"""The linear probe against scikit-learn on real digits, and the rules of its protocol."""

import json

import numpy as np
import pytest
from fakes import ALL, FeatureModel, flat
from fakes import digits as digits_of
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hybrid_jax import evaluators
from hybrid_jax.config import default_config
from hybrid_jax.evaluators import linear_probe
from hybrid_jax.evaluators.features import FeatureStore, FloorCache, raw_pixels, raw_pixels_name
from hybrid_jax.evaluators.logistic import Spectrum, fit_logistic


def digits():
    """A data set of real 8x8 digits, and {split: (n, 64) float32} features that are their pixels."""
    pixels = load_digits().data
    return digits_of(ALL), {name: (pixels[cut] / 16).astype(np.float32) for name, cut in ALL.items()}


def labels_of(data):
    return {split: getattr(data, split).labels for split in ALL}


def config(**changes):
    c = default_config()
    c.eval.anomaly.num_images = 0
    c.eval.evaluators = ("linear_probe",)
    c.eval.linear_probe.update(changes)
    return c


def digit_model():
    """Blocks 1 to 5 see more and more of the image; the default layer sees half, the decoder all of it."""
    layers = {"embedding": lambda x: flat(x)[:, 24:26]}
    for i in range(1, 6):
        layers[f"encoder/{i}"] = lambda x, i=i: flat(x)[:, 24 : 24 + 2 * i]
    layers |= {"encoder": lambda x: flat(x)[:, 16:48], "decoder/1": flat, "decoder": flat}
    return FeatureModel(layers)


def test_the_fit_is_scikit_learns_optimum():
    data, parts = digits()
    x = linear_probe.standardise(parts)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=5000))
    reference.fit(parts["train"].astype(np.float64), data.train.labels)
    fitted = fit_logistic(x["train"], data.train.labels, 0.1, Spectrum.of(x["train"]), 300, tolerance=1e-6)
    # It may also end where float32 finds no lower value, which on some processors comes before that tolerance.
    assert fitted.iterations < 100
    np.testing.assert_allclose(fitted.weights, reference[-1].coef_.T, atol=2e-3)
    np.testing.assert_allclose(
        fitted.bias - fitted.bias.mean(),
        reference[-1].intercept_ - reference[-1].intercept_.mean(),
        atol=2e-3,
    )
    assert np.array_equal(fitted.predict(x["test"]), reference.predict(parts["test"]))


def test_the_probe_equals_a_direct_pipeline_with_the_same_protocol():
    data, parts = digits()
    grid = (0.001, 0.01, 0.1, 1.0)
    scaler = StandardScaler().fit(parts["train"])
    x = {split: scaler.transform(part).astype(np.float64) for split, part in parts.items()}
    scores = [
        LogisticRegression(C=c, tol=1e-4, max_iter=500)
        .fit(x["train"], data.train.labels)
        .score(x["validation"], data.validation.labels)
        for c in grid
    ]
    c = grid[int(np.argmax(scores))]
    refit = LogisticRegression(C=c, tol=1e-4, max_iter=500)
    refit.fit(*(np.concatenate(pair) for pair in ((x["train"], x["validation"]), labels_pair(data))))
    found = linear_probe.probe(parts, labels_of(data), grid[::-1], 300)
    assert found["C"] == c and found["n_train"] == 1200 and found["n"] == 597
    assert found["validation_accuracy"] == pytest.approx(max(scores), abs=0.004)
    assert found["value"] == pytest.approx(refit.score(x["test"], data.test.labels), abs=0.002)


def labels_pair(data):
    return data.train.labels, data.validation.labels


def test_perfect_features_reach_one_and_random_features_chance():
    data, _ = digits()
    perfect = {s: np.eye(10, dtype=np.float32)[y] for s, y in labels_of(data).items()}
    rng = np.random.default_rng(0)
    noise = {s: rng.normal(size=(len(y), 8)).astype(np.float32) for s, y in labels_of(data).items()}
    assert linear_probe.probe(perfect, labels_of(data), (1.0,), 300)["value"] == 1.0
    assert linear_probe.probe(noise, labels_of(data), (1.0,), 300)["value"] == pytest.approx(0.1, abs=0.05)


def test_equal_validation_scores_choose_the_smaller_c():
    data, _ = digits()
    perfect = {s: np.eye(10, dtype=np.float32)[y] for s, y in labels_of(data).items()}
    assert linear_probe.probe(perfect, labels_of(data), (1.0, 0.1, 10.0), 300)["C"] == 0.1


def test_constant_features_and_labels_with_gaps_are_no_trouble():
    data, parts = digits()
    labels = {split: 3 * y + 5 for split, y in labels_of(data).items()}
    wide = {split: np.pad(x, ((0, 0), (0, 3)), constant_values=7) for split, x in parts.items()}
    plain = linear_probe.probe(parts, labels_of(data), (0.1,), 300)
    assert linear_probe.probe(wide, labels, (0.1,), 300)["value"] == pytest.approx(plain["value"], abs=0.002)


def test_the_iteration_limit_is_said():
    data, parts = digits()
    found = linear_probe.probe(parts, labels_of(data), (1.0,), 2)
    assert found["iterations"] == 2 and not found["converged"]


def test_three_variants_beside_their_floor():
    data, _ = digits()
    model = digit_model()
    *rows, chosen_by = evaluators.evaluate(model, data, config())
    assert (chosen_by["split"], chosen_by["n"], chosen_by["n_train"]) == ("validation", 300, 900)
    assert chosen_by["value"] == rows[0]["validation_accuracy"] and chosen_by["layer"] == rows[0]["layer"]
    assert [row["variant"] for row in rows] == ["default", "best_layer", "last_four"]
    assert [row["layers"] for row in rows[:2]] == [["encoder"], ["decoder/1"]]  # of equals the earlier
    assert rows[2]["layers"] == ["encoder/2", "encoder/3", "encoder/4", "encoder/5"]
    assert rows[1]["selection"] == "best layer by validation"
    assert rows[0]["value"] < rows[1]["value"]
    # The decoder's layer is the image itself, so it must land on the floor.
    assert rows[1]["floor"] == {"raw pixels": pytest.approx(rows[1]["value"], abs=0.002)}
    for row in rows:
        assert row["metric"] == "linear_probe_accuracy" and row["protocol"] == "linear-probe-v1"
        assert row["split"] == "test" and row["n"] == 597 and row["seed"] == 0
    assert model.calls == 3, "one pass over each split"
    sweep = rows[1]["layer_validation_accuracy"]
    assert list(sweep) == list(model.layers) and max(sweep, key=sweep.get) == "decoder/1"
    assert sweep["encoder/1"] < sweep["encoder"] < sweep["decoder"] == sweep["decoder/1"]
    assert (rows[1]["layer_choice_n_train"], rows[1]["layer_choice_n_validation"]) == (900, 300)
    assert not any("layer_validation_accuracy" in row for row in (rows[0], rows[2]))
    json.dumps(rows)


def test_blocks_are_counted_as_numbers_and_a_decoder_stands_in_for_no_encoder():
    names = ["embedding", *(f"encoder/{i}" for i in (1, 10, 11, 12, 2, 9)), "encoder", "decoder/1"]
    assert linear_probe.last_four(names) == ["encoder/9", "encoder/10", "encoder/11", "encoder/12"]
    assert linear_probe.last_four(["embedding", "decoder/1", "decoder/2", "decoder"]) == [
        "decoder/1",
        "decoder/2",
    ]


def test_without_validation_the_middle_c_and_the_default_layer():
    data, _ = digits()
    data.validation = None
    rows = evaluators.evaluate(digit_model(), data, config(c_values=(10.0, 0.1, 1.0)))
    assert [row["variant"] for row in rows] == ["default", "last_four"]
    assert all(row["C"] == 1.0 and row["n_train"] == 900 for row in rows)
    assert all("no labelled validation split" in row["note"] for row in rows)


def test_the_floor_is_computed_once_for_a_data_set_and_a_grid(tmp_path, monkeypatch):
    data, _ = digits()
    calls = []
    monkeypatch.setattr(linear_probe, "raw_pixels", lambda images: calls.append(1) or raw_pixels(images))
    first = evaluators.evaluate(digit_model(), data, config(), tmp_path)
    again = evaluators.evaluate(digit_model(), data, config(), tmp_path)
    # Of training, validation and test images.
    assert len(calls) == 3 and first == again
    evaluators.evaluate(digit_model(), data, config(c_values=(0.1,)), tmp_path)
    assert len(calls) == 6
    data.fingerprint = "other"
    evaluators.evaluate(digit_model(), data, config(), tmp_path)
    assert len(calls) == 9


def test_a_damaged_floor_file_is_replaced(tmp_path):
    (tmp_path / "floors.json").write_text('{"half')
    assert FloorCache(tmp_path).get(lambda: 0.5, data="x") == 0.5
    assert FloorCache(tmp_path).get(lambda: 0.7, data="x") == 0.5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: setattr(data.train, "labels", None), "the data has no labels"),
        (lambda data: setattr(data, "test", None), "the data has no test split"),
        (lambda data: setattr(data.train, "labels", 0 * data.train.labels), "one class only"),
    ],
)
def test_what_the_data_lacks_is_said_in_one_line(change, reason):
    data, _ = digits()
    data.validation = None
    change(data)
    lines = []
    assert evaluators.evaluate(digit_model(), data, config(), log=lines.append) == []
    assert len(lines) == 1 and lines[0].startswith("linear_probe: skipped, ") and reason in lines[0]


def test_features_that_are_not_finite_are_an_error():
    data, _ = digits()
    model = FeatureModel({"encoder": lambda images: np.full((len(images), 2), np.nan)})
    with pytest.raises(ValueError, match=r"'encoder'.*train split are not finite"):
        FeatureStore(model, data).layers("train")


def test_raw_pixels_of_large_images_are_block_means():
    images = np.random.default_rng(0).integers(0, 256, (2, 70, 64, 3)).astype(np.uint8)
    assert raw_pixels_name(images) == "raw pixels averaged to 24x22"
    small = raw_pixels(images).reshape(2, 24, 22, 3)
    np.testing.assert_allclose(small[:, 1, 2], images[:, 3:6, 6:9].mean(axis=(1, 2)) / 255, rtol=1e-5)
    assert raw_pixels(images[:, :32, :32]).shape == (2, 3072)
    assert raw_pixels_name(images[:, :32, :32]) == "raw pixels"
