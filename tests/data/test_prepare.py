"""`python -m hybrid_jax.data.prepare`: what it makes and leaves behind, and the mistakes it answers."""

import errno
import fcntl
import hashlib
import importlib.util
import io
import pathlib
import shutil
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiles

from hybrid_jax.data import prepare
from hybrid_jax.data.tfds import reader

ROOT = pathlib.Path(__file__).parents[2]
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


class WithoutImage(tiles.Tiles):
    """A set of texts."""

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))


class NeedsTensorflow(tiles.Tiles):
    """tfds encodes arrays with it, which shows only when the first is written."""

    def _generate_examples(self, split):
        yield 0, {"id": "0", "image": tiles.pixels(split, 0), "label": 0}


# Preparing


def test_a_set_is_prepared_once(run):
    place = run.root / "tiles/1.0.0"
    use = f"use it with --config.data.name=tiles --config.data.path={run.root}"
    summary = f"array_record in {place} (train 14, test 6); {use}"
    assert run("tiles") == (0, [f"preparing tiles in {run.root}", f"tiles is prepared as {summary}"])
    assert run.files()[:2] == ["tiles", "tiles/1.0.0"]
    assert [path.name for path in run.root.iterdir()] == ["tiles"]
    assert run("tiles") == (0, [f"tiles is already prepared as {summary}"])
    assert run("tiles:1.0.0") == (0, [f"tiles is already prepared as {summary}"])
    ((images, _),) = reader.open_named("tiles", str(run.root), ()).chunks("test")
    np.testing.assert_array_equal(images, [tiles.pixels("test", i) for i in range(6)])


def test_processes_at_once_all_succeed_and_leave_nothing_else(start, tmp_path):
    started = start(3, "import tiles", "tiles", f"--data_dir={tmp_path}")
    outputs, errors = zip(*(process.communicate(timeout=60) for process in started), strict=True)
    assert [process.returncode for process in started] == [0, 0, 0], errors
    assert sum("preparing tiles in" in output for output in outputs) == 1
    assert sum("prepared as array_record in" in output for output in outputs) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["tiles"]
    assert [path.name for path in (tmp_path / "tiles").iterdir()] == ["1.0.0"]


def test_losing_the_race_where_there_are_no_locks(run, monkeypatch):
    other = run.root.parent / "other"
    tiles.prepare(other, "array_record")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    def lose(self, **options):
        shutil.copytree(other / "tiles", run.root / "tiles")
        raise FileExistsError("Cannot rename tiles.incomplete")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(tiles.Tiles, "download_and_prepare", lose)
    code, lines = run("tiles")
    assert (code, lines[-1].partition(" as ")[0]) == (0, "tiles is prepared")
    assert [path.name for path in run.root.iterdir()] == ["tiles"]


def test_a_stopped_command_leaves_nothing(start, tmp_path):
    slow = """
import time, tiles
def pictures(self, split):
    print("started", flush=True, file=sys.stderr)
    time.sleep(60)
    yield 0, {}
tiles.Tiles._generate_examples = pictures
"""
    root = tmp_path / "new/sets"
    (process,) = start(1, slow, "tiles", f"--data_dir={root}")
    while "started" not in process.stderr.readline():
        pass
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cifar1O"], "cifar1O: no such data set, did you mean cifar10?; must be SET or SET/CONFIG of tfds"),
        (["huggingface:mnist"], "huggingface:mnist: no such data set; must be SET or SET/CONFIG of tfds"),
        (["cifar10/"], "cifar10/: no such data set, did you mean cifar10?; must be SET or SET/CONFIG of tfds"),
        (["../etc"], "../etc: no such data set; must be SET or SET/CONFIG of tfds"),
        (["cifar10/large"], "cifar10/large: cifar10 has no configs; the name is cifar10"),
        (
            ["downsampled_imagenet/16x16"],
            "downsampled_imagenet/16x16: no such config; must be one of: "
            "downsampled_imagenet/32x32, downsampled_imagenet/64x64",
        ),
        (
            ["imagenet2012_corrupted/fog_6"],
            "imagenet2012_corrupted/fog_6: no such config, did you mean fog_5?; imagenet2012_corrupted has 95",
        ),
        (["cifar10", "--manual_dir=/no/such"], "--manual_dir=/no/such: no such folder"),
        (["cifar10", "extra"], "unrecognized arguments: extra; see --help"),
        (["without_image"], "config.data.name='without_image': must be a set with a feature `image` of 8 or 16 bits"),
    ],
)
def test_mistakes_are_answered_at_once(run, words, message):
    assert run.error(*words) == message
    assert not run.root.exists()


def test_formats_that_lose_examples_are_no_choice(run):
    assert "parquet" in run.error("cifar10", "--file_format=parquet")


