"""Few labels: ridge against scikit-learn, which images are drawn, and the rules of the protocol."""

import json

import numpy as np
import pytest
from fakes import ALL, FeatureModel, digits, flat
from sklearn.linear_model import LogisticRegression, Ridge

from hybrid_jax import config as config_lib
from hybrid_jax import evaluators
from hybrid_jax.errors import UserError
from hybrid_jax.evaluators import few_label, linear_probe
from hybrid_jax.evaluators.features import raw_pixels

FIRST = ["1 % logistic", "1 % ridge", "10 % logistic", "10 % ridge", "10 per class logistic", "10 per class ridge"]


def config(seed=0, **changes):
    c = config_lib.default_config()
    c.eval.anomaly.num_images = 0
    c.seed, c.eval.evaluators = seed, ("few_label",)
    c.eval.few_label.update(changes)
    config_lib.validate(c)
    return c


def pixel_model(**layers):
    """A model whose features are the image; `layers` replaces some by other functions of images (n, H, W, C)."""
    return FeatureModel({f"encoder/{i}": flat for i in (1, 2, 3, 4)} | {"encoder": flat} | layers)


def padded(x, like):
    """Features as big_vision pads them, by the moments of `like`; in float64."""
    x, like = x.astype(np.float64), like.astype(np.float64)
    return np.hstack([(x - like.mean(axis=0)) / (like.std(axis=0) + 1e-5), np.full((len(x), 1), 100.0)])


@pytest.mark.parametrize("n", [30, 65, 900])
def test_ridge_is_scikit_learns_on_the_padded_features(n):
    data = digits(ALL)
    x, unseen = raw_pixels(data.train.images)[:n], raw_pixels(data.test.images)
    y = 3 * data.train.labels[:n] - 5  # labels with gaps, some negative
    reference = Ridge(alpha=1024, fit_intercept=False)
    reference.fit(padded(x, x), 2.0 * (y[:, None] == np.unique(y)) - 1)
    fitted = few_label.fit_ridge(x, y)
    deviation = x.astype(np.float64).std(axis=0)[:, None] + 1e-5
    np.testing.assert_allclose(fitted.weights * deviation, reference.coef_[:, :-1].T, atol=1e-9)
    scores = reference.predict(padded(unseen, x))
    np.testing.assert_allclose(unseen @ fitted.weights + fitted.bias, scores, atol=1e-6)
    assert np.array_equal(fitted.predict(unseen), np.unique(y)[scores.argmax(axis=1)])


@pytest.mark.parametrize("n", [40, 900])
def test_logistic_is_scikit_learns_at_the_c_that_validation_likes(n):
    data = digits(ALL)
    rows = {"train": slice(0, n), "validation": slice(None), "test": slice(None)}
    parts = {s: raw_pixels(getattr(data, s).images[rows[s]]) for s in ALL}
    whole = raw_pixels(data.train.images)
    labels = {s: getattr(data, s).labels[rows[s]] for s in ALL}
    grid, deviation = (0.001, 0.01, 0.1), whole.std(axis=0)
    deviation[deviation < 1e-6] = 1
    x = {s: (part - whole.mean(axis=0)) / deviation for s, part in parts.items()}
    fits = [LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(x["train"], labels["train"]) for c in grid]
    best = int(np.argmax([fit.score(x["validation"], labels["validation"]) for fit in fits]))
    predicted, told = few_label.logistic(
        parts | {"unlabelled": np.stack(linear_probe.moments(whole))}, labels, grid[::-1], 300
    )
    score = pytest.approx(fits[best].score(x["validation"], labels["validation"]))
    assert told == {"chosen_C": grid[best], "converged": True, "validation_accuracy": score}
    assert np.mean(predicted == fits[best].predict(x["test"])) > 0.995


def test_shares_are_of_each_class_and_never_less_than_one():
    labels = np.repeat([3, 7, 90], [300, 40, 4])
    counts = few_label.class_counts(labels, (0.01, 0.07, 1.0), (2, 9))
    assert {name: found.tolist() for name, found in counts.items()} == {
        "1 %": [3, 1, 1],
        "7 %": [21, 3, 1],
        "100 %": [300, 40, 4],
        "2 per class": [2, 2, 2],
        "9 per class": [9, 9, 4],
    }


