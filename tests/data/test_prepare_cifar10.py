"""The real builder of cifar10, on an archive made here, where there is TensorFlow."""

import hashlib
import importlib.util
import io
import sys
import tarfile

import numpy as np
import pytest

from hybrid_jax.data import prepare
from hybrid_jax.data.tfds import reader


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
    importlib.util.find_spec("tensorflow") is None,
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