def test_a_version_that_cannot_be_prepared(run):
    assert run.error("tiles:9.9.9").endswith("cannot be loaded at version 9.9.9, only: 1.0.0.)")


@pytest.mark.parametrize("name", ["embedded", "digits", "folder"])
def test_sets_that_need_none(run, name):
    assert run(name) == (0, [f"{name} needs no preparation"])


@pytest.mark.parametrize(
    "words", [["cifar10"], ["svhn_cropped"], ["downsampled_imagenet/32x32"], ["tiles", "--file_format=tfrecord"]]
)
def test_missing_tensorflow_is_told_before_any_download(run, monkeypatch, words):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    line = f"{words[0]} needs TensorFlow for preparation (not for reading): pip install 'tensorflow-cpu>=2.20'"
    assert run.error(*words) == line
    assert not run.root.exists()


@pytest.mark.skipif(HAS_TENSORFLOW, reason="shows what happens without TensorFlow")
def test_missing_tensorflow_that_shows_late(run):
    assert run.error("needs_tensorflow") == prepare.tensorflow_is_missing("needs_tensorflow")
    assert not run.root.exists()


def test_formats_do_not_mix_in_one_directory(run):
    tiles.prepare(run.root, "array_record")
    message = run.error("tiles", "--file_format=tfrecord")
    there = f"is already prepared as array_record in {run.root}/tiles/1.0.0"
    assert message == f"--file_format=tfrecord: tiles {there}; formats do not mix in one --data_dir"
    assert run("tiles", "--file_format=array_record")[0] == 0


def test_what_lies_there_is_damaged(run):
    tiles.prepare(run.root, "array_record")
    folder = run.root / "tiles/1.0.0"
    file = folder / "tiles-test.array_record-00001-of-00002"
    file.unlink()
    assert f"is damaged ({file.name} is missing); delete it and run again" in run.error("tiles")
    (folder / "features.json").unlink()
    assert run.error("tiles") == f"{folder} is damaged (no features.json); delete it and run again"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_directory_that_cannot_be_written(run, tmp_path, place):
    (tmp_path / "file").write_text("")
    run.root = tmp_path / place
    message = run.error("tiles")
    assert message.startswith(f"{run.root} cannot be written (")
    assert message.endswith("); choose another --data_dir")


def test_a_full_disk(run, monkeypatch):
    def full(self, split):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tiles.Tiles, "_generate_examples", full)
    assert run.error("tiles").startswith(
        "tiles cannot be prepared (No space left on device); choose another --data_dir"
    )
    assert not run.root.exists()


# The real builder of cifar10, on an archive made here, where there is TensorFlow


def cifar_archive(file, images, labels):
    """Writes an archive of CIFAR-10's layout: 3 images in each training file, 4 for the test."""
    with tarfile.open(file, "w:gz") as archive:
        contents = {"batches.meta.txt": "\n".join(f"class {i}" for i in range(10)).encode()}
        for i in range(6):
            name = "test_batch.bin" if i == 5 else f"data_batch_{i + 1}.bin"
            part = range(3 * i, 3 * i + (4 if i == 5 else 3))
            contents[name] = b"".join(bytes([labels[j]]) + images[j].transpose(2, 0, 1).tobytes() for j in part)
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def pairs_of(images, labels):
    return [(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)]


@pytest.mark.skipif(
    not HAS_TENSORFLOW,
    reason=f"tfds prepares cifar10 with TensorFlow only: {prepare.PIP}",
)
@pytest.mark.parametrize("file_format", prepare.FORMATS)
def test_cifar10_from_an_archive_fetched_by_hand(start, tmp_path, file_format):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (19, 32, 32, 3), np.uint8), rng.integers(0, 10, 19)
    archive, root = tmp_path / "cifar-10-binary.tar.gz", tmp_path / "sets"
    cifar_archive(archive, images, labels)
    content = archive.read_bytes()
    ours = f"""
import tensorflow_datasets as tfds
(info,) = tfds.builder_cls("cifar10").url_infos.values()
info.size, info.checksum = {len(content)}, {hashlib.sha256(content).hexdigest()!r}
"""
    flags = [f"--data_dir={root}", f"--manual_dir={tmp_path}", f"--file_format={file_format}"]
    started = start(2, ours, "cifar10", *flags)
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert [path.name for path in root.iterdir()] == ["cifar10"]
    prepared = reader.open_named("cifar10", str(root), ())
    assert prepared.file_format == file_format
    assert prepared.class_names == tuple(f"class {i}" for i in range(10))
    for split, part in (("train", slice(15)), ("test", slice(15, 19))):
        ((found, classes),) = prepared.chunks(split)
        # tfds shuffles what it writes.
        assert sorted(pairs_of(found, classes)) == sorted(pairs_of(images[part], labels[part]))
    assert "tensorflow" not in sys.modules
