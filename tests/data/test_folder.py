"""Folders of image files, written here in every format and mode."""

import itertools

import numpy as np
import pytest
from PIL import Image

from hybrid_jax import config as config_lib
from hybrid_jax.data import decode, folder, sources
from hybrid_jax.errors import UserError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def folder_config(path, **fields):
    config = config_lib.default_config()
    config.data.name, config.data.path = "folder", str(path)
    config.data.image_size, config.data.channels = (8, 8), 3
    config.data.validation_split = ""
    for name, value in fields.items():
        config.data[name] = value
    return config


def save(path, value=0, size=(8, 8), **options):
    """Writes an image of one colour or grey value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "L" if isinstance(value, int) else "RGB"
    Image.new(mode, size, value).save(path, **options)
    return path


def error_of(config):
    with pytest.raises(UserError) as caught:
        sources.load(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Which files, splits and classes


def test_all_formats_at_any_depth_in_sorted_order(tmp_path):
    names = ["b.PNG", "a/z.jpg", "a/b/c.JPEG", "a.webp", "a/b.bmp", "é.png"]
    for name in names:
        save(tmp_path / name, RED)
    save(tmp_path / ".thumbnails/x.png")
    save(tmp_path / "._b.png")
    (tmp_path / "readme.txt").write_text("no image")
    (tmp_path / "a/labels.csv").write_text("no image")
    assert folder.find_images(tmp_path) == sorted(names)


def test_links_are_followed_but_not_in_circles(tmp_path):
    save(tmp_path / "data/one.png")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    save(tmp_path / "elsewhere/two.png")
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    assert folder.find_images(tmp_path / "data") == ["link/two.png", "one.png"]


def test_without_split_folders_a_seeded_tenth_is_the_test_split(tmp_path):
    for i in range(40):
        save(tmp_path / f"{'even' if i % 2 == 0 else 'odd'}/{i:02}.png", (i, i, i))
    first = sources.load(folder_config(tmp_path))
    again = sources.load(folder_config(tmp_path))
    assert (len(first.train.images), len(first.test.images), first.validation) == (36, 4, None)
    assert first.fingerprint == again.fingerprint
    assert first.class_names == ("even", "odd")
    values = np.concatenate([first.train.images, first.test.images])[:, 0, 0, 0]
    assert sorted(values) == list(range(40))
    labels = np.concatenate([first.train.labels, first.test.labels])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, values % 2)
    assert any("seeded 10 % of train" in note for note in first.notes)


def test_no_test_split_is_drawn_where_none_is_asked_for(tmp_path):
    for i in range(10):
        save(tmp_path / f"{i}.png", i)
    data = sources.load(folder_config(tmp_path, test_split=""))
    assert len(data.train.images) == 10
    assert data.test is None


def test_split_folders(tmp_path):
    for (i, split), kind in itertools.product(enumerate(folder.SPLITS), ("cat", "dog")):
        for k in range(i + 1):
            save(tmp_path / split / kind / f"{k}.png", (10 * i, 0, 0))
    save(tmp_path / "stray/one.png")
    data = sources.load(folder_config(tmp_path, validation_split="validation"))
    splits = (data.train, data.validation, data.test)
    assert [len(split.images) for split in splits] == [2, 4, 6]
    assert [split.images[0, 0, 0, 0] for split in splits] == [0, 10, 20]
    assert [sorted(split.labels) for split in splits] == [[0, 1], [0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert data.class_names == ("cat", "dog")
    assert data.notes == ("ignored 1 images outside the split folders",)
    share = sources.load(folder_config(tmp_path, validation_split="34%"))
    assert any("`validation` of the data is not used" in note for note in share.notes)


def test_split_folder_without_test(tmp_path):
    for i in range(20):
        save(tmp_path / f"train/{i}.png", i)
    data = sources.load(folder_config(tmp_path, validation_split="10%"))
    assert [len(s.images) for s in (data.train, data.validation, data.test)] == [16, 2, 2]


@pytest.mark.parametrize("names", [["a/1.png", "a/2.png", "3.png"], ["a/1.png", "a/b/2.png", "a/3.png"]])
def test_no_labels_unless_every_image_lies_in_one_of_two_classes(tmp_path, names):
    for name in names:
        save(tmp_path / name)
    data = sources.load(folder_config(tmp_path))
    assert data.class_names is data.train.labels is data.test.labels is None


def test_a_test_split_outside_the_classes_has_no_labels(tmp_path):
    for name in ("train/a/1.png", "train/b/2.png", "test/1.png"):
        save(tmp_path / name)
    data = sources.load(folder_config(tmp_path))
    assert data.train.labels.tolist() == [0, 1]
    assert data.test.labels is None
    assert any(note.startswith("test: no labels") for note in data.notes)


# Errors


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    where = {path: f"config.data.path='{tmp_path / path}': " for path in ("none", "file", "empty")}
    assert error_of(folder_config(tmp_path / "none")) == where["none"] + (
        "must be a folder of images; it does not exist"
    )
    assert error_of(folder_config(tmp_path / "file")).startswith(where["file"] + "must be a folder")
    assert error_of(folder_config(tmp_path / "empty")).startswith(where["empty"] + "must hold PNG, JPEG")
    assert error_of(folder_config("")) == "config.data.path='': must name the folder of images"


def test_too_few_images_for_the_splits(tmp_path):
    save(tmp_path / "1.png")
    assert "1 training image is too few to hold out 10 % for test" in error_of(folder_config(tmp_path))
    save(tmp_path / "2.png")
    message = error_of(folder_config(tmp_path, validation_split="10%"))
    assert message.startswith(f"config.data.path='{tmp_path}': 1 training image is too few")
    save(tmp_path / "3.png")
    data = sources.load(folder_config(tmp_path, validation_split="10%"))
    assert [len(s.images) for s in (data.train, data.validation, data.test)] == [1, 1, 1]


def damaged_files(root):
    whole = save(root / "whole.jpg", RED, (64, 64)).read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(root / "noise.png")
    png = (root / "noise.png").read_bytes()
    return {
        "cut.jpg": whole[:-100],
        "cut.png": png[:2000],
        "text.png": b"<html>",
        "none.bmp": b"",
        "head.png": png[:20],
    }


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "text.png", "none.bmp", "head.png"])
def test_an_unreadable_file_stops(tmp_path, name):
    (tmp_path / name).write_bytes(damaged_files(tmp_path)[name])
    message = error_of(folder_config(tmp_path))
    assert message.startswith(f"config.data.path='{tmp_path / name}': cannot be read as an image (")
    assert message.endswith("remove it, or set data.on_error=skip")


def test_unreadable_files_are_skipped_and_counted(tmp_path):
    for i in range(3):
        save(tmp_path / f"a/{i}.png", (i, i, i))
        save(tmp_path / f"b/{i}.png", (10 + i,) * 3)
    for name, content in damaged_files(tmp_path / "a").items():
        (tmp_path / "a" / name).write_bytes(content)
    (tmp_path / "a/noise.png").unlink()
    (tmp_path / "a/whole.jpg").unlink()
    data = sources.load(folder_config(tmp_path, on_error="skip", test_split=""))
    pairs = zip(data.train.images[:, 0, 0, 0].tolist(), data.train.labels.tolist(), strict=True)
    assert sorted(pairs) == [(0, 0), (1, 0), (2, 0), (10, 1), (11, 1), (12, 1)]
    assert data.notes[0].startswith(f"train: skipped 5 unreadable images, the first: {tmp_path}/a/cut.jpg: ")


def test_nothing_readable_is_an_error_even_when_skipping(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    assert "no image can be read" in error_of(folder_config(tmp_path, on_error="skip"))


# The cache


@pytest.fixture
def decodings(monkeypatch):
    """The names of the files that were decoded."""
    decoded, real = [], decode._decode
    monkeypatch.setattr(decode, "_decode", lambda path, *rest: decoded.append(path.name) or real(path, *rest))
    return decoded


def test_files_are_decoded_once_for_each_size(tmp_path, decodings):
    for i in range(20):
        save(tmp_path / f"photos/{i:02}.png", i)
    config = folder_config(tmp_path / "photos", cache=str(tmp_path / "cache"))
    first = sources.load(config)
    assert sorted(decodings) == [f"{i:02}.png" for i in range(20)]
    assert sorted(first.train.names + first.test.names) == sorted(decodings)
    again = sources.load(config)
    (tmp_path / "photos").rename(tmp_path / "moved")
    config.data.path = str(tmp_path / "moved")
    moved = sources.load(config)
    assert len(decodings) == 20
    assert first.fingerprint == again.fingerprint == moved.fingerprint
    config.data.image_size = (4, 4)
    assert sources.load(config).train.images.shape == (18, 4, 4, 3)
    assert len(decodings) == 40


@pytest.mark.parametrize("change", ["content", "added", "removed", "renamed"])
def test_a_change_of_the_folder_is_seen(tmp_path, decodings, change):
    for i in range(20):
        save(tmp_path / f"photos/{i:02}.png", i)
    config = folder_config(tmp_path / "photos", cache=str(tmp_path / "cache"))
    before = sources.load(config).fingerprint
    file = tmp_path / "photos/03.png"
    if change == "content":
        save(file, 99)
    elif change == "added":
        save(tmp_path / "photos/99.png")
    elif change == "removed":
        file.unlink()
    else:
        file.rename(tmp_path / "photos/98.png")
    assert sources.load(config).fingerprint != before
    assert len(decodings) == 40 + {"added": 1, "removed": -1}.get(change, 0)


def test_a_cache_with_skipped_files_is_no_cache_for_a_run_that_stops_at_them(tmp_path):
    for i in range(12):
        save(tmp_path / f"photos/{i:02}.png", i)
    (tmp_path / "photos/05.png").write_bytes(b"x")
    config = folder_config(tmp_path / "photos", cache=str(tmp_path / "cache"), on_error="skip")
    for _ in range(2):
        assert any("skipped 1 unreadable images" in note for note in sources.load(config).notes)
    config.data.on_error = "stop"
    assert error_of(config).startswith(f"config.data.path='{tmp_path}/photos/05.png': cannot be read as an image (")


def test_a_class_of_one_member_is_named_where_probes_cannot_learn_it(tmp_path):
    for kind, count in (("many", 30), ("some", 12), ("one", 1)):
        for i in range(count):
            save(tmp_path / f"train/{kind}/{i}.png", i)
            save(tmp_path / f"test/{kind}/{i}.png", i)
    data = sources.load(folder_config(tmp_path))
    assert not any("no training image" in note for note in data.notes)
    (tmp_path / "train/one/0.png").unlink()
    save(tmp_path / "train/none/x/0.png")
    (tmp_path / "train/none").rename(tmp_path / "validation")
    data = sources.load(folder_config(tmp_path, validation_split="validation"))
    assert data.test.labels is None  # `one` is no class any more
    for i in range(200):
        save(tmp_path / f"flat/{'ab'[i % 2]}/{i}.png", i)
    found = []
    for i in range(12):  # a tenth of them falls into the test split
        save(tmp_path / f"flat/only{i:02}/0.png", i)
        found = [note for note in sources.load(folder_config(tmp_path / "flat")).notes if "no training image" in note]
        if found:
            break
    assert len(found) == 1 and "classes have no training images, probes cannot learn them: only" in found[0]


# Which part of the images evaluators see


def test_evaluators_see_a_part_of_large_splits(tmp_path):
    for i in range(60):
        save(tmp_path / f"{'ab'[i % 2]}/{i:02}.png", i)
    data = sources.load(folder_config(tmp_path, memory_gib=0.0))
    assert not isinstance(data.train.images, np.ndarray)
    part = data.for_evaluation(20).in_memory()
    assert [len(split.images) for split in (part.train, part.test)] == [20, 6]
    np.testing.assert_array_equal(part.train.images, data.train.images[:20])
    np.testing.assert_array_equal(part.train.labels, data.train.labels[:20])
    assert part.notes == ("evaluators use 20 of 54 train images (eval.max_images)",)
    assert part.fingerprint != data.fingerprint
    whole = data.for_evaluation(1000)
    assert (whole.notes, whole.fingerprint) == ((), data.fingerprint)


def test_a_labelled_split_takes_the_place_of_the_training_split_for_probes(tmp_path):
    for i in range(20):
        save(tmp_path / f"train/{i}.png", i)
        save(tmp_path / f"labelled/{'ab'[i % 2]}/{i}.png", 100 + i)
        save(tmp_path / f"test/{'ab'[i % 2]}/{i}.png", 200 + i)
    data = sources.load(folder_config(tmp_path, labelled_split="labelled", validation_split="10%"))
    assert data.train.labels is None and data.class_names == ("a", "b")
    assert not any("no labels" in note for note in data.notes)
    seen = data.for_evaluation(1000)
    assert [len(s.images) for s in (data.train, data.validation, seen.train, seen.validation)] == [18, 2, 18, 2]
    for split in (seen.train, seen.validation):
        assert set(split.images[:, 0, 0, 0].tolist()) <= set(range(100, 120))
        np.testing.assert_array_equal(split.labels, split.images[:, 0, 0, 0] % 2)
