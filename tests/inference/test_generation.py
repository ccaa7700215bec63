"""`Model.sample` and `Model.complete`: what a sample depends on, what a completion keeps, what is refused."""

import jax
import numpy as np
import pytest

from hybrid_jax import sharding
from hybrid_jax.errors import UserError
from hybrid_jax.inference import generation
from hybrid_jax.inference import model as model_lib


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
        (lambda m, x: m.complete(x, 4, 0, num_patches=3), "exactly one of the two"),
    ],
)
def test_what_no_distribution_or_image_has_is_refused(model, images, ask, told):
    with pytest.raises(UserError, match=told):
        ask(model, images)
