"""Every form of attention gives what the plain form gives; kernels are interpreted here."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax import sharding
from hybrid_jax.aot import hlo
from hybrid_jax.models import attention, hybrid

interpreted = functools.partial(attention.splash, interpret=True)


def blocks(query, key, value, causal):
    assert causal
    return attention.causal_blocks(query, key, value)


def heads(length, features, dtype=jnp.float32, batch=1):
    keys = jax.random.split(jax.random.key(length), 4)
    return [jax.random.normal(key, (batch, length, 2, features), dtype) for key in keys]


@functools.cache
def both(form, causal):
    """Returns a jitted function: (query, key, value, cotangent) -> output and the three gradients, float32."""

    def run(query, key, value, cotangent):
        output, pull = jax.vjp(lambda *x: form(*x, causal), query, key, value)
        return [x.astype(jnp.float32) for x in (output, *pull(cotangent))]

    return jax.jit(run)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("length", "features", "dtype", "tolerance"),
    # Fewer positions than a block, not a multiple of one, several blocks.
    [(50, 8, jnp.float32, 1e-5), (300, 32, jnp.float32, 1e-5), (768, 64, jnp.bfloat16, 2e-2)],
)
def test_the_tpu_kernel_gives_the_plain_forms_output_and_gradients(length, features, dtype, tolerance, causal):
    given = heads(length, features, dtype)
    for found, wanted in zip(both(interpreted, causal)(*given), both(attention.plain, causal)(*given), strict=True):
        assert np.abs(found - wanted).max() <= tolerance * max(1, np.abs(wanted).max())


@pytest.mark.parametrize(
    ("length", "dtype", "tolerance"),
    # Less than a block, a rest, eight blocks of more than the fewest queries.
    [(20, jnp.float32, 1e-5), (70, jnp.float32, 1e-5), (300, jnp.float32, 1e-5), (256, jnp.bfloat16, 2e-2)],
)
def test_blocks_of_queries_give_the_plain_forms_output_and_gradients(length, dtype, tolerance):
    given = heads(length, 8, dtype)
    for found, wanted in zip(both(blocks, True)(*given), both(attention.plain, True)(*given), strict=True):
        assert np.abs(found - wanted).max() <= tolerance * max(1, np.abs(wanted).max())


def test_blocks_of_queries_leave_out_the_scores_of_keys_they_do_not_see():
    query, key, value, _ = heads(1024, 8)
    found, plain = (
        jax.jit(form).lower(query, key, value).compile().memory_analysis().temp_size_in_bytes
        for form in (attention.causal_blocks, lambda *x: attention.plain(*x, True))
    )
    assert found < 0.7 * plain


@pytest.mark.parametrize("form", [interpreted, blocks])
def test_a_position_changes_no_earlier_output_to_the_bit(form):
    query, key, value, _ = heads(300, 8)
    attend = jax.jit(lambda *x: form(*x, True))
    before = attend(query, key, value)
    for place in (1, 128, 257, 299):
        after = attend(*(x.at[:, place].set(1e4) for x in (query, key, value)))
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert (after[:, place:] != before[:, place:]).any()


def test_blocks_are_multiples_of_a_tpus_lanes_and_pad_little():
    for length in range(1, 4097):
        block = attention.block_size(length)
        assert block % 128 == 0 and -length % block < 256, length
    assert attention.block_size(4096) == 512, "of equals the largest"


def on(platform, mesh=None):
    """The choice for devices that are not here."""
    found = attention.Attention(mesh, interpret=True)
    device = types.SimpleNamespace(platform=platform)
    object.__setattr__(found, "mesh", types.SimpleNamespace(devices=np.array([[device]])))
    return found


@pytest.mark.parametrize(
    ("platform", "length", "causal", "form"),
    [("cpu", 4096, False, "plain"), ("cpu", 4096, True, "causal_blocks"), ("cpu", 64, True, "causal_blocks"),
     ("cpu", 63, True, "plain"), ("tpu", 4096, False, "splash"), ("tpu", 512, True, "splash"),
     ("tpu", 511, True, "plain")],
)  # fmt: skip
def test_the_form_follows_platform_mask_and_length(platform, length, causal, form):
    assert on(platform).form(jax.ShapeDtypeStruct((2, length, 2, 64), jnp.bfloat16), causal) == form


@pytest.mark.parametrize(
    ("shape", "dtype", "installed", "form"),
    [((2, 49, 2, 64), jnp.bfloat16, True, "cudnn"), ((2, 49, 2, 64), jnp.float32, True, "plain"),
     ((2, 49, 2, 60), jnp.bfloat16, True, "plain"), ((2, 49, 2, 512), jnp.bfloat16, True, "plain"),
     ((2, 49, 2, 64), jnp.bfloat16, False, "plain")],
)  # fmt: skip
def test_cudnn_is_used_where_it_accepts(shape, dtype, installed, form, monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as library

    versions = types.SimpleNamespace(cudnn_get_version=lambda: 91000) if installed else None
    monkeypatch.setattr(library, "cuda_versions", versions)
    query = jax.ShapeDtypeStruct(shape, dtype)
    assert on("gpu").form(query, True) == form
    assert on("gpu").wants_whole_arrays(query, True) is (form == "cudnn")


@pytest.mark.parametrize("causal", [True, False])
def test_on_a_mesh_each_device_computes_its_own_images(causal, mesh_of, monkeypatch):
    monkeypatch.setattr(attention.Attention, "form", lambda self, query, causal: "splash")
    given = heads(50, 8, batch=4)
    found = both(attention.Attention(mesh_of(4, 2), interpret=True), causal)(*given)
    for one, wanted in zip(found, both(attention.plain, causal)(*given), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)
    assert len(found[0].sharding.device_set) == 4
    alone = jax.make_jaxpr(lambda *x: attention.Attention(attention.default_device(), interpret=True)(*x, causal))
    assert "shard_map" not in str(alone(*given[:3])) and "pallas_call" in str(alone(*given[:3]))


def test_on_a_mesh_blocks_of_queries_need_no_communication(mesh_of):
    mesh = mesh_of(4, 2)
    given = [jax.device_put(x, sharding.batch_sharding(mesh)) for x in heads(70, 8, batch=4)]
    on_mesh = both(attention.Attention(mesh), True)
    for one, wanted in zip(on_mesh(*given), both(attention.plain, True)(*given), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)
    collectives = hlo.count(on_mesh.lower(*given).compile().as_text())["collectives"]
    assert not any(kind["count"] for kind in collectives.values())


@pytest.mark.slow
@pytest.mark.parametrize("looped", [False, True])
def test_a_model_with_the_kernel_gives_the_plain_models_loss_and_gradients(looped, tiny_config, mesh_of, monkeypatch):
    config = tiny_config(model__remat=looped, model__scan_layers=looped)
    chosen = attention.Attention(mesh_of(4, 2), interpret=True)
    monkeypatch.setattr(attention.Attention, "form", lambda self, query, causal: "splash")
    models = [hybrid.build_model(config), hybrid.build_model(config, attend=chosen)]
    params = hybrid.init_params(models[0], jax.random.key(0), None)
    # The output layer starts at zero, and with it every gradient behind it.
    params = jax.tree.map(lambda x: x + 0.02, params)
    spec = models[0].spec
    coded = jax.random.randint(jax.random.key(1), (8, spec.num_patches, spec.tokens_per_patch), 0, 256)

    def loss(params, model):
        likelihood = model.apply({"params": params}, coded, None, method="token_log_prob").mean()
        return likelihood + jnp.square(model.apply({"params": params}, coded, None, method="view_embedding")).mean()

    (want, got) = (jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, model) for model in models)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got, want)


def test_the_plain_form_is_always_to_be_had(mesh_of):
    assert attention.choose("plain", mesh_of(1)) is attention.choose("auto", None) is attention.plain
    assert attention.choose("auto", mesh_of(2)) == attention.Attention(mesh_of(2))
