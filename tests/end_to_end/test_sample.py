"""Mode `sample`, `Model.sample` and `Model.complete` on a checkpoint of random parameters."""

import jax
import numpy as np
import PIL.Image
import pytest
import tiny

import hybrid_jax
from hybrid_jax import sharding, train_state
from hybrid_jax.errors import UserError
from hybrid_jax.inference import generation, sample
from hybrid_jax.inference import model as model_lib
from hybrid_jax.storage.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Holds a checkpoint whose pixel head is no longer at zero, so that samples depend on what they know."""
    config = tiny.get_config()
    one = jax.make_mesh(
        (1, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:1]
    )
    state = train_state.init_state(config, one, None)
    rng = np.random.default_rng(0)
    shaken = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), state.params)
    path = tmp_path_factory.mktemp("sample")
    checkpoints = Checkpoints(path, config)
    checkpoints.save(state.replace(params=shaken), config, "")
    checkpoints.close()
    return path


@pytest.fixture(scope="module")
def model(workdir):
    return hybrid_jax.load(workdir)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)


def test_image_n_depends_on_the_seed_and_on_n_only(model, monkeypatch):
    few = model.sample(3, 4)
    assert few.shape == (4, 8, 8, 1) and few.dtype == np.uint8
    assert len(np.unique(few.reshape(4, -1), axis=0)) == 4
    monkeypatch.setattr(generation, "CACHE_BYTES", 1)  # memory for one image at a time
    np.testing.assert_array_equal(model.sample(jax.random.key(3), 3), few[:3])
    monkeypatch.undo()
    cut = model_lib.Model(model.config, jax.device_get(model.params), None, 0, sharding.all_devices())
    np.testing.assert_array_equal(cut.sample(3, 4), few)
    assert (model.sample(4, 4) != few).any()


def test_a_completion_keeps_the_image_and_draws_the_rest_given_it(model, images):
    done = model.complete(images, 4, 0)
    np.testing.assert_array_equal(done[:, :4], images[:, :4])
    assert (done[:, 4:] != images[:, 4:]).any(axis=(1, 2, 3)).all()
    # Row-major patches of 2x2: five are the first row of patches and one more.
    done = model.complete(images, None, 0, num_patches=5)
    np.testing.assert_array_equal(done[:, :2], images[:, :2])
    np.testing.assert_array_equal(done[:, 2:4, :2], images[:, 2:4, :2])
    assert (done[:, 2:4, 2:] != images[:, 2:4, 2:]).any()
    np.testing.assert_array_equal(model.complete(images, 8, 0), images)
    # What was known changes what is likely.
    other = model.complete(255 - images, 4, 0, temperature=0.0)
    assert (other[:, 4:] != model.complete(images, 4, 0, temperature=0.0)[:, 4:]).any()


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda m, x: m.sample(0, 0), "num=0: must be at least 1"),
        (lambda m, x: m.sample(0, 1, temperature=-0.5), "temperature=-0.5: must be at least 0"),
        (lambda m, x: m.sample(0, 1, temperature=float("nan")), "temperature=nan: must be at least 0"),
        (lambda m, x: m.sample(0, 1, top_k=0), "top_k=0: must be at least 1"),
        (lambda m, x: m.sample(0, 1, top_p=1.5), r"top_p=1.5: must lie in \(0, 1\]"),
        (lambda m, x: m.complete(x, 3, 0), r"num_rows=3: must be a multiple of the patch size 2 in \[0, 8\]"),
        (lambda m, x: m.complete(x, 10, 0), r"num_rows=10: must be a multiple of the patch size 2 in \[0, 8\]"),
        (lambda m, x: m.complete(x, None, 0, num_patches=17), r"num_patches=17: must lie in \[0, 16\]"),
        (lambda m, x: m.complete(x, 4, 0, num_patches=3), "must be one of the two"),
    ],
)
def test_what_no_distribution_or_image_has_is_refused(model, images, ask, told):
    with pytest.raises(UserError, match=told):
        ask(model, images)


def test_a_checkpoint_without_a_likelihood_says_so(tiny_config):
    config = tiny_config(objective__generative_weight=0.0)
    with pytest.raises(UserError, match=r"no likelihood: it was trained with objective\.generative_weight=0"):
        model_lib.Model(config, {}, None, 0).sample(0, 1)


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
