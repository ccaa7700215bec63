"""Our numerics against torch implementations that others wrote; run with the `[oracle]` extra installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from transformers import ImageGPTConfig, ImageGPTModel

from hybrid_jax.losses import nt_xent, token_nll
from hybrid_jax.models.transformer import Transformer, rms_norm


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_and_its_gradient_equal_pytorch_metric_learning(temperature):
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(2, 9, 6)) * rng.uniform(0.2, 5, size=(2, 9, 1))).astype(np.float32)
    theirs = torch.tensor(z.reshape(18, 6), requires_grad=True)
    loss = NTXentLoss(temperature=temperature)(theirs, torch.arange(9).repeat(2))
    loss.backward()
    value, gradient = jax.value_and_grad(lambda z: jnp.mean(nt_xent(z[0], z[1], temperature)))(z)
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(gradient.reshape(18, 6), theirs.grad, rtol=1e-4, atol=1e-6)


def test_token_nll_equals_torch_cross_entropy():
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(5, 11)).astype(np.float32) * 4, rng.integers(0, 11, 5)
    theirs = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(tokens), reduction="none")
    np.testing.assert_allclose(token_nll(logits, tokens), theirs, rtol=1e-5, atol=1e-6)


def test_our_causal_blocks_are_image_gpts():
    width, heads, depth, positions = 24, 3, 2, 7
    config = ImageGPTConfig(
        vocab_size=10, n_positions=positions, n_embd=width, n_layer=depth, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="quick_gelu",
    )  # fmt: skip
    theirs = ImageGPTModel(config).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            value = np.zeros(weight.shape) if name.endswith("bias") else rng.normal(size=weight.shape) * 0.2
            weight.copy_(torch.tensor(value + (1.0 if "ln_" in name else 0.0)))
    weights = {k: jnp.asarray(v.numpy()) for k, v in theirs.state_dict().items()}
    params = {}
    for i in range(depth):
        get = lambda name, i=i: weights[f"h.{i}.{name}.weight"]
        params[f"block_{i + 1}"] = {
            "attention_norm": {"scale": get("ln_1")},
            "qkv": {"kernel": get("attn.c_attn")},
            "attention_out": {"kernel": get("attn.c_proj")},
            "mlp_norm": {"scale": get("ln_2")},
            "mlp_in": {"kernel": get("mlp.c_fc")},
            "mlp_out": {"kernel": get("mlp.c_proj")},
        }
    tokens = rng.integers(0, 10, (2, positions))
    with torch.no_grad():
        want = theirs(torch.tensor(tokens)).last_hidden_state.numpy()
    ours = Transformer(depth, heads, "quick_gelu", jnp.float32, lambda x: x)
    inputs = weights["wte.weight"][tokens] + weights["wpe.weight"][:positions]
    (hidden,), _ = ours.apply({"params": params}, [inputs], [True])
    got = rms_norm().apply({"params": {"scale": weights["ln_f.weight"]}}, hidden)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
