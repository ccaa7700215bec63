"""Mode `sample`: its sheet, its pixels, its mistakes."""

import numpy as np
import PIL.Image
import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.inference import sample


def test_the_mode_writes_a_sheet_and_the_pixels_of_completions(workdir, model, images, tmp_path):
    source, target = tmp_path / "images.npy", tmp_path / "done.png"
    np.save(source, images)
    lines = []
    sample.sample_workdir(workdir, num=2, source=source, output=target, kept=(4, None), log=lines.append)
    done = np.load(target.with_suffix(".npy"))
    assert done.shape == (5, 2, 8, 8, 1)
    assert (done[:, 0] != done[:, 1]).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(done[:, :, :4], np.repeat(images[:, None, :4], 2, axis=1))
    assert lines[-1].startswith("step 0: completions, 2 of each of 5 images, 8 of 16 patches kept, temperature 1: ")
    sheet = np.asarray(PIL.Image.open(target))
    side = 88  # 8 pixels, enlarged to at least 84
    assert sheet.shape == (2 * (side + 8), 3 * (4 * (side + 4) + 24) - 24, 3)
    tile = lambda column: sheet[:side, column * (side + 4) : column * (side + 4) + side][::11, ::11]
    np.testing.assert_array_equal(tile(0), np.repeat(images[0], 3, axis=-1))
    assert (tile(1)[4:] == sample.HIDDEN).all()
    np.testing.assert_array_equal(tile(2), np.repeat(done[0, 0], 3, axis=-1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["done.npy", "done.png", "images.npy"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"output": "x.jpg"}, "--output=x.jpg: must be a file that ends in .png"),
        ({"output": "no/x.png"}, "--output=no/x.png: cannot be written"),
        ({"num": 0}, "--num=0: must be at least 1"),
        ({"kept": (4, None)}, "--input is missing"),
        ({"source": "nowhere"}, "--input=nowhere: does not exist"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(workdir, tmp_path, monkeypatch, given, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        sample.sample_workdir(workdir, **({"output": "x.png"} | given))
    assert not list(tmp_path.iterdir())


def test_the_command_draws_the_images_of_its_seed(command_line, workdir, model, tmp_path):
    flags = ("--mode=sample", f"--workdir={workdir}", f"--output={tmp_path / 'x.png'}", "--num=4", "--seed=3")
    done = command_line(*flags, "--temperature=0.5", "--top_k=200", config=None)
    assert done.returncode == 0, done.stderr
    drawn = np.load(tmp_path / "x.npy")
    np.testing.assert_array_equal(drawn, model.sample(3, 4, temperature=0.5, top_k=200))
