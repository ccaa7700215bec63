"""Prepared tfds sets: read without TensorFlow from both formats, and the mistakes that can be made."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiles
from PIL import Image

from hybrid_jax.data.tfds import reader
from hybrid_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[3]
OTHERS = ("embedded", "folder")


def open_tiles(root):
    return reader.open_named("tiles", str(root), OTHERS)


def error_of(call):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Reading


def test_both_formats_give_the_pixels_that_were_written(roots, kind):
    prepared = open_tiles(roots[kind])
    assert (prepared.name, prepared.file_format, prepared.splits) == ("tiles", kind, tiles.SIZES)
    assert prepared.data_path == roots[kind] / "tiles/1.0.0"
    assert prepared.class_names == tiles.CLASS_NAMES
    for split, total in tiles.SIZES.items():
        chunks = list(prepared.chunks(split, size=4))
        images = [image for part, _ in chunks for image in part]
        labels = np.concatenate([part for _, part in chunks])
        np.testing.assert_array_equal(images, [tiles.pixels(split, i) for i in range(total)])
        assert (images[0].dtype, labels.dtype) == (np.uint8, np.int32)
        assert labels.tolist() == ([-1] * total if split == "test" else [i % 2 for i in range(total)])
        assert max(len(part) for part, _ in chunks) <= 4


def test_the_files_of_a_split(roots, kind):
    names = [file.name for file in open_tiles(roots[kind]).files("test")]
    assert names == [f"tiles-test.{kind}-0000{i}-of-00002" for i in range(2)]


def test_tensorflow_is_not_imported(roots, tmp_path):
    """An empty module of its name is in reach, so that importing it would succeed and be seen."""
    (tmp_path / "tensorflow.py").write_text("")
    code = """
import sys
from hybrid_jax.data.tfds import reader
for root in sys.argv[1:]:
    print(len(list(reader.open_named("tiles", root, ()).chunks("train"))), "tensorflow" in sys.modules)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT)))}
    command = [sys.executable, "-c", code, *map(str, roots.values())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("2 False\n" * 2, "")


def test_images_get_the_channels_that_the_set_declares(tmp_path):
    """Sets of photographs hold some grey and some palette files among their colour ones."""
    grey = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10))
    files = [
        tiles.encoded(grey),
        tiles.encoded(grey.convert("RGB").quantize(64)),
        tiles.encoded(grey, "jpeg"),
        tiles.encoded(grey.rotate(90)),
    ]
    ((images, labels),) = tiles.prepare_pictures(tmp_path, files, (None, None, 3)).chunks("train")
    assert labels is None
    assert [image.shape for image in images] == [(6, 10, 3)] * 4
    np.testing.assert_array_equal(images[0], np.asarray(grey.convert("RGB")))
    np.testing.assert_array_equal(images[1], np.asarray(grey.convert("RGB").quantize(64).convert("RGB")))


def test_sixteen_bits_are_kept_where_they_are_grey(tmp_path):
    values = np.arange(0, 65536, 1093, dtype=np.uint16).reshape(6, 10)
    prepared = tiles.prepare_pictures(
        tmp_path / "grey", [tiles.encoded(Image.fromarray(values))], (6, 10, 1), np.uint16
    )
    (((image,), _),) = prepared.chunks("train")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image[..., 0], values)
    message = error_of(lambda: tiles.prepare_pictures(tmp_path / "colour", [b""], (6, 10, 3), np.uint16))
    assert "must not have 16-bit colour images" in message


def test_large_images_come_in_smaller_parts(tmp_path, monkeypatch):
    """Also the way through threads, which small images do not take."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8))
    monkeypatch.setattr(reader, "_CHUNK_BYTES", 50_000)
    prepared = tiles.prepare_pictures(tmp_path, [tiles.encoded(photo)] * 5, (None, None, 3))
    chunks = [images for images, _ in prepared.chunks("train")]
    assert [len(images) for images in chunks] == [2, 2, 1]
    for images in chunks:
        np.testing.assert_array_equal(images, [np.asarray(photo)] * len(images))


# Mistakes


@pytest.mark.parametrize("split", ["validation", "train[:70000]", "train[:10%]", "train+test", ""])
def test_an_unknown_split_or_a_slice_lists_the_splits(roots, split):
    prepared = open_tiles(roots["tfrecord"])
    for call in (lambda: prepared.files(split), lambda: list(prepared.chunks(split))):
        assert error_of(call) == f"tiles has no split {split!r}; it has: train, test"


@pytest.mark.parametrize("other", ["parquet", "riegeli"])
def test_formats_that_cannot_be_read_safely_are_refused(copy, tmp_path, other):
    """tfds drops examples where it writes parquet."""
    info = copy / "dataset_info.json"
    content = json.loads(info.read_text())
    info.write_text(json.dumps(content | {"fileFormat": other}))
    place = tmp_path / "array_record"
    assert error_of(lambda: open_tiles(tmp_path)) == (
        f"config.data.name='tiles': is prepared as {other}, must be tfrecord or array_record: "
        f"python -m hybrid_jax.data.prepare tiles --data_dir={place} and set data.path={place}"
    )


def test_a_set_that_is_not_prepared_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    command = "python -m hybrid_jax.data.prepare"
    for path, flag in ((str(tmp_path / "my sets"), f" --data_dir='{tmp_path}/my sets'"), ("", "")):
        root = path or tmp_path
        message = error_of(lambda path=path: reader.open_named("cifar10", path, OTHERS))
        allowed = f"is not prepared in {root}; run {command} cifar10{flag}"
        assert message == f"config.data.name='cifar10': {allowed}"
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_is_not_prepared_names_those_that_are(roots, tmp_path):
    shutil.copytree(roots["tfrecord"] / "tiles/1.0.0", tmp_path / "tiles/small/1.0.0")
    for name in ("tiles", "tiles/large"):
        message = error_of(lambda name=name: reader.open_named(name, str(tmp_path), OTHERS))
        assert f"is not prepared in {tmp_path} (tiles/small is there); run " in message
    assert reader.open_named("tiles/small", str(tmp_path), OTHERS).data_path == tmp_path / "tiles/small/1.0.0"


@pytest.mark.parametrize("name", ["tiles/", "tiles:", "tiles/a/b", "tiles extra", "tiles:1.0.0/x", "tiles\nx"])
def test_a_name_that_tfds_cannot_parse(roots, name):
    message = error_of(lambda: reader.open_named(name, str(roots["tfrecord"]), OTHERS))
    assert message.startswith(f"config.data.name={name!r}: ")


def test_an_address_is_no_directory():
    message = error_of(lambda: reader.open_named("cifar10", "gs://bucket/sets", OTHERS))
    assert message.startswith("config.data.path='gs://bucket/sets': must be a local directory")


def test_made_up_data_is_never_taken_for_a_set(roots):
    with tfds.testing.mock_data(num_examples=3):
        assert "is not prepared" in error_of(lambda: open_tiles(roots["tfrecord"]))
