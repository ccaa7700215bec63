"""A trained model in use: what it loads from, what it answers, which images it takes."""

import jax
import numpy as np
import pytest
from fakes import untrained

import hybrid_jax
from hybrid_jax.data import decode
from hybrid_jax.errors import UserError
from hybrid_jax.inference import generation
from hybrid_jax.inference import model as model_lib
from hybrid_jax.models import hybrid


def test_load_needs_only_the_workdir_and_gives_every_answer(workdir, model, images):
    assert model.step == 0 and model.embed(images).shape == (5, 16) and model.embed(images).dtype == np.float32
    for layer in model.layers:
        np.testing.assert_allclose(model.embed(images, layer), model.features(images)[layer], rtol=1e-5, atol=1e-6)
    log_prob = model.token_log_prob(images)
    assert log_prob.shape == (5, 16, 4)
    np.testing.assert_allclose(model.log_prob(images), log_prob.sum((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(model.bits_per_dim(images), -log_prob.sum((1, 2)) / (64 * np.log(2)), rtol=1e-6)
    with pytest.raises(UserError, match="must be latest, best or one of 0"):
        hybrid_jax.load(workdir, step=7)
    with pytest.raises(UserError, match="encoder/1"):
        model.embed(images, "nothing")


def test_a_contrastive_checkpoint_has_no_likelihood_and_says_so(tiny_config, images):
    model = untrained(tiny_config(objective__generative_weight=0.0))
    assert model.embed(images).shape == (5, 16)
    for ask in (lambda: model.log_prob(images), lambda: model.sample(0, 1)):
        with pytest.raises(UserError, match=r"no likelihood: it was trained with objective\.generative_weight=0"):
            ask()


def test_the_causal_mask_gives_a_hybrid_the_features_of_its_likelihood_pass(model, images):
    causal, full = model.under_causal_mask().features(images), model.features(images)
    # The decoder reads causally encoded patches under either mask.
    np.testing.assert_array_equal(causal["decoder"], full["decoder"])
    assert np.abs(causal["encoder"] - full["encoder"]).max() > 1e-3


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 20, 31), (3, 20, 31, 1), (3, 20, 31, 3), (3, 9, 30, 4), (3, 9, 9, 2)])
def test_arrays_and_npy_files_of_any_size_and_channels_are_fitted_as_in_training(model, tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    want = model.embed(decode.fit_images(list(images), (8, 8), 1))
    np.testing.assert_array_equal(model.embed(images), want)
    np.testing.assert_array_equal(model.features(list(images))["encoder"], want)
    np.save(tmp_path / "images.npy", images)
    found = model.embed_files(tmp_path / "images.npy")
    assert found["names"].tolist() == ["0", "1", "2"]
    np.testing.assert_array_equal(found["features"], want)
    np.testing.assert_array_equal(found["log_prob"], model.log_prob(images))


def test_a_list_of_arrays_of_different_sizes_and_grey_ones_for_a_colour_model(tiny_config):
    model = untrained(tiny_config(data__channels=3))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, np.uint8) for shape in ((8, 8, 3), (50, 40), (33, 90, 4))]
    fitted = decode.fit_images(images, (8, 8), 3)
    np.testing.assert_array_equal(model.embed(images), model.embed(fitted))
    np.testing.assert_array_equal(model.bits_per_dim(images), model.bits_per_dim(fitted))
    grey = np.repeat(fitted[1:2, ..., :1], 3, axis=-1)
    np.testing.assert_array_equal(fitted[1:2], grey)


ARRAYS = {
    "floats": (np.zeros((2, 8, 8, 1), np.float32), "dtype float32: must be uint8"),
    "a list of floats": ([np.zeros((8, 8))], r"images\[0\] of dtype float64: must be uint8"),
    "a list of lists": ([[1, 2]], r"images\[0\] of type list"),
    "one image": (np.zeros((8, 8, 3), np.uint8), r"\(8, 8, 3\).*images\[None\]"),
    "five channels": (np.zeros((2, 8, 8, 5), np.uint8), "c = 1 to 4"),
    "too many axes": (np.zeros((2, 8, 8, 3, 1), np.uint8), r"\(B, h, w\) or"),
    "no pixels": (np.zeros((2, 0, 8, 3), np.uint8), r"\(2, 0, 8, 3\)"),
    "no images": (np.zeros((0, 8, 8, 1), np.uint8), "there are no images"),
    "an empty list": ([], "there are no images"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_no_images_are_refused_in_one_line(model, name):
    images, words = ARRAYS[name]
    with pytest.raises(UserError, match=words) as caught:
        model.embed(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "dtype", "exact"),
    [("gpu", "float32", True), ("tpu", "float32", True), ("gpu", "bfloat16", False), ("cpu", "float32", False)],
)
def test_a_float32_model_in_use_multiplies_float32_on_accelerators(backend, dtype, exact, tiny_config, monkeypatch):
    config = tiny_config(model__dtype=dtype, data__image_size=(8, 8), model__patch_size=4)
    model = model_lib.Model(config, None, None, 0)
    model.params = jax.eval_shape(lambda: hybrid.init_params(model._module, jax.random.key(0), None))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    images = jax.ShapeDtypeStruct((4, 8, 8, 1), np.uint8)
    lowered = [model._function(name).lower(model.params, None, images) for name in ("token_log_prob", "encoder")]
    rows, draw = jax.ShapeDtypeStruct((4,), np.int32), generation.make_draw(1.0, None, None)
    lowered.append(model._generator._function.lower(model.params, None, jax.random.key(0), rows, images, draw, 0))
    for each in lowered:
        products = [line for line in each.as_text().splitlines() if "stablehlo.dot_general" in line]
        assert products and all(("HIGHEST" in line) is exact for line in products)
