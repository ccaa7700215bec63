"""Images through the arithmetic coder and back."""

import math
import pathlib
import struct
import subprocess
import sys
import zlib

import compress_images
import jax
import numpy as np
import pytest
import tiny
from compress_images import Coder, unpack
from PIL import Image
from sklearn.datasets import load_digits

from hybrid_jax.errors import UserError
from hybrid_jax.inference.model import Model
from hybrid_jax.models import hybrid, tokens

ROOT = pathlib.Path(__file__).parents[2]
COLOUR = {"data__channels": 3}
PALETTE = {"model__token_kind": "palette", "model__palette_size": 7}


def make(config, scale=0.3, seed=0):
    """A model whose parameters are all random and not zero, without training."""
    config.eval.batch_size = 16
    spec, rng, palette = tokens.TokenSpec.from_config(config), np.random.default_rng(seed), None
    if spec.kind == "palette":
        palette = tokens.Palette.from_colours(rng.uniform(-1, 1, (spec.vocab_size, spec.channels)).astype(np.float32))
    module, key = hybrid.build_model(config), jax.random.key(0)
    shapes = jax.eval_shape(lambda p: hybrid.init_params(module, key, p), tokens.abstract_palette(spec))
    random = lambda x: (scale * rng.normal(size=x.shape)).astype(x.dtype)
    return Model(config, jax.tree.map(random, shapes), palette, step=3)


def digits(num, channels=1):
    """(num, 8, 8, channels) uint8; the colours of a pixel are different digits."""
    grey = (load_digits().images[: num * channels] * 15.9).astype(np.uint8)
    return grey.reshape(num, channels, 8, 8).transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def packed():
    """A model's coder, images and their file."""
    coder, images = Coder(make(tiny.get_config())), digits(5)
    return coder, images, coder.compress(images)


@pytest.mark.parametrize(
    ("overrides", "patch_size"),
    [
        (COLOUR, 2),
        (PALETTE, 1),
        # Grey images of patch size 2 go through the tests below, too.
        pytest.param({}, 2, marks=pytest.mark.slow),
        pytest.param({}, 1, marks=pytest.mark.slow),
    ],
    ids=["colour-p2", "palette-p1", "grey-p2", "grey-p1"],
)
def test_what_is_restored_is_what_was_coded_and_takes_what_the_model_predicts(tiny_config, overrides, patch_size):
    model = make(tiny_config(model__patch_size=patch_size, **overrides))
    # Batches of 14, the last of 13: one image of it is padding.
    coder, images = Coder(model), digits(41, model.spec.channels)
    data = coder.compress(images)
    restored, stream = coder.decompress(data), unpack(data)
    assert (stream.batch, stream.num, restored.dtype) == (14, 41, np.uint8)
    shown = tokens.decode(tokens.encode(images, model.spec, model.palette), model.spec, model.palette)
    np.testing.assert_array_equal(restored, images if coder.exact else shown)
    # By the other path, which sees all tokens at once. The stream's end takes up to two words of 32 bits.
    predicted = -model.token_log_prob(images).sum(dtype=np.float64) / math.log(2)
    assert predicted > 6_400
    assert 8 * stream.stream.nbytes == pytest.approx(predicted, rel=0.01)


def test_tokens_that_the_model_holds_to_be_impossible_are_coded(tiny_config):
    coder, images = Coder(make(tiny_config(), scale=3.0)), digits(5)
    data = coder.compress(images)
    np.testing.assert_array_equal(coder.decompress(data), images)
    # No distribution over 256 tokens spends that much on what it holds to be possible.
    assert 8 * unpack(data).stream.nbytes / images.size > 16


@pytest.mark.slow
def test_another_process_restores_the_images(packed, tmp_path):
    _, images, data = packed
    (tmp_path / "file").write_bytes(data)
    task = (
        "import sys, pathlib; sys.path[:0] = ['tests', 'examples', 'tests/examples']; import numpy as np\n"
        "import test_compress_images as t; path = pathlib.Path(sys.argv[1])\n"
        "back = t.Coder(t.make(t.tiny.get_config())).decompress((path / 'file').read_bytes())\n"
        "np.save(path / 'back.npy', back)"
    )
    subprocess.run([sys.executable, "-c", task, tmp_path], cwd=ROOT, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), images)


