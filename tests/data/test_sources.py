"""Data sets other than image folders, their splits and their errors."""

import gzip
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hybrid_jax import config as config_lib
from hybrid_jax.data import pipeline, sources
from hybrid_jax.data.embedded import CLASS_NAMES
from hybrid_jax.errors import UserError

DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
NPZ = pathlib.Path(sources.__file__).parent / "embedded/fashion_mnist_12k.npz"


def data_config(name, path="", **fields):
    config = config_lib.default_config()
    config.data.name, config.data.path = name, str(path)
    for field, value in fields.items():
        config.data[field] = value
    return config


def error_of(config):
    with pytest.raises(UserError) as caught:
        sources.load(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A directory in which three processes prepare the embedded set at once.

    An empty module called tensorflow is in reach, so that importing it would succeed and be seen.
    """
    root = tmp_path_factory.mktemp("tfds")
    fake = tmp_path_factory.mktemp("fake")
    (fake / "tensorflow.py").write_text("")
    code = """
import sys
from hybrid_jax import config as config_lib
from hybrid_jax.data import pipeline, sources
slow = {"PIL", "sklearn", "tensorflow_datasets", "jax"} & set(sys.modules)
data = sources.load(config_lib.default_config())
print(data.fingerprint, "tensorflow" in sys.modules, sorted(slow))
"""
    paths = [str(fake), str(pathlib.Path(sources.__file__).parents[2])]
    cache = {"TFDS_DATA_DIR": str(root), "HYBRID_JAX_CACHE": str(tmp_path_factory.mktemp("cache"))}
    environment = {**os.environ, **cache, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(3)]
    outputs = [process.communicate(timeout=120) for process in processes]
    (root / "outputs.json").write_text(json.dumps(outputs))
    return root


@pytest.fixture(scope="module")
def embedded(tfds_dir):
    return sources.load(data_config("embedded", tfds_dir))


# The embedded set


def test_processes_prepare_at_once_without_tensorflow_or_noise(tfds_dir, embedded):
    outputs = json.loads((tfds_dir / "outputs.json").read_text())
    assert [output for output, _ in outputs] == [f"{embedded.fingerprint} False []\n"] * 3
    # Nothing but, on a slow machine, the progress line.
    assert {line for _, errors in outputs for line in errors.split("\n") if "decoding images" not in line} <= {""}
    assert [path.name for path in tfds_dir.glob("fashion*/*")] == ["1.0.0"]


def in_file_order(split):
    """The split before its images were mixed."""
    order = np.argsort(pipeline.mixed_order(len(split.images)))
    return sources.Split(split.images[order], split.labels[order])


def test_embedded_is_the_shipped_file_in_mixed_order(embedded):
    train, validation, test = map(in_file_order, (embedded.train, embedded.validation, embedded.test))
    with np.load(NPZ) as arrays:
        np.testing.assert_array_equal(test.images[..., 0], arrays["test_images"])
        np.testing.assert_array_equal(test.labels, arrays["test_labels"])
        held = np.isin(np.arange(10_000), _held_out(10_000))
        np.testing.assert_array_equal(train.images[..., 0], arrays["train_images"][~held])
        np.testing.assert_array_equal(validation.images[..., 0], arrays["train_images"][held])
        np.testing.assert_array_equal(validation.labels, arrays["train_labels"][held])
    for split in (embedded.train, embedded.validation, embedded.test):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
    assert embedded.train.images.shape == (9000, 28, 28, 1)
    assert embedded.class_names == CLASS_NAMES


def _held_out(total):
    return np.random.default_rng(0).permutation(total)[: total // 10]


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_embedded_is_the_beginning_of_fashion_mnist(embedded):
    full = sources.load(data_config("fashion_mnist", validation_split=""))
    assert (full.train.images.shape, full.test.images.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    assert full.class_names == embedded.class_names
    train, test = in_file_order(full.train), in_file_order(full.test)
    with np.load(NPZ) as arrays:
        np.testing.assert_array_equal(test.images[:2000, ..., 0], arrays["test_images"])
        np.testing.assert_array_equal(test.labels[:2000], arrays["test_labels"])
        np.testing.assert_array_equal(train.images[:10_000, ..., 0], arrays["train_images"])
        np.testing.assert_array_equal(train.labels[:10_000], arrays["train_labels"])


def test_the_licence_goes_with_the_data(tfds_dir):
    for folder in (NPZ.parent, *tfds_dir.glob("fashion*/*")):
        notice = (folder / "LICENSE").read_text(encoding="utf-8")
        assert "Copyright © 2017 Zalando SE, https://tech.zalando.com" in notice
        assert "The above copyright notice and this permission notice shall be included" in notice


def test_losing_the_race_to_prepare_is_no_error(tfds_dir, tmp_path, monkeypatch):
    from hybrid_jax.data.embedded import builder

    def lose(self, **options):
        shutil.copytree(tfds_dir / "fashion_mnist_12k", tmp_path / "fashion_mnist_12k")
        raise FileExistsError("Cannot rename")

    monkeypatch.setattr(builder.FashionMnist12k, "download_and_prepare", lose)
    assert len(sources.load(data_config("embedded", tmp_path)).train.images) == 9000


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        message = error_of(data_config("embedded", path))
        assert message.startswith(f"config.data.path='{path}': {path} is not writable (")


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "no info"])
def test_damaged_files_are_found(tfds_dir, tmp_path, damage):
    shutil.copytree(tfds_dir / "fashion_mnist_12k", tmp_path / "fashion_mnist_12k")
    folder = tmp_path / "fashion_mnist_12k/1.0.0"
    file = next(folder.glob("*train*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    if damage == "cut":
        os.truncate(file, 3_000_000)
    elif damage == "changed":
        file.write_bytes(content)
    else:
        (file if damage == "missing" else folder / "dataset_info.json").unlink()
    message = error_of(data_config("embedded", tmp_path))
    assert message.startswith(f"config.data.path='{folder}': is damaged (")
    assert message.endswith("delete it and run again")


# Splits, on real digits


def test_digits_are_rescaled_and_a_fifth_is_the_test_split():
    from sklearn.datasets import load_digits

    data = sources.load(data_config("digits", image_size=(8, 8), validation_split=""))
    assert [len(data.train.images), len(data.test.images)] == [1438, 359]
    assert data.class_names == tuple("0123456789")
    both = np.concatenate([data.train.images, data.test.images])[..., 0].astype(int)
    assert (both.min(), both.max()) == (0, 255)
    expected = np.round(load_digits().images * 255 / 16).astype(int)
    rows = [sorted(map(tuple, images.reshape(-1, 64))) for images in (both, expected)]
    assert rows[0] == rows[1]


def test_splits_are_disjoint_and_do_not_depend_on_the_seed():
    config = data_config("digits", image_size=(8, 8), channels=1, validation_split="12.5%")
    first = sources.load(config)
    config.seed = 7
    assert sources.load(config).fingerprint == first.fingerprint
    parts = [first.train, first.validation, first.test]
    images = [{image.tobytes() for image in part.images} for part in parts]
    assert [len(part.images) for part in parts] == [1258, 180, 359]
    assert not images[0] & images[1]
    assert not images[2] & (images[0] | images[1])
    assert first.notes[0] == "test split: seeded 20 % of train, 359 images"
    assert first.notes[1] == "validation split: seeded 12.5 % of train, 180 images"


def test_the_test_split_does_not_depend_on_the_validation_split():
    some, none = (
        sources.load(data_config("digits", image_size=(8, 8), validation_split=share)) for share in ("30%", "")
    )
    np.testing.assert_array_equal(some.test.images, none.test.images)


def test_the_fingerprint_follows_the_data():
    variants = [
        {}, {"validation_split": "20%"}, {"validation_split": ""}, {"test_split": ""}, {"image_size": (7, 8)},
        {"channels": 3},
    ]  # fmt: skip
    prints = [sources.load(data_config("digits", **{"image_size": (8, 8), **v})).fingerprint for v in variants]
    assert len(set(prints)) == len(variants)


def test_the_fingerprint_follows_pixels_labels_and_names_of_classes(tmp_path):
    def prints(change):
        for i in range(20):
            place = tmp_path / f"{'ab'[i % 2]}/{i}.png"
            place.parent.mkdir(exist_ok=True)
            Image.new("L", (8, 8), 5 * i).save(place)
        change()
        return sources.load(data_config("folder", tmp_path, image_size=(8, 8))).fingerprint

    def relabel():
        (tmp_path / "a/0.png").rename(tmp_path / "b/00.png")

    def rename():
        (tmp_path / "b/00.png").unlink()
        (tmp_path / "b").rename(tmp_path / "c")

    same, again = prints(lambda: None), prints(lambda: None)
    assert same == again
    changed = [prints(lambda: Image.new("L", (8, 8), 1).save(tmp_path / "a/0.png")), prints(relabel), prints(rename)]
    assert len({same, *changed}) == 4


@pytest.mark.parametrize("share", ["0%", "100%", "-5%", "%", "x%", "nan%", "101%", "inf%"])
def test_a_share_must_lie_inside_0_and_100(share):
    message = error_of(data_config("digits", validation_split=share))
    assert message == f"config.data.validation_split='{share}': a share must lie above 0% and below 100%"


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("train_split", "trian", "must be one of: train"),
        ("train_split", "", "must be one of: train"),
        ("train_split", "test", "must be one of: train"),
        ("test_split", "tset", "must be one of: test, empty"),
        ("test_split", "train", "must be one of: test, empty"),
        ("validation_split", "valid", "must be one of: a share such as 10%, empty"),
        ("validation_split", "test", "must be one of: a share such as 10%, empty"),
    ],
)
def test_an_unknown_or_repeated_split_is_refused(field, value, allowed):
    assert error_of(data_config("digits", **{field: value})) == f"config.data.{field}={value!r}: {allowed}"


# Fashion-MNIST from IDX files


def write_idx(file, array):
    header = struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape)
    file.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def idx_dir(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28))
    for stem, part in (("train", slice(20)), ("t10k", slice(20, 30))):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", images[part])
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", np.arange(30)[part] % 10)
    return tmp_path


def test_idx_files(idx_dir):
    data = sources.load(data_config("fashion_mnist", idx_dir))
    assert [len(s.images) for s in (data.train, data.validation, data.test)] == [18, 2, 10]
    assert in_file_order(data.test).labels.tolist() == list(range(10))
    # The first of a split are a sample of it, not its first class.
    assert data.test.labels.tolist() != list(range(10))
    assert data.notes[0] == f"read from {idx_dir}"
    large = sources.load(data_config("fashion_mnist", idx_dir, image_size=(16, 20), channels=3))
    assert large.train.images.shape == (18, 16, 20, 3)


@pytest.mark.parametrize(
    "content",
    [b"", b"text", gzip.compress(b"\0\0\x08\x03\0\0"), gzip.compress(b"")],
    ids=["empty", "no gzip", "cut header", "empty gzip"],
)
def test_damaged_idx_files(idx_dir, content):
    file = idx_dir / "train-images-idx3-ubyte.gz"
    for damaged in (content, file.read_bytes()[:-200]):
        file.write_bytes(damaged)
        message = error_of(data_config("fashion_mnist", idx_dir))
        assert message.startswith(f"config.data.path='{file}': is not a readable IDX file (")


def test_missing_fashion_mnist_names_both_ways_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_DEBIAN_FASHION_MNIST", tmp_path)
    message = error_of(data_config("fashion_mnist", tmp_path))
    assert message.startswith(f"config.data.name='fashion_mnist': is not prepared in {tmp_path}")
    assert f"python -m hybrid_jax.data.prepare fashion_mnist --data_dir={tmp_path}" in message
    assert "apt-get install dataset-fashion-mnist" in message


# Other tfds sets


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A prepared set of PNGs of several sizes, whose test labels are secret."""
    import tensorflow_datasets as tfds

    class ToyShapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.3")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["dark", "light"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "validation", "test")}

        def _generate_examples(self, split):
            for i in range(10):
                image = Image.new("RGB", (20 + i, 12), (20 * i,) * 3)
                yield i, {"image": image, "label": -1 if split == "test" else int(i > 4)}

    root = tmp_path_factory.mktemp("toys")
    tfds.disable_progress_bar()
    ToyShapes(data_dir=root, file_format="array_record").download_and_prepare()
    return root


@pytest.mark.parametrize("name", ["toy_shapes", "toy_shapes:1.2.3"])
def test_a_prepared_set_needs_no_builder_code(toys, name):
    data = sources.load(data_config(name, toys, image_size=(8, 8), validation_split="validation"))
    assert data.train.images.shape == data.validation.images.shape == data.test.images.shape == (10, 8, 8, 1)
    np.testing.assert_array_equal(data.train.labels, data.train.images[:, 0, 0, 0] > 80)
    assert data.class_names == ("dark", "light")
    assert data.test.labels is None
    assert data.notes == (f"read from {toys}/toy_shapes/1.2.3",)


def test_unknown_splits_of_a_set_are_listed(toys):
    message = error_of(data_config("toy_shapes", toys, validation_split="val"))
    assert message.endswith("must be one of: validation, a share such as 10%, empty")


@pytest.mark.parametrize("name", ["photo", "image"])
def test_a_set_without_images_is_refused(toys, tmp_path, name):
    shutil.copytree(toys / "toy_shapes", tmp_path / "toy_shapes")
    file = tmp_path / "toy_shapes/1.2.3/features.json"
    content = json.loads(file.read_text())
    del content["featuresDict"]["features"]["image"]
    content["featuresDict"]["features"][name] = {
        "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
        "tensor": {"dtype": "float32", "encoding": "none", "shape": {"dimensions": ["8", "8", "3"]}},
    }
    file.write_text(json.dumps(content))
    message = error_of(data_config("toy_shapes", tmp_path))
    assert message == "config.data.name='toy_shapes': must be a set with a feature `image` of 8 or 16 bits"


def test_a_set_that_is_not_prepared_is_never_downloaded(tmp_path):
    message = error_of(data_config("cifar10", tmp_path))
    command = f"python -m hybrid_jax.data.prepare cifar10 --data_dir={tmp_path}"
    assert message == f"config.data.name='cifar10': is not prepared in {tmp_path}; run {command}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar1O", ", did you mean cifar10?"),
        ("embeded", ", did you mean embedded?"),
        ("huggingface:mnist", ""),
        ("/data/images", ""),
        ("", ""),
    ],
)
def test_an_unknown_name_gets_the_nearest(tmp_path, name, hint):
    allowed = "must be embedded, fashion_mnist, digits, folder or a prepared tfds set"
    assert error_of(data_config(name, tmp_path)) == f"config.data.name={name!r}: no such data set{hint}; {allowed}"