def test_draws_are_stratified_nested_and_pure():
    labels = np.random.default_rng(0).permutation(np.repeat([3, 7, 90], [300, 40, 5]))
    draw = lambda counts, seed=0, index=0: few_label.draw(labels, np.array(counts), seed, index)
    rows = draw([30, 4, 1])
    assert np.bincount(labels[rows])[[3, 7, 90]].tolist() == [30, 4, 1]
    assert np.array_equal(rows, np.unique(rows)), "each image once, in the split's order"
    assert np.array_equal(rows, draw([30, 4, 1]))
    assert set(draw([3, 1, 1])) < set(rows) < set(draw([100, 40, 5]))
    others = [draw([30, 4, 1], *key) for key in ((0, 1), (0, 2), (1, 0), (1, 1))]
    assert len({tuple(found) for found in [rows, *others]}) == 5
    assert np.array_equal(draw([300, 40, 5]), np.arange(345))


def seen_by(model, seed, monkeypatch):
    """The images of every draw, in order, that classifiers are given as labelled ones."""
    data, seen, real = digits(ALL), [], few_label.draw
    monkeypatch.setattr(few_label, "draw", lambda *a: seen.append(real(*a)) or seen[-1])
    evaluators.evaluate(model, data, config(seed))
    monkeypatch.undo()
    return [rows.tolist() for rows in seen]


def test_every_model_sees_the_same_draws(monkeypatch):
    drawn = seen_by(pixel_model(), 0, monkeypatch)
    assert [len(rows) for rows in drawn] == [10] * 3 + [len(drawn[3])] * 3 + [100] * 3
    assert drawn == seen_by(pixel_model(encoder=lambda images: images[:, 3, 2:5, 0]), 0, monkeypatch)
    assert drawn != seen_by(pixel_model(), 1, monkeypatch)


def test_rows_stand_beside_raw_pixels_of_the_same_draws():
    *rows, chosen_by = evaluators.evaluate(pixel_model(), digits(ALL), config())
    assert [row["variant"] for row in rows] == FIRST + [f"{name}, last four layers" for name in FIRST]
    for row in rows:
        assert row["metric"] == "few_label_accuracy" and row["protocol"] == "few-label-v1"
        assert row["split"] == "test" and row["n"] == 597 and row["seed"] == 0 and row["num_seeds"] == 3
        assert row["value"] == pytest.approx(np.mean(row["values"])) and len(row["values"]) == 3
        between_draws = np.std(row["values"], ddof=1) / np.sqrt(3)
        assert between_draws < row["standard_error"] < between_draws + np.sqrt(row["value"] * (1 - row["value"]) / 590)
        assert ("chosen_C" in row) == (row["classifier"] == "logistic") and "note" not in row
    for row in rows[:6]:
        assert row["layers"] == ["encoder"]
        assert row["floor"] == {"raw pixels": pytest.approx(row["value"], abs=0.001)}, "the features are the pixels"
    assert rows[6]["layers"] == ["encoder/1", "encoder/2", "encoder/3", "encoder/4"]
    assert [row["n_train"] for row in rows[::2]] == [10, rows[2]["n_train"], 100] * 2
    assert rows[2]["n_train"] == pytest.approx(90, abs=5)
    assert rows[0]["value"] < rows[4]["value"] and rows[0]["value"] < rows[2]["value"], "more labels help"
    assert (chosen_by["split"], chosen_by["n"], chosen_by["variant"]) == ("validation", 300, FIRST[0])
    assert chosen_by["value"] == rows[0]["validation_accuracy"] == pytest.approx(rows[0]["value"], abs=0.1)
    json.dumps(rows)


def test_perfect_features_reach_one_and_random_features_chance():
    data = digits(ALL)
    answers = {getattr(data, s).images.tobytes(): np.eye(10)[getattr(data, s).labels] for s in ALL}
    perfect = pixel_model(encoder=lambda images: answers[images.tobytes()])
    noise = pixel_model(encoder=lambda images: np.random.default_rng(len(images)).normal(size=(len(images), 8)))
    assert [row["value"] for row in evaluators.evaluate(perfect, data, config())[:6]] == [1.0] * 6
    for row in evaluators.evaluate(noise, data, config())[:6]:
        assert row["value"] == pytest.approx(0.1, abs=0.06)


