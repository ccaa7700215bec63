"""Every damage to a prepared set is found, and its file named."""

import shutil

import numpy as np
import pytest
import tiles
from PIL import Image

from hybrid_jax.data.tfds import reader, records
from hybrid_jax.errors import UserError


def error_of(call):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read_all(root):
    prepared = reader.open_named("tiles", str(root), ())
    return {split: list(prepared.chunks(split)) for split in prepared.splits}


def damaged(folder, reason):
    return f"config.data.path={str(folder)!r}: is damaged ({reason}); delete it and run again"


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "empty", "one split's file for another's"])
def test_damage_is_found_and_its_file_named(copy, kind, damage):
    file = copy / f"tiles-train.{kind}-00001-of-00002"
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "changed":
        content[900] ^= 4
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-700])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        shutil.copy(copy / f"tiles-test.{kind}-00001-of-00002", file)
    message = error_of(lambda: read_all(copy.parents[1]))
    assert message.startswith(f"config.data.path='{copy}': is damaged ({file.name}")
    assert message.endswith("; delete it and run again")


def test_every_bit_of_a_tfrecord_is_checked(roots, tmp_path):
    content = next((roots["tfrecord"] / "tiles/1.0.0").glob("*test*")).read_bytes()
    file = tmp_path / "file"
    for i in range(len(content)):
        changed = bytearray(content)
        changed[i] ^= 1 << i % 8
        file.write_bytes(changed)
        with pytest.raises(records.DamagedError, match="wrong checksum in record"):
            list(records.read_tfrecord(file))


def test_a_tfrecord_cut_anywhere_is_found(roots, tmp_path):
    """Between two records the rest is in order: only the number tells."""
    shutil.copytree(roots["tfrecord"] / "tiles", tmp_path / "tiles")
    file = tmp_path / "tiles/1.0.0/tiles-test.tfrecord-00000-of-00002"
    content = file.read_bytes()
    ends = np.cumsum([16 + len(record) for record in records.read_tfrecord(file)])
    assert ends[-1] == len(content)
    reasons = set()
    for length in {0, *ends[:-1], *range(0, len(content), 17)}:
        file.write_bytes(content[:length])
        reasons.add(error_of(lambda: read_all(tmp_path)).partition(f"{file.name}: ")[2].partition(")")[0])
    numbers = {f"{found} records, must be 3" for found in range(3)}
    assert reasons == {*numbers, *(f"cut off in record {i}" for i in (1, 2, 3))}


def test_fewer_or_more_records_than_the_info_says(copy, kind):
    info = copy / "dataset_info.json"
    text = info.read_text()
    for claimed in ("6", "8"):
        info.write_text(text.replace('"7"', f'"{claimed}"', 1))
        message = error_of(lambda: read_all(copy.parents[1]))
        assert message == damaged(copy, f"tiles-train.{kind}-00000-of-00002: 7 records, must be {claimed}")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("text", ["", "{", '{"a": 1}', "[]"])
def test_unreadable_descriptions(copy, name, text):
    (copy / name).write_text(text)
    message = error_of(lambda: read_all(copy.parents[1]))
    assert "is damaged (" in message
    assert message.endswith("; delete it and run again")


def test_an_image_that_cannot_be_decoded(tmp_path):
    prepared = tiles.prepare_pictures(tmp_path, [tiles.encoded(Image.new("L", (8, 8)))[:40]], (None, None, 1))
    message = error_of(lambda: list(prepared.chunks("train")))
    file = "pictures-train.array_record-00000-of-00001"
    assert message.startswith(
        f"config.data.path='{prepared.data_path}': is damaged ({file}: an image cannot be decoded"
    )
