"""`anomaly_score` of a trained workdir: written with the run, bound to the checkpoint, read without the data."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

import hybrid_jax
from hybrid_jax import evaluate, evaluators, train
from hybrid_jax.anomaly import fit as anomaly_fit
from hybrid_jax.data import sources
from hybrid_jax.errors import UserError
from hybrid_jax.evaluators import anomaly
from hybrid_jax.evaluators.features import FeatureStore

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)


def scored(num_images=100):
    config = tiny.get_config()
    config.eval.every_steps, config.eval.evaluators, config.eval.anomaly.num_images = 0, (), num_images
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir of which nothing but the score was evaluated, and what was said."""
    workdir, lines = tmp_path_factory.mktemp("run"), []
    config = scored()
    train.train_and_evaluate(config, workdir, lines.append)
    return workdir, lines


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run[0], tmp_path / "copied")


def test_statistics_are_written_at_the_end_of_training(run):
    workdir, lines = run
    [told] = [line for line in lines if line.startswith("anomaly score")]
    assert told == "anomaly score: fitted on 100 validation images"
    assert [path.name for path in (workdir / "anomaly").iterdir()] == ["10.npz"]
    about = hybrid_jax.load(workdir).fitted_anomaly().about
    assert about["n"] == 100 and about["split"] == "validation"


def test_a_reloaded_workdir_scores_as_the_fit_did(run):
    model = hybrid_jax.load(run[0])
    found = model.anomaly_score(IMAGES)
    assert found.shape == (5,) and found.dtype == np.float32 and np.isfinite(found).all()
    data = sources.load(model.config)
    model.config.eval.anomaly.num_images = 100
    fitted = anomaly.fitted(FeatureStore(model, data), model.config)
    # There on eight devices, here on one.
    np.testing.assert_allclose(fitted.score(model.measures(IMAGES)), found, rtol=1e-3)
    np.testing.assert_array_equal(hybrid_jax.load(run[0]).anomaly_score(IMAGES), found)
    assert np.median(model.anomaly_score(data.test.images[:50])) < found.min()


def test_embed_files_gives_the_same_scores(run, tmp_path):
    model = hybrid_jax.load(run[0])
    np.save(tmp_path / "images.npy", IMAGES)
    found = model.embed_files(tmp_path / "images.npy")
    np.testing.assert_allclose(found["anomaly_score"], model.anomaly_score(IMAGES), rtol=1e-4)


def test_without_statistics_one_line_names_the_command(copied):
    shutil.rmtree(copied / "anomaly")
    model = hybrid_jax.load(copied)
    with pytest.raises(UserError, match=rf"python -m hybrid_jax.main --mode=eval --workdir={copied} --step=10$"):
        model.anomaly_score(IMAGES)
    assert "anomaly_score" not in model.embed_files(IMAGES)


def test_statistics_of_other_parameters_are_refused(copied):
    model = hybrid_jax.load(copied)
    model.params = jax.tree.map(lambda x: x + 1e-6, model.params)
    with pytest.raises(UserError, match=r"10\.npz: was fitted to other parameters .* --mode=eval"):
        model.anomaly_score(IMAGES)


def test_a_score_of_an_earlier_version_that_is_gone_is_refused(copied):
    path = copied / "anomaly" / "10.npz"
    with np.load(path) as file:
        arrays = dict(file)
    for kind, readable in (("J1", True), ("J2", False)):
        about = json.loads(str(arrays["about"])) | {"kind": kind}
        np.savez(path, **(arrays | {"about": np.array(json.dumps(about)), "normal/mean": np.zeros(6)}))
        if readable:
            assert np.isfinite(hybrid_jax.load(copied).anomaly_score(IMAGES)).all()
        else:
            with pytest.raises(UserError, match=r"no longer computed; run: .* --mode=eval"):
                hybrid_jax.load(copied).anomaly_score(IMAGES)


@pytest.mark.parametrize("damage", ["cut", "text", "pickle", "shape"])
def test_damaged_statistics_are_told_in_one_line(copied, damage):
    path = copied / "anomaly" / "10.npz"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-700])
    elif damage == "text":
        path.write_text("no statistics")
    else:
        with np.load(path) as file:
            arrays = dict(file)
        arrays["brown"] = np.array([{}], object) if damage == "pickle" else np.ones(5)
        np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"10\.npz: is damaged .* --mode=eval") as error:
        hybrid_jax.load(copied).anomaly_score(IMAGES)
    assert "\n" not in str(error.value)


def test_statistics_of_checkpoints_that_are_gone_are_removed(copied):
    model = hybrid_jax.load(copied)
    for step in (3, 5):
        shutil.copy(copied / "anomaly" / "10.npz", copied / "anomaly" / f"{step}.npz")
    assert (copied / "checkpoints" / "5").is_dir()
    anomaly_fit.save(copied, model, model.fitted_anomaly())
    assert sorted(path.name for path in (copied / "anomaly").iterdir()) == ["10.npz", "5.npz"]


@pytest.mark.slow
def test_eval_writes_them_again(copied):
    before = hybrid_jax.load(copied).anomaly_score(IMAGES)
    shutil.rmtree(copied / "anomaly")
    section = tiny.get_config().eval
    section.evaluators, section.anomaly.num_images = (), 100
    evaluate.evaluate_workdir(copied, None, section, lambda line: None)
    np.testing.assert_allclose(hybrid_jax.load(copied).anomaly_score(IMAGES), before, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [{"generative_weight": 1.0, "contrastive_weight": 0.0}, {"generative_weight": 0.0}])
def test_each_arm_alone_has_a_score(weights, tmp_path):
    config, lines = scored(60), []
    config.objective.update(weights)
    train.train_and_evaluate(config, tmp_path, lines.append)
    [told] = [line for line in lines if line.startswith("anomaly score")]
    assert ("distance of features alone" in told) == (config.objective.generative_weight == 0)
    assert np.isfinite(hybrid_jax.load(tmp_path).anomaly_score(IMAGES)).all()


def test_too_few_images_and_no_validation_split_are_said(run):
    config, lines = scored(60), []
    data, model = sources.load(config), hybrid_jax.load(run[0])
    few = SimpleNamespace(train=data.train, validation=data.validation.take(np.arange(20)))
    evaluators.evaluate(model, few, config, log=lines.append)
    assert lines == ["anomaly: skipped, fewer than 50 validation images"]
    none = SimpleNamespace(train=data.train, validation=None)
    evaluators.evaluate(model, none, config, log=lines.append)
    assert lines[1] == "anomaly score: fitted on 60 train images" and "no validation split" in lines[2]


def test_the_same_command_again_fits_nothing_anew(copied):
    written, lines = (copied / "anomaly" / "10.npz").stat().st_mtime_ns, []
    train.train_and_evaluate(scored(), copied, lines.append)
    assert (copied / "anomaly" / "10.npz").stat().st_mtime_ns == written
    assert not any("anomaly score" in line for line in lines)
