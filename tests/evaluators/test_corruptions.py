"""The evaluator of corrupted images: what it measures, what it keeps, what it refuses."""

import numpy as np
import pytest
from fakes import config_of, digits, root_pixel_model, split
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hybrid_jax import config as config_lib
from hybrid_jax import corruptions, evaluators
from hybrid_jax.errors import UserError
from hybrid_jax.evaluators import linear_probe


def config():
    return config_of("linear_probe", "corruptions", corruptions__num_images=60, corruptions__severities=(5, 1))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Rows, the model and where floors were kept."""
    model, directory = root_pixel_model(), tmp_path_factory.mktemp("floors")
    return evaluators.evaluate(model, digits(), config(), directory), model, directory


def rows_of(found):
    return {row["metric"]: row for row in found[0] if row["protocol"] == "corruptions-v2"}


def test_the_headline_is_the_plain_mean_and_the_share_is_of_the_same_images(found):
    row, share = (rows_of(found)[name] for name in ("corruption_accuracy", "corruption_share_retained"))
    assert set(row["accuracy"]) == set(corruptions.MAIN) and row["severities"] == [1, 5] and row["n"] == 60
    values = [value for by_severity in row["accuracy"].values() for value in by_severity.values()]
    assert len(values) == 30 and row["value"] == pytest.approx(np.mean(values))
    floors = [value for by_severity in row["floor_accuracy"].values() for value in by_severity.values()]
    assert row["floor"] == {"raw pixels": pytest.approx(np.mean(floors))}
    assert share["value"] == pytest.approx(row["value"] / row["clean_value"])
    assert 0.3 < row["value"] < row["clean_value"] and 0 < share["standard_error"] < 0.1


def test_a_cell_is_scikit_learns_probe_on_those_images(found):
    data, row = digits(), rows_of(found)["corruption_accuracy"]
    model = root_pixel_model()
    x = np.concatenate([model.embed(data.train.images), model.embed(data.validation.images)])
    scaler = StandardScaler().fit(model.embed(data.train.images))
    oracle = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8)
    oracle.fit(scaler.transform(x), np.concatenate([data.train.labels, data.validation.labels]))
    images = corruptions.corrupt(data.test.images[:60], "fog", 5, row["corruption_seed"])
    accuracy = np.mean(oracle.predict(scaler.transform(model.embed(images))) == data.test.labels[:60])
    assert row["accuracy"]["fog"]["5"] == pytest.approx(accuracy, abs=1.01 / 60)


def test_floors_are_kept_and_the_probe_is_fitted_once(found, monkeypatch):
    rows, _, directory = found
    fits = []
    solver = linear_probe.solver
    monkeypatch.setattr(linear_probe, "solver", lambda x: fits.append(1) or solver(x))
    model = root_pixel_model()
    assert evaluators.evaluate(model, digits(), config(), directory) == rows
    # Two layers to choose the best among; then the default layer and the last four.
    assert model.embedded == 30 * 60 and len(fits) == 4


def test_what_the_data_lacks_is_said_in_one_line():
    data, lines = digits(), []
    data.test = split(data.test.images)
    assert evaluators.evaluate(root_pixel_model(), data, config(), log=lines.append) == []
    assert lines[1] == "corruptions: skipped, the data has no labels"


@pytest.mark.parametrize("severities", [(), (0,), (6,), (1.5,)])
def test_severities_that_do_not_exist_are_refused(severities):
    c = config_lib.default_config()
    c.eval.anomaly.num_images = 0
    c.eval.corruptions.severities = severities
    with pytest.raises(UserError, match=r"eval\.corruptions\.severities.*from 1 to 5"):
        config_lib.validate(c)
