"""Image files written here in every format and mode, and arrays, as uint8 pixels of one shape."""

import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from hybrid_jax.data import decode
from hybrid_jax.errors import UserError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path, value=0, size=(8, 8), **options):
    """Writes an image of one colour or grey value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "L" if isinstance(value, int) else "RGB"
    Image.new(mode, size, value).save(path, **options)
    return path


def decoded(path, size=(8, 8), channels=3):
    [chunk] = decode.chunks(path.parent, [path.name], size, channels, "stop")
    assert (chunk.names, chunk.labels, chunk.skipped) == ([path.name], None, ())
    return chunk.images[0]


def test_stopping_does_not_wait_for_the_rest(tmp_path, monkeypatch):
    names = [path.name for path in (save(tmp_path / f"{i:03}.png") for i in range(300))]
    decoded = []

    def slow(path, size, channels):
        time.sleep(0.005)
        decoded.append(path)
        return "damaged"

    monkeypatch.setattr(decode, "_decode", slow)
    with pytest.raises(UserError, match=r"000.png"):
        list(decode.chunks(tmp_path, names, (8, 8), 3, "stop"))
    assert len(decoded) < 150


def test_files_come_in_order_in_chunks_with_their_original_sizes(tmp_path):
    names = [save(tmp_path / f"{i}.png", i, (10 + i, 20)).name for i in range(7)]
    (tmp_path / "3.png").write_bytes(b"x")
    found = list(decode.chunks(tmp_path, names, (8, 6), 1, "skip", at_once=3))
    assert [len(chunk.images) for chunk in found] == [3, 2, 1]
    assert [name for chunk in found for name in chunk.names] == [f"{i}.png" for i in (0, 1, 2, 4, 5, 6)]
    assert np.concatenate([chunk.images[:, 0, 0, 0] for chunk in found]).tolist() == [0, 1, 2, 4, 5, 6]
    assert np.concatenate([chunk.sizes for chunk in found]).tolist() == [[20, 10 + i] for i in (0, 1, 2, 4, 5, 6)]
    assert [len(chunk.skipped) for chunk in found] == [0, 1, 0]
    assert found[1].skipped[0].startswith(f"{tmp_path / '3.png'}: cannot identify image file")


def test_original_sizes_are_those_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (800, 600)).save(tmp_path / "a.jpg", exif=exif)
    [chunk] = decode.chunks(tmp_path, ["a.jpg"], (8, 8), 1, "stop")
    assert chunk.sizes.tolist() == [[800, 600]]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp"])
def test_pixels_of_the_right_size_are_kept(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path, lossless=True)
    np.testing.assert_array_equal(decoded(path), pixels)


def test_grey_and_colour(tmp_path):
    grey = save(tmp_path / "grey.png", 77)
    np.testing.assert_array_equal(decoded(grey), np.full((8, 8, 3), 77))
    np.testing.assert_array_equal(decoded(grey, channels=1), np.full((8, 8, 1), 77))
    luma = [decoded(save(tmp_path / "c.png", colour), channels=1)[0, 0, 0] for colour in (RED, GREEN, BLUE)]
    assert luma == [76, 150, 29]


def test_one_bit(tmp_path):
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decoded(tmp_path / "a.png")[..., 1], np.eye(8) * 255)


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    Image.fromarray(values).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode.startswith("I")
    np.testing.assert_array_equal(decoded(tmp_path / "a.png", channels=1)[..., 0], np.round(values / 257))


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
    assert decoded(tmp_path / "rgb.png")[3, 3].tolist() == [255, 128, 0]
    (tmp_path / "la.png").write_bytes(png(4, struct.pack(">2H", 65535, 32896) * 8))
    assert decoded(tmp_path / "la.png")[3, 3].tolist() == [128, 128, 128]
    (tmp_path / "rgba.png").write_bytes(png(6, struct.pack(">4H", 65535, 0, 65535, 0) * 8))
    assert decoded(tmp_path / "rgba.png")[3, 3].tolist() == [0, 0, 0]


def test_alpha_is_composited_on_black(tmp_path):
    pixels = np.full((8, 8, 4), (200, 100, 50, 255), np.uint8)
    pixels[:4, :, 3], pixels[4:6, :, 3] = 0, 128
    for suffix in (".png", ".webp"):
        Image.fromarray(pixels).save(tmp_path / f"a{suffix}", lossless=True)
        image = decoded(tmp_path / f"a{suffix}")
        assert image[0, 0].tolist() == [0, 0, 0]
        np.testing.assert_allclose(image[5, 0], [100, 50, 25], atol=1)
        assert image[7, 0].tolist() == [200, 100, 50]


def test_transparent_pixels_do_not_bleed_when_resized(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[...] = (255, 255, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert decoded(tmp_path / "a.png").max() == 0


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (0, 0, 4, 8))
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "t.png", transparency=1)
    assert Image.open(tmp_path / "a.png").mode == "P"
    opaque, transparent = decoded(tmp_path / "a.png"), decoded(tmp_path / "t.png")
    assert (opaque[0, 0].tolist(), opaque[0, 7].tolist()) == (list(GREEN), list(RED))
    assert (transparent[0, 0].tolist(), transparent[0, 7].tolist()) == ([0, 0, 0], list(RED))


def test_transparent_colour_key(tmp_path):
    image = Image.new("RGB", (8, 8), RED)
    image.paste(BLUE, (0, 0, 4, 8))
    image.save(tmp_path / "a.png", transparency=BLUE)
    assert decoded(tmp_path / "a.png")[0, (0, 7)].tolist() == [[0, 0, 0], list(RED)]


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    np.testing.assert_allclose(decoded(tmp_path / "a.jpg")[4, 4], RED, atol=4)
    np.testing.assert_allclose(decoded(tmp_path / "a.jpg", channels=1)[4, 4], 76, atol=4)


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
    image = decoded(tmp_path / f"a{suffix}", (8, 24), 1)
    np.testing.assert_allclose(image[..., 0], np.asarray(upright), atol=12)


def test_the_longer_side_is_cropped_around_the_centre(tmp_path):
    for vertical in (False, True):
        image = Image.new("RGB", (48, 16), RED)
        image.paste(GREEN, (16, 0, 32, 16))
        (image.transpose(Image.Transpose.ROTATE_90) if vertical else image).save(tmp_path / "a.png")
        np.testing.assert_array_equal(decoded(tmp_path / "a.png", (16, 16)), np.full((16, 16, 3), GREEN))


def test_shrinking_averages_and_keeps_the_mean(tmp_path):
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    np.testing.assert_allclose(decoded(tmp_path / "a.png", (16, 16), 1), 127.5, atol=2)


@pytest.mark.parametrize("size", [(480, 720), (64, 60)])
def test_a_jpeg_is_close_to_the_same_png(tmp_path, size):
    y, x = np.indices(size) / size[0]
    picture = Image.fromarray(np.stack([150 * x, 250 * y, 128 + 100 * np.sin(9 * x)], -1).astype(np.uint8))
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "a.jpg", quality=98, subsampling=0)
    difference = decoded(tmp_path / "a.png", (28, 28)).astype(int) - decoded(tmp_path / "a.jpg", (28, 28))
    assert np.abs(difference).max() <= 4


def test_small_images_are_enlarged(tmp_path):
    path = save(tmp_path / "a.png", (1, 2, 3), (3, 5))
    np.testing.assert_array_equal(decoded(path, (28, 20)), np.full((28, 20, 3), (1, 2, 3)))


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3)])
def test_fit_images_takes_arrays(shape):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    channels = shape[2] if len(shape) == 3 else 1
    np.testing.assert_array_equal(decode.fit_images(images, (8, 8), channels), images.reshape(2, 8, 8, channels))
    assert decode.fit_images(images, (4, 6), 3).shape == (2, 4, 6, 3)
    wide = decode.fit_images(images.astype(np.uint16) * 257, (8, 8), channels)
    np.testing.assert_array_equal(wide, images.reshape(2, 8, 8, channels))
