"""Folders of image files, written here in every format and mode."""

import itertools
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from hybrid_jax import config as config_lib
from hybrid_jax.data import folder, sources
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


def decode(path, size=(8, 8), channels=3):
    images, _, _ = folder.read_images(path.parent, [path.name], size, channels, "stop")
    return images[0]


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
    assert any("`validation` is left out" in note for note in share.notes)


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
    assert "1 training images are too few to hold out 10 % for test" in error_of(folder_config(tmp_path))
    save(tmp_path / "2.png")
    message = error_of(folder_config(tmp_path, validation_split="10%"))
    assert message.startswith(f"config.data.path='{tmp_path}': 1 training images are too few")
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


def test_stopping_does_not_wait_for_the_rest(tmp_path, monkeypatch):
    names = [path.name for path in (save(tmp_path / f"{i:03}.png") for i in range(300))]
    decoded = []

    def slow(path, size, channels):
        time.sleep(0.005)
        decoded.append(path)
        return "damaged"

    monkeypatch.setattr(folder, "_decode", slow)
    with pytest.raises(UserError, match=r"000.png"):
        folder.read_images(tmp_path, names, (8, 8), 3, "stop")
    assert len(decoded) < 150


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


def test_progress_is_shown_for_many_images_only(tmp_path, capsys, monkeypatch):
    for i in range(3):
        save(tmp_path / f"{i}.png")
    sources.load(folder_config(tmp_path))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(folder, "_PROGRESS_ABOVE", 2)
    sources.load(folder_config(tmp_path))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "reading images: 100%" in shown.err


# Pixels


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp"])
def test_pixels_of_the_right_size_are_kept(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path, lossless=True)
    np.testing.assert_array_equal(decode(path), pixels)


def test_grey_and_colour(tmp_path):
    grey = save(tmp_path / "grey.png", 77)
    np.testing.assert_array_equal(decode(grey), np.full((8, 8, 3), 77))
    np.testing.assert_array_equal(decode(grey, channels=1), np.full((8, 8, 1), 77))
    luma = [decode(save(tmp_path / "c.png", colour), channels=1)[0, 0, 0] for colour in (RED, GREEN, BLUE)]
    assert luma == [76, 150, 29]


def test_one_bit(tmp_path):
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png")[..., 1], np.eye(8) * 255)


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    Image.fromarray(values).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode.startswith("I")
    np.testing.assert_array_equal(decode(tmp_path / "a.png", channels=1)[..., 0], np.round(values / 257))


def png(colour_type, row, width=8, height=8):
    """A 16-bit PNG of equal rows, in a mode that Pillow reads but cannot write."""

    def chunk(kind, content):
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = zlib.compress((b"\0" + row) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_and_alpha(tmp_path):
    (tmp_path / "rgb.png").write_bytes(png(2, struct.pack(">3H", 65535, 32896, 0) * 8))
    assert decode(tmp_path / "rgb.png")[3, 3].tolist() == [255, 128, 0]
    (tmp_path / "la.png").write_bytes(png(4, struct.pack(">2H", 65535, 32896) * 8))
    assert decode(tmp_path / "la.png")[3, 3].tolist() == [128, 128, 128]
    (tmp_path / "rgba.png").write_bytes(png(6, struct.pack(">4H", 65535, 0, 65535, 0) * 8))
    assert decode(tmp_path / "rgba.png")[3, 3].tolist() == [0, 0, 0]


def test_alpha_is_composited_on_black(tmp_path):
    pixels = np.full((8, 8, 4), (200, 100, 50, 255), np.uint8)
    pixels[:4, :, 3], pixels[4:6, :, 3] = 0, 128
    for suffix in (".png", ".webp"):
        Image.fromarray(pixels).save(tmp_path / f"a{suffix}", lossless=True)
        image = decode(tmp_path / f"a{suffix}")
        assert image[0, 0].tolist() == [0, 0, 0]
        np.testing.assert_allclose(image[5, 0], [100, 50, 25], atol=1)
        assert image[7, 0].tolist() == [200, 100, 50]


def test_transparent_pixels_do_not_bleed_when_resized(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[...] = (255, 255, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").max() == 0


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (0, 0, 4, 8))
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "t.png", transparency=1)
    assert Image.open(tmp_path / "a.png").mode == "P"
    opaque, transparent = decode(tmp_path / "a.png"), decode(tmp_path / "t.png")
    assert (opaque[0, 0].tolist(), opaque[0, 7].tolist()) == (list(GREEN), list(RED))
    assert (transparent[0, 0].tolist(), transparent[0, 7].tolist()) == ([0, 0, 0], list(RED))


def test_transparent_colour_key(tmp_path):
    image = Image.new("RGB", (8, 8), RED)
    image.paste(BLUE, (0, 0, 4, 8))
    image.save(tmp_path / "a.png", transparency=BLUE)
    assert decode(tmp_path / "a.png")[0, (0, 7)].tolist() == [[0, 0, 0], list(RED)]


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    np.testing.assert_allclose(decode(tmp_path / "a.jpg")[4, 4], RED, atol=4)
    np.testing.assert_allclose(decode(tmp_path / "a.jpg", channels=1)[4, 4], 76, atol=4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    upright = Image.new("L", (24, 8), 0)
    upright.paste(255, (0, 0, 8, 4))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a{suffix}", exif=exif, quality=100)
    image = decode(tmp_path / f"a{suffix}", (8, 24), 1)
    np.testing.assert_allclose(image[..., 0], np.asarray(upright), atol=12)


def test_the_longer_side_is_cropped_around_the_centre(tmp_path):
    for vertical in (False, True):
        image = Image.new("RGB", (48, 16), RED)
        image.paste(GREEN, (16, 0, 32, 16))
        (image.transpose(Image.Transpose.ROTATE_90) if vertical else image).save(tmp_path / "a.png")
        np.testing.assert_array_equal(decode(tmp_path / "a.png", (16, 16)), np.full((16, 16, 3), GREEN))


def test_shrinking_averages_and_keeps_the_mean(tmp_path):
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    np.testing.assert_allclose(decode(tmp_path / "a.png", (16, 16), 1), 127.5, atol=2)


@pytest.mark.parametrize("size", [(480, 720), (64, 60)])
def test_a_jpeg_is_close_to_the_same_png(tmp_path, size):
    y, x = np.indices(size) / size[0]
    picture = Image.fromarray(np.stack([150 * x, 250 * y, 128 + 100 * np.sin(9 * x)], -1).astype(np.uint8))
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "a.jpg", quality=98, subsampling=0)
    difference = decode(tmp_path / "a.png", (28, 28)).astype(int) - decode(tmp_path / "a.jpg", (28, 28))
    assert np.abs(difference).max() <= 4


def test_small_images_are_enlarged(tmp_path):
    path = save(tmp_path / "a.png", (1, 2, 3), (3, 5))
    np.testing.assert_array_equal(decode(path, (28, 20)), np.full((28, 20, 3), (1, 2, 3)))


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3)])
def test_fit_images_takes_arrays(shape):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    channels = shape[2] if len(shape) == 3 else 1
    np.testing.assert_array_equal(folder.fit_images(images, (8, 8), channels), images.reshape(2, 8, 8, channels))
    assert folder.fit_images(images, (4, 6), 3).shape == (2, 4, 6, 3)
    wide = folder.fit_images(images.astype(np.uint16) * 257, (8, 8), channels)
    np.testing.assert_array_equal(wide, images.reshape(2, 8, 8, channels))
