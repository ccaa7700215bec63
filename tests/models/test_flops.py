"""Analytical counts against the matrix products of the traced program."""

import math

import jax
import numpy as np
import pytest

from hybrid_jax import train_state, train_step
from hybrid_jax.config import likelihood_batch
from hybrid_jax.models import flops, tokens
from hybrid_jax.models.heads import factor_sizes, hidden_units


def matrix_products(jaxpr) -> int:
    """Operations of every dot_general in a traced program, inner programs included."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            count += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                count += matrix_products(inner)
    return count


CASES = {
    "hybrid": {},
    "contrastive": {"objective__generative_weight": 0.0},
    "generative": {"objective__contrastive_weight": 0.0, "model__decoder_layers": 2},
    "half": {
        "train__likelihood_fraction": 0.5,
        "augment__view_keep": 0.25,
        "model__width": 24,
        "model__encoder_layers": 3,
    },
    "one_pixel": {"model__patch_size": 1, "model__decoder_skip": False},
    "palette": {"model__token_kind": "palette", "model__palette_size": 100},
}


@pytest.mark.parametrize("name", CASES)
def test_count_is_that_of_the_traced_losses(tiny_config, name):
    config = tiny_config(**CASES[name])
    objective, state = train_step.Objective.from_config(config), train_state.abstract_state(config)
    images = jax.ShapeDtypeStruct((config.train.batch_size, 8, 8, 1), np.uint8)
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = jax.eval_shape(
        lambda key, images, palette: train_step.make_batch(objective, key, images, palette),
        key, images, state.palette,
    )  # fmt: skip
    traced = jax.make_jaxpr(lambda *a: train_step.loss_fn(a[0], objective, *a[1:]))(state.params, batch, state.palette)
    products = matrix_products(traced.jaxpr) - one_hot_products(config)
    assert flops.total(config) == flops.BACKWARD_AND_FORWARD * products


def one_hot_products(config) -> int:
    """The pixel head looks up what a token's high part tells its low part by a product, which the count leaves out."""
    spec = tokens.TokenSpec.from_config(config)
    s = spec.tokens_per_patch
    if s == 1 or config.objective.generative_weight == 0:
        return 0
    looked_up = likelihood_batch(config) * spec.num_patches * s
    return 2 * looked_up * factor_sizes(spec.vocab_size)[0] * hidden_units(config.model.width, s)
