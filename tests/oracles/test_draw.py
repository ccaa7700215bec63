"""Temperature, top-k and top-p against the logits processors of transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hybrid_jax.models.sampler import Draw


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, None, None), (1.0, 5, None), (1.3, None, 0.8), (0.9, 6, 0.5)]
)
def test_the_same_tokens_stay_with_the_same_logits(temperature, top_k, top_p):
    logits = np.log(np.random.default_rng(0).dirichlet(np.full(40, 0.3), size=64) + 1e-30).astype(np.float32)
    want = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
    if top_k is not None:
        want = TopKLogitsWarper(top_k)(None, want)
    if top_p is not None:
        want = TopPLogitsWarper(top_p)(None, want)
    ours = Draw(temperature, None if top_p is None else jnp.float32(top_p), top_k).logits(jnp.asarray(logits))
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(want.numpy()))
    stays = np.isfinite(ours)
    assert stays.any(axis=1).all() and (stays.all() or top_k or top_p)
    np.testing.assert_allclose(np.asarray(ours)[stays], want.numpy()[stays], rtol=1e-5)