def test_test_labels_choose_nothing():
    data = digits(ALL)
    first = evaluators.evaluate(pixel_model(), data, config())
    data.test.labels = np.random.default_rng(0).permutation(data.test.labels)
    again = evaluators.evaluate(pixel_model(), data, config())
    assert [row.get("chosen_C") for row in first] == [row.get("chosen_C") for row in again]
    assert first[0]["value"] > 0.4 and again[0]["value"] < 0.2


def test_without_labelled_validation_the_middle_c():
    data = digits(ALL)
    data.validation.labels = None
    rows = evaluators.evaluate(pixel_model(), data, config(c_values=(1.0, 0.01, 0.1)))
    for row in rows:
        if row["classifier"] == "logistic":
            assert row["chosen_C"] == [0.1] * 3 and "no labelled validation split" in row["note"]
        else:
            assert "note" not in row


def test_settings_choose_the_rows():
    changes = {"shares": (), "per_class": (3, 5), "num_seeds": 1}
    rows = evaluators.evaluate(pixel_model(), digits(ALL), config(**changes))[:4]
    names = [f"{n} per class {kind}" for n in (3, 5) for kind in ("logistic", "ridge")]
    assert [row["variant"] for row in rows] == names
    assert [row["n_train"] for row in rows] == [30, 30, 50, 50]
    for row in rows:
        assert len(row["values"]) == 1
        assert row["standard_error"] == pytest.approx(np.sqrt(row["value"] * (1 - row["value"]) / 596), rel=1e-6)


def test_floors_are_computed_once_for_a_data_set_a_seed_and_a_setting(tmp_path, monkeypatch):
    data, calls = digits(ALL), []
    monkeypatch.setattr(few_label, "raw_pixels", lambda images: calls.append(1) or raw_pixels(images))
    run = lambda **changes: evaluators.evaluate(pixel_model(), data, config(**changes), tmp_path)
    one = {"shares": (), "num_seeds": 1}
    first = run(**one)
    # Pixels of train, validation and test, then two classifiers, each with those of one draw.
    assert len(calls) == 5 and run(**one) == first and len(calls) == 5
    for new, count in (
        ({"per_class": (3,)}, 5),
        ({"seed": 1}, 5),
        ({"num_seeds": 2}, 7),
        ({"c_values": (0.1,)}, 4),  # of the logistic classifier alone
        ({"max_iterations": 200}, 4),
        ({}, 0),
    ):
        del calls[:]
        run(**one | new)
        assert len(calls) == count, new
    data.fingerprint = "other"
    run(**one)
    assert len(calls) == 5


def test_a_small_class_gives_all_it_has():
    data = digits(ALL)
    data.train.labels = np.where(np.arange(900) < 7, 10, data.train.labels)
    rows = evaluators.evaluate(pixel_model(), data, config(shares=(), per_class=(3, 10)))
    assert [row["n_train"] for row in rows[:4]] == [33, 33, 107, 107]
    assert [row.get("note") for row in rows[:4]] == [None] * 2 + ["all images of classes that have fewer"] * 2


@pytest.mark.parametrize(
    "changes",
    [{"shares": (0.1, 1.5)}, {"shares": (0.0,)}, {"per_class": (0,)}, {"per_class": (2.5,)}, {"num_seeds": 0}],
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(UserError, match=f"^config.eval.few_label.{next(iter(changes))}="):
        config(**changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: setattr(data.train, "labels", None), "the data has no labels"),
        (lambda data: setattr(data.test, "labels", None), "the data has no labels"),
        (lambda data: setattr(data, "test", None), "the data has no test split"),
        (lambda data: setattr(data.train, "labels", 0 * data.train.labels), "the training labels hold one class only"),
    ],
)
def test_what_the_data_lacks_is_said_in_one_line(change, reason):
    data, lines = digits(ALL), []
    change(data)
    assert evaluators.evaluate(pixel_model(), data, config(), log=lines.append) == []
    assert lines == [f"few_label: skipped, {reason}"]
