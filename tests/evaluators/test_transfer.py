"""Transfer: the protocols of the linear probe and k-NN on another set, and what is refused before training."""

import numpy as np
import pytest
import tiny
from fakes import digits, untrained
from PIL import Image

from hybrid_jax import evaluators
from hybrid_jax.errors import UserError
from hybrid_jax.evaluators import linear_probe, transfer
from hybrid_jax.evaluators.features import FeatureStore, FloorCache


def config(**changes):
    c = tiny.get_config()
    c.eval.batch_size = 32
    c.eval.linear_probe.c_values = (0.1,)
    c.eval.evaluators = ("transfer",)
    c.eval.transfer.update(changes)
    return c


@pytest.fixture
def folder(tmp_path):
    """Two classes of colour images of 12x20 pixels, dark and bright, 22 of each."""
    rng = np.random.default_rng(0)
    for label, level in (("dark", 0), ("bright", 150)):
        place = tmp_path / "pictures" / label
        place.mkdir(parents=True)
        for i in range(22):
            pixels = (level + rng.integers(0, 100, (12, 20, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture(scope="module")
def model():
    """A network that was not trained."""
    return untrained(config(), seed=1)


def test_without_a_name_nothing_runs_and_nothing_is_said():
    lines = []
    assert evaluators.evaluate(None, digits(), config(), log=lines.append, features=object()) == [] and not lines
    evaluators.check(digits(), config())
    assert "transfer" in tiny.get_config().eval.evaluators and "finetune" not in tiny.get_config().eval.evaluators


def test_rows_are_the_probes_own_on_the_other_set(model, tmp_path):
    c = config(name="digits")
    evaluators.check(digits(), c)
    rows = evaluators.evaluate(model, digits(), c, tmp_path)
    probes = [row for row in rows if row["metric"] == "transfer_linear_probe_accuracy"]
    other = transfer.load(c)
    expected = linear_probe.evaluate(FeatureStore(model, other), c, FloorCache(None))
    assert [row["value"] for row in probes] == [row["value"] for row in expected]
    first, *_, last = rows
    assert first["variant"] == "digits, default layer" and first["inner_protocol"] == "linear-probe-v1"
    assert first["n"] == 359 and first["split"] == "test" and first["standard_error"] > 0
    assert set(first["floor"]) == {"raw pixels", "random encoder"} and first["floor"]["raw pixels"] > 0.9
    assert (last["metric"], last["split"]) == ("transfer_knn_accuracy", "validation") and "floor" not in last
    assert {row["protocol"] for row in rows} == {"transfer-v1"}
    assert {row["data_fingerprint"] for row in rows} == {other.fingerprint}
    floors = [row["floor"] for row in rows if "floor" in row]
    again = model.untrained(7)
    again.untrained = None  # the floors are kept
    assert [row["floor"] for row in evaluators.evaluate(again, digits(), c, tmp_path) if "floor" in row] == floors


def test_images_of_another_size_and_in_colour_are_brought_to_the_models(folder):
    c = config(name="folder", path=str(folder))
    c.eval.knn.k = 5
    transfer.check(c)
    data = transfer.load(c)
    assert data.train.images.shape[1:] == (8, 8, 1) and data.class_names == ("bright", "dark")
    assert len(data.test.images) == len(data.validation.images) == 4
    assert data.test.images[data.test.labels == 0].min() > data.test.images[data.test.labels == 1].max()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"name": "digis"}, r"config\.eval\.transfer\.name='digis': no such data set, did you mean digits"),
        ({"name": "folder"}, r"config\.eval\.transfer\.path='': must name the folder of images"),
        ({"name": "folder", "path": "/nowhere"}, r"config\.eval\.transfer\.path='/nowhere': .* does not exist"),
        ({"path": "/nowhere"}, r"config\.eval\.transfer\.path='/nowhere': needs eval\.transfer\.name"),
        ({"name": "digits", "test_split": "tst"}, r"config\.eval\.transfer\.test_split='tst': must be one of: test$"),
        ({"name": "digits", "test_split": ""}, r"config\.eval\.transfer\.test_split='': must name a split"),
    ],
)
def test_a_set_that_cannot_be_had_is_refused_before_training(changes, line):
    with pytest.raises(UserError, match=line):
        evaluators.check(digits(), config(**changes))


def test_a_set_without_labels_or_with_too_few_images_is_refused(folder):
    with pytest.raises(UserError, match=r"config\.eval\.transfer\.name='folder': its train images have no labels"):
        transfer.check(config(name="folder", path=str(folder / "dark")))
    c = config(name="folder", path=str(folder))
    c.eval.knn.k = 37
    with pytest.raises(UserError, match=r"config\.eval\.knn\.k=37: must be at most the 36 training images"):
        transfer.check(c)
