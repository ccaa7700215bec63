"""The k-NN classifier against a brute-force one in float64, its ties, and the rules of its protocol."""

import json

import numpy as np
import pytest
from fakes import FeatureModel, config_of, split
from fakes import digits as digits_of
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from hybrid_jax import evaluators
from hybrid_jax.errors import UserError
from hybrid_jax.evaluators import knn


def brute_force(queries, bank, labels, k, temperature):
    """One query at a time, as the definition reads."""
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    answers = []
    for query in unit(queries.astype(np.float64)):
        cosines = unit(bank.astype(np.float64)) @ query
        votes = {}
        for i in np.argsort(-cosines, kind="stable")[:k]:
            votes[labels[i]] = votes.get(labels[i], 0) + np.exp(cosines[i] / temperature)
        answers.append(max(sorted(votes), key=votes.get))
    return np.array(answers)


def digits():
    pixels, labels = load_digits(return_X_y=True)
    return pixels[:1200].astype(np.float32), labels[:1200], pixels[1200:].astype(np.float32), labels[1200:]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 0.002), (200, 1.0)])
def test_votes_equal_brute_force_in_float64(k, temperature):
    bank, labels, queries, _ = digits()
    found = knn.classify(queries, bank, labels, k, temperature)
    assert np.mean(found == brute_force(queries, bank, labels, k, temperature)) > 0.998


def test_one_neighbour_is_scikit_learns():
    bank, labels, queries, _ = digits()
    reference = KNeighborsClassifier(1, metric="cosine").fit(bank, labels)
    assert np.mean(knn.classify(queries, bank, labels, 1, 0.07) == reference.predict(queries)) > 0.998


def test_neighbours_come_nearest_first_whatever_the_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    queries, bank = rng.normal(size=(23, 5)), rng.normal(size=(40, 5))
    cosines, rows = knn.nearest(queries, bank, 7)
    assert cosines.shape == rows.shape == (23, 7)
    assert np.all(np.diff(cosines, axis=1) <= 0)
    monkeypatch.setattr(knn, "QUERIES_AT_ONCE", 10)
    chunked = knn.nearest(queries, bank, 7)
    assert np.array_equal(chunked[1], rows)
    np.testing.assert_allclose(chunked[0], cosines, atol=1e-6)


def test_ties_go_to_the_earlier_image_and_the_lower_label():
    bank = np.array([[0, 1], [1, 0], [2, 0], [3, 0]], np.float32)  # the last three have one direction
    query = np.array([[1, 0]], np.float32)
    _, rows = knn.nearest(query, bank, 2)
    assert rows.tolist() == [[1, 2]]
    assert knn.classify(query, bank, np.array([0, 9, 4, 1]), 2, 0.07).tolist() == [4]


def test_zero_vectors_and_labels_with_gaps_are_no_trouble():
    bank, labels = np.array([[0, 0], [1, 0], [0, 1]], np.float32), np.array([-7, 40, 1000])
    queries = np.array([[0, 0], [0, 5]], np.float32)
    assert knn.classify(queries, bank, labels, 1, 0.07).tolist() == [-7, 1000]


def test_perfect_features_reach_one_and_random_features_chance():
    _, labels, _, wanted = digits()
    one_hot = np.eye(10, dtype=np.float32)
    assert np.array_equal(knn.classify(one_hot[wanted], one_hot[labels], labels, 20, 0.07), wanted)
    rng = np.random.default_rng(0)
    noise = knn.classify(rng.normal(size=(597, 16)), rng.normal(size=(1200, 16)), labels, 20, 0.07)
    assert np.mean(noise == wanted) == pytest.approx(0.1, abs=0.05)


def case(n_train=1200):
    cuts = {"train": slice(0, n_train), "validation": None, "test": slice(1200, 1797)}
    return FeatureModel(), digits_of(cuts), config_of("knn")


def test_the_result_stands_beside_raw_pixels(tmp_path):
    model, data, config = case()
    [row] = evaluators.evaluate(model, data, config, tmp_path)
    assert row["floor"] == {"raw pixels": row["value"]}, "the features are the pixels"
    assert row["value"] > 0.9
    expected = {"metric": "knn_accuracy", "protocol": "knn-v1", "split": "test", "n": 597, "n_train": 1200}
    assert row.items() >= (expected | {"k": 20, "temperature": 0.07, "layer": "encoder", "seed": 0}).items()
    json.dumps(row)


def test_the_validation_split_has_a_result_of_its_own_to_choose_by():
    model, data, config = case()
    data.validation, data.test = data.test, split(data.test.images[:9], data.test.labels[:9])
    test, validation = evaluators.evaluate(model, data, config)
    assert (test["split"], test["n"], validation["split"], validation["n"]) == ("test", 9, "validation", 597)
    assert validation["value"] > 0.9 and validation["protocol"] == test["protocol"] and "floor" not in validation


def test_more_neighbours_than_images_name_the_field():
    model, data, config = case(n_train=19)
    with pytest.raises(UserError, match=r"config.eval.knn.k=20: must be at most the 19 training images"):
        evaluators.evaluate(model, data, config)


def test_what_the_data_lacks_is_said_in_one_line():
    model, data, config = case()
    lines = []
    data.test.labels = None
    assert evaluators.evaluate(model, data, config, log=lines.append) == []
    data.test = None
    assert evaluators.evaluate(model, data, config, log=lines.append) == []
    assert lines == [
        "knn: skipped, the data has no labels",
        "knn: skipped, the data has no test split",
    ]
