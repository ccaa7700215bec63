"""bfloat16 beside float32: the same losses, and float32 where the README says so."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.datasets

from hybrid_jax import sharding, train_state, train_step

DIGITS = (sklearn.datasets.load_digits().images * 255 / 16).round().astype(np.uint8)[..., None]
SETTINGS = {
    "model__patch_size": 1, "model__levels": 16, "augment__recipe": "none", "augment__view_keep": 0.5,
    "train__total_steps": 50, "optimizer__warmup_steps": 5,
}  # fmt: skip


def losses_of_50_steps(config, mesh):
    """(50, 2) generative and contrastive losses on batches drawn from the digits."""
    state, step, found = train_state.init_state(config, mesh, None), train_step.make_train_step(config, mesh), []
    for i in range(50):
        rows = np.random.default_rng(i).choice(len(DIGITS), config.train.batch_size, replace=False)
        state, metrics = step(state, sharding.global_batch(DIGITS[rows], mesh, len(rows)))
        found.append([metrics["generative_loss"], metrics["contrastive_loss"]])
    return np.asarray(jax.device_get(found), np.float64)


def test_losses_of_50_steps_are_those_of_float32(tiny_config, mesh_of):
    whole = losses_of_50_steps(tiny_config(**SETTINGS), mesh_of(1))
    half = losses_of_50_steps(tiny_config(model__dtype="bfloat16", **SETTINGS), mesh_of(1))
    assert (whole[-10:].mean(0) < 0.95 * whole[0]).all(), "learns"
    # Half a unit of bfloat16's last place is 0.2 %; another seed's losses differ by 5 % on average.
    difference = np.abs(half - whole) / whole
    # Of four seeds the contrastive losses differ by .07 to .26 % on average, the generative ones by .002 to .004 %.
    assert 0 < difference.max() < 0.02
    assert difference[:, 0].mean() < 2e-4
    assert difference[:, 1].mean() < 4e-3


def test_what_stays_float32(tiny_config, mesh_of):
    settings = {"train__batch_size": 24, "train__ema_decay": 0.9, "augment__recipe": "none"}
    config, mesh = tiny_config(model__dtype="bfloat16", **settings), mesh_of(1)
    state = train_state.abstract_state(config, mesh)
    kept = [x for x in jax.tree.leaves(state.saved()) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in kept} == {jnp.dtype(jnp.float32)}
    images = jax.ShapeDtypeStruct((config.train.batch_size, 8, 8, 1), np.uint8)
    text = train_step.make_train_step(config, mesh).lower(state, images).as_text()
    products = re.findall(r"stablehlo\.dot_general .*: \(tensor<(\S+)>, tensor<(\S+)>\) -> tensor<(\S+)>", text)
    operands = {shape for product in products for shape in product[:2]}
    # Kernels of a block (queries with keys and values, both of the MLP) and the similarities of 2B embeddings.
    for shape, kind in [("16x48", "bf16"), ("16x64", "bf16"), ("64x16", "bf16"), ("48x48", "f32")]:
        assert {found for found in operands if found in (f"{shape}xbf16", f"{shape}xf32")} == {f"{shape}x{kind}"}
    assert not [product for product in products if product[2].startswith("48x48x") and "bf16" in "".join(product)]
