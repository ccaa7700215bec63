"""What the compiled programs hold: microbatches and blocks bound it, as the compiler's own analysis tells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax import losses, sharding, train_state, train_step


def temporaries(function, *arguments) -> int:
    """Bytes that one device holds beside arguments and results."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_activations_fall_as_one_over_microbatches(tiny_config):
    # Attention over 64 positions of 512 images; what does not shrink (gradients, one block of NT-Xent) is small beside.
    settings = {"model__patch_size": 1, "model__levels": 16, "augment__view_keep": 1.0, "augment__recipe": "none"}
    config = tiny_config(train__batch_size=512, **settings)
    params = train_state.abstract_state(config).params
    images = jax.ShapeDtypeStruct((512, 8, 8, 1), np.uint8)

    def of(pieces):
        config = tiny_config(train__batch_size=512, train__microbatches=pieces, **settings)
        objective = train_step.Objective.from_config(config)

        def gradients(params, images):
            batch = train_step.make_batch(objective, jax.random.key(0), images, None)
            if pieces > 1:
                return train_step.accumulated_gradients(params, objective, batch, None)
            return jax.grad(train_step.loss_fn, has_aux=True)(params, objective, batch, None)

        return temporaries(gradients, params, images)

    assert of(8) * 8 == pytest.approx(of(1), rel=0.2)


def test_nt_xent_of_65536_images_compiles_and_grows_with_the_batch(mesh_of):
    where = sharding.batch_sharding(mesh_of(8))

    def of(batch):
        z = jax.ShapeDtypeStruct((batch, 2, 128), jnp.float32, sharding=where)
        loss = lambda z: jnp.mean(losses.nt_xent_and_accuracy(z[:, 0], z[:, 1], 0.1, devices=8)[0])
        return temporaries(jax.value_and_grad(loss), z)

    sizes = [of(batch) for batch in (16384, 32768, 65536)]
    # Twice the batch adds twice as much; all similarities of one device's anchors would be 8 GiB.
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.1)
    assert sizes[2] < 2**28