def test_another_model_is_refused(packed, tiny_config):
    model, data = packed[0].model, packed[2]
    with pytest.raises(UserError, match="another checkpoint"):
        Coder(make(tiny_config(), seed=1)).decompress(data)
    other = Model(model.config, dict(model.params), None, step=3)
    other.params["head"] = dict(other.params["head"])
    other.params["head"]["hidden_bias"] = np.nextafter(model.params["head"]["hidden_bias"], np.float32(1))
    with pytest.raises(UserError, match="another checkpoint"):
        Coder(other).decompress(data)


def test_another_version_or_machine_is_refused_and_named(packed):
    coder, _, data = packed
    parts = unpack(data)
    for name in ("jaxlib", "constriction", "device", "cores", "program"):
        changed = compress_images.pack(parts._replace(environment=parts.environment | {name: "odd"}))
        with pytest.raises(UserError, match=f"{name}=odd: must be restored"):
            coder.decompress(changed)


def test_truncated_and_changed_files_are_refused_in_one_line(packed):
    coder, _, data = packed
    flipped = (data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :] for i in range(len(data)))
    for damaged in (*flipped, *(data[:i] for i in range(len(data))), data + b"\0", b"", b"\x89PNG"):
        with pytest.raises(UserError) as error:
            unpack(damaged)
        assert "\n" not in str(error.value)
    # Changed by one who knows the checksum: the pixels have one of their own.
    parts = unpack(data)
    for made in (
        parts._replace(stream=parts.stream ^ np.uint32(1)),
        parts._replace(stream=parts.stream[:3]),
        parts._replace(batch=2**31),
        parts._replace(num=0),
        parts._replace(num=4),
    ):
        with pytest.raises(UserError) as error:
            coder.decompress(compress_images.pack(made))
        assert "\n" not in str(error.value)
    head = data[:-4].replace(b'{"jax"', b"[[[[[[")
    with pytest.raises(UserError, match="header"):
        unpack(head + struct.pack("<I", zlib.crc32(head)))


@pytest.mark.parametrize("images", [digits(1)[:0], digits(1)[:, :4], digits(1, 3), digits(1) / 1.0])
def test_images_that_would_have_to_be_changed_are_refused(packed, images):
    with pytest.raises(UserError, match=r"must be uint8 \(n, 8, 8, 1\)"):
        packed[0].compress(images)


def test_a_model_without_a_likelihood_is_refused(tiny_config):
    with pytest.raises(UserError, match="no likelihood"):
        Coder(make(tiny_config(objective__generative_weight=0.0)))


def test_the_command_compresses_restores_and_compares(packed, tmp_path, monkeypatch, capsys):
    coder, images, _ = packed
    monkeypatch.setattr(compress_images.hybrid_jax, "load", lambda *_: coder.model)
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / "folder" / f"{i}.png")
    run = lambda name, source, *flags: compress_images.main(
        [name, "--workdir=w", f"--input={tmp_path / source}", *flags]
    )
    assert run("compress", "folder", f"--output={tmp_path / 'file'}") == 0
    assert run("decompress", "file", f"--output={tmp_path / 'back.npy'}") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), images)
    assert run("compare", "back.npy") == 0
    out, _ = capsys.readouterr()
    assert "lossless" in out and "PNG, all images in one" in out and f"{images.size} " in out
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "folder" / "9.png")
    output = f"--output={tmp_path / 'no.npy'}"
    for name, source, flag, want in (
        ("compress", "folder", output, "9.png of 8x9 pixels, L: must be 8x8, L"),
        ("decompress", "back.npy", output, "not images that hybrid_jax"),
        ("decompress", "file", f"--output={tmp_path / 'no'}", "ends in .npy"),
        ("decompress", "none", output, "cannot be read"),
        ("compare", "back.npy", "--batch_size=0", "must be at least 1"),
        ("squeeze", "back.npy", output, "invalid choice"),
    ):
        assert run(name, source, flag) == 2
        error = capsys.readouterr().err
        assert want in error and error.count("\n") == 1
    assert not list(tmp_path.glob("no*"))
