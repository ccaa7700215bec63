"""What is kept of a checkpoint's features: the same bits, for the same checkpoint and images, and nothing else."""

import copy
import shutil

import jax
import numpy as np
import pytest
import tiny

from hybrid_jax import evaluate, train
from hybrid_jax.data import sources
from hybrid_jax.evaluators import feature_cache
from hybrid_jax.evaluators.feature_cache import FeatureCache
from hybrid_jax.evaluators.features import FeatureStore
from hybrid_jax.inference.model import Model
from hybrid_jax.models import hybrid

LIMIT = 2**20
TOLD = "  features: those that an earlier evaluation of this checkpoint kept in cache/"


@pytest.fixture(scope="module")
def model():
    config = tiny.get_config()
    return Model(config, hybrid.init_params(hybrid.build_model(config), jax.random.key(0), None), None, 10)


@pytest.fixture(scope="module")
def data(model):
    return sources.load(model.config)


def store(workdir, model, data, lines=None, limit=LIMIT):
    lines = [] if lines is None else lines
    return FeatureStore(model, data, cache=FeatureCache(workdir, model, limit, lines.append))


def files(workdir):
    return sorted(path.name for path in workdir.glob("cache/*/*"))


def test_what_is_kept_is_what_is_computed_to_the_last_bit(tmp_path, model, data):
    lines = []
    fresh, images = store(tmp_path, model, data, lines), data.test.images
    first = {split: fresh.layers(split) for split in ("test", "validation")} | {"p": fresh.log_prob("test", images)}
    assert files(tmp_path) == ["features of test.npz", "features of validation.npz", "log_prob of test.npz"]
    assert not lines
    again = store(tmp_path, no_network(model), data, lines)
    second = {split: again.layers(split) for split in ("test", "validation")} | {"p": again.log_prob("test", images)}
    assert lines == [TOLD]
    computed = FeatureStore(model, data).layers("test")
    assert list(second["test"]) == list(computed) == list(model.layers)
    jax.tree.map(np.testing.assert_array_equal, second, first)
    jax.tree.map(np.testing.assert_array_equal, second["test"], computed)
    np.testing.assert_array_equal(second["p"], model.log_prob(images))


def no_network(model):
    """The same checkpoint, of which nothing can be asked."""
    silent = copy.copy(model)
    silent.features = silent.log_prob = lambda *images: pytest.fail("passed the network")
    return silent


@pytest.mark.parametrize("change", ["parameter", "pixel", "order", "batch", "mask", "normed"])
def test_whatever_changes_is_a_miss(tmp_path, model, data, change):
    store(tmp_path, model, data).layers("test")
    other, split, normed = copy.copy(model), data.test, change == "normed"
    if change == "parameter":
        leaves, tree = jax.tree.flatten(model.params)
        other.params = jax.tree.unflatten(tree, [*leaves[:-1], leaves[-1].at[(0,) * leaves[-1].ndim].add(1e-6)])
    elif change in ("batch", "mask"):
        other.config = copy.deepcopy(model.config)
        name, value = {"batch": ("eval.batch_size", 100), "mask": ("model.view_attention", "causal")}[change]
        other.config.update_from_flattened_dict({name: value})
    elif change in ("pixel", "order"):
        images = split.images.copy()
        images[0, 0, 0, 0] ^= 1
        split = type(split)(images if change == "pixel" else split.images[::-1], split.labels)
    asked, lines = [], []
    other.features = lambda images, **more: asked.append(images) or model.features(images, **more)
    cache = FeatureCache(tmp_path, other, LIMIT, lines.append)
    seen = type(data)(**{**vars(data), "test": split})
    found = FeatureStore(other, seen, normed, cache).layers("test")
    assert len(asked) == 1 and not lines
    expected = model.features(split.images, **({"normed": True} if normed else {}))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "pickle", "folder"])
def test_a_damaged_file_costs_a_computation_and_is_written_again(tmp_path, model, data, damage):
    expected = store(tmp_path, model, data).layers("test")
    [path] = tmp_path.glob("cache/*/*")
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "pickle":
        np.savez(path, **{"content of the images": np.array([{}], object)})
    else:
        path.write_bytes({"cut": whole[:-40], "empty": b"", "text": b"nothing"}[damage])
    lines = []
    jax.tree.map(np.testing.assert_array_equal, store(tmp_path, model, data, lines).layers("test"), expected)
    assert [line[:24] for line in lines] == (["  features of test: not "] if damage == "folder" else [])
    assert damage == "folder" or path.read_bytes() == whole


def test_no_changed_byte_is_believed(tmp_path):
    path, arrays = tmp_path / "a.npz", {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}
    feature_cache.write_arrays(path, {feature_cache._KEY: feature_cache._label("k", arrays), **arrays})
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            found = feature_cache._read(path, "k", 3)
        except feature_cache._MissingError:
            continue
        assert list(found) == ["x"]
        np.testing.assert_array_equal(found["x"], arrays["x"])


def test_above_the_limit_nothing_is_kept_and_one_line_says_so(tmp_path, model, data):
    lines = []
    size = sum(values.nbytes for values in store(tmp_path, model, data).layers("test").values())
    shutil.rmtree(tmp_path / "cache")
    found = store(tmp_path, model, data, lines, limit=size + 2000)
    found.layers("test"), found.layers("validation")
    assert files(tmp_path) == ["features of test.npz"]
    [line] = lines
    assert line.startswith("  features of validation: not kept, 0.00 GiB are above eval.cache_gib=")
    store(tmp_path, model, data, lines, limit=0).layers("test")
    assert not files(tmp_path) and len(lines) == 1


def test_a_disk_that_is_full_costs_a_line(tmp_path, model, data, monkeypatch):
    def full(path, arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache, "write_arrays", full)
    lines = []
    assert store(tmp_path, model, data, lines).layers("test")
    assert lines == ["  features of test: not kept (No space left on device)"]


@pytest.mark.slow
def test_a_second_evaluation_of_the_same_checkpoint_has_the_same_results(tmp_path):
    workdir, lines = tmp_path, []
    train.train_and_evaluate(tiny.get_config(), workdir, lines.append)
    section = tiny.get_config().eval
    section.evaluators = ("knn", "likelihood")
    results = []
    for _ in range(2):
        evaluate.evaluate_workdir(workdir, None, section, lines.append)
        results.append((workdir / "eval" / "10.json").read_bytes())
    assert results[0] == results[1] and lines.count(TOLD) == 1