# Classes that a run never sees


def test_left_out_classes_are_in_no_split_and_their_test_images_are_kept_apart(tiny_config):
    whole, left = (sources.load(tiny_config(data__exclude_classes=classes)) for classes in ((), (2, 7)))
    for split in ("train", "validation", "test"):
        labels = getattr(whole, split).labels
        kept = ~np.isin(labels, (2, 7))
        assert sorted(getattr(left, split).labels) == sorted(labels[kept])
    assert set(left.held_out.labels.tolist()) == {2, 7} and whole.held_out is None
    assert len(left.held_out.images) + len(left.test.images) == len(whole.test.images)
    assert left.fingerprint != whole.fingerprint
    assert any("held out (data.exclude_classes)" in note for note in left.notes)


def test_evaluators_see_as_many_held_out_images_as_of_other_splits(tiny_config):
    seen = sources.load(tiny_config(data__exclude_classes=(2, 7))).for_evaluation(30).in_memory()
    assert len(seen.held_out.images) == len(seen.test.images) == 30


@pytest.mark.parametrize(
    ("classes", "message"),
    [((3, 11), "has 11; must be labels of training images: 0, 1, 2"), (tuple(range(10)), "must leave a class")],
)
def test_classes_that_cannot_be_left_out_are_refused(tiny_config, classes, message):
    with pytest.raises(UserError, match=f"data.exclude_classes.*{message}"):
        sources.load(tiny_config(data__exclude_classes=classes))
