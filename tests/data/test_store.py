"""Stores of decoded images: what goes in comes out, and damage is told."""

import json
import os
import resource

import numpy as np
import pytest

from hybrid_jax.data import store
from hybrid_jax.data.store import Chunk
from hybrid_jax.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (500, 20, 16, 3)).astype(np.uint8)


def chunks():
    for start in range(0, 500, 60):
        part = slice(start, min(start + 60, 500))
        count = len(IMAGES[part])
        names = [f"{i}.png" for i in range(start, start + count)]
        yield Chunk(IMAGES[part], np.arange(start, start + count, dtype=np.int32), names, np.full((count, 2), start))


def make(folder, made=chunks):
    return store.open_or_make(folder, IMAGES.shape[1:], made, 500)


def never():
    raise AssertionError("made a second time")


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_SHARD_BYTES", 200_000)  # several files
    return make(tmp_path / "s")


def test_what_goes_in_comes_out(tmp_path, stored):
    again = make(tmp_path / "s", never)
    assert len(list((tmp_path / "s").glob("*.array_record"))) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    for one in (stored, again):
        np.testing.assert_array_equal(one.images.to_memory(), IMAGES)
        assert one.labels.tolist() == list(range(500)) and one.labels.dtype == np.int32
        assert one.names[137] == "137.png"
        assert one.sizes[130].tolist() == [120, 120]
        assert one.digest == store.digest_of(IMAGES)


def test_rows_are_read_as_of_an_array(stored):
    rows = RNG.permutation(500)[:40]
    some = stored.images.select(rows)
    assert (some.shape, some.dtype, some.nbytes) == ((40, 20, 16, 3), np.uint8, IMAGES[:40].nbytes)
    np.testing.assert_array_equal(some[5:9], IMAGES[rows[5:9]])
    np.testing.assert_array_equal(some[np.array([3, 3, 39])], IMAGES[rows[[3, 3, 39]]])
    np.testing.assert_array_equal(some[7], IMAGES[rows[7]])
    np.testing.assert_array_equal(some.to_memory(), IMAGES[rows])
    assert some[:0].shape == (0, 20, 16, 3)


def test_a_store_without_images(tmp_path):
    def nothing():
        yield Chunk(IMAGES[:0], None, [], np.zeros((0, 2)), ("a.png: damaged",))

    empty = make(tmp_path / "s", nothing)
    assert len(empty.images) == len(empty.images.to_memory()) == 0
    assert (empty.names, empty.skipped) == (None, ("a.png: damaged",))


def test_an_error_leaves_nothing_behind(tmp_path):
    def failing():
        yield from chunks()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "s", failing)
    assert list(tmp_path.iterdir()) == []


def test_losing_the_race_to_make_it_is_no_error(tmp_path):
    def slow():
        yield from chunks()
        make(tmp_path / "other").folder.rename(tmp_path / "s")  # as another process would

    assert make(tmp_path / "s", slow).digest == store.digest_of(IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    import socket

    host = socket.gethostname()
    dead, alive = (tmp_path / f"s.{host}.{pid}.incomplete" for pid in (2**22 + 1, os.getppid()))
    dead.mkdir()
    alive.mkdir()
    make(tmp_path / "s")
    assert {path.name for path in tmp_path.iterdir()} == {"s", alive.name}


def damage(folder, kind):
    first = sorted(folder.glob("*.array_record"))[0]
    content = bytearray(first.read_bytes())
    if kind == "cut":
        first.write_bytes(content[:-100])
    elif kind == "missing":
        first.unlink()
    elif kind == "flipped":
        content[100_000] ^= 1
        first.write_bytes(content)
    elif kind == "empty file":
        first.write_bytes(b"")
    elif kind == "no index":
        (folder / "store.json").unlink()
    elif kind == "cut index":
        os.truncate(folder / "store.json", 40)
    elif kind == "cut labels":
        os.truncate(folder / "labels.npy", 200)
    else:
        about = json.loads((folder / "store.json").read_text())
        (folder / "store.json").write_text(json.dumps(about | {"format_version": 99}))


KINDS = ("cut", "missing", "flipped", "empty file", "no index", "cut index", "cut labels", "version")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_told_in_one_line(tmp_path, stored, kind):
    damage(tmp_path / "s", kind)
    with pytest.raises(UserError) as caught:
        make(tmp_path / "s", never).images.to_memory()
    message = str(caught.value)
    assert message.startswith(f"config.data.cache='{tmp_path / 's'}': is damaged (")
    assert message.endswith("delete it and run again to recreate it") and "\n" not in message


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"config.data.cache='.*file': .* cannot be written \(Not a directory\)"):
        make(tmp_path / "file/s")


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(UserError, match=r"config.data.cache=.* cannot be written \(.*File too large\)"):
            make(tmp_path / "s")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_progress_appears_where_it_takes_long(tmp_path, capsys, monkeypatch):
    make(tmp_path / "quick")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(store, "_QUIET", 0)
    make(tmp_path / "slow")
    shown = capsys.readouterr()
    assert shown.out == "" and "decoding images, once: 100%" in shown.err
