"""The building blocks whose gradients are written by hand, against automatic differentiation in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.models import transformer

RNG = np.random.default_rng(0)


def relative_error(found, wanted) -> float:
    wanted = np.asarray(wanted, np.float64)
    return float(np.linalg.norm(np.asarray(found, np.float64) - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(256, 7), (64, 32)])
def test_the_gradient_of_a_look_up_is_added_up_in_float32(dtype, rows, width):
    # Half of all tokens alike: in bfloat16 their sum would stop growing after 256 terms of equal size.
    index = np.where(RNG.random((64, 300)) < 0.5, 3, RNG.integers(0, rows, (64, 300))).astype(np.int32)
    pull = jnp.asarray(RNG.normal(1, 0.3, (64, 300, width)), jnp.float32).astype(dtype)
    table = jnp.asarray(RNG.normal(size=(rows, width)), jnp.float32)
    found, back = jax.vjp(lambda table: transformer.look_up(table, index, dtype), table)
    np.testing.assert_array_equal(found, table[index].astype(dtype))
    wanted = np.zeros((rows, width))
    np.add.at(wanted, index.reshape(-1), np.asarray(pull, np.float64).reshape(-1, width))
    both = [
        form(index.reshape(-1), pull.reshape(-1, width), rows)
        for form in (transformer.sum_rows, transformer.sum_rows_by_product)
    ]
    for gradient in (*back(pull), *both):
        assert gradient.dtype == jnp.float32
        assert relative_error(gradient, wanted) < 1e-5


@pytest.mark.parametrize(
    ("platform", "rows", "width", "product"),
    [("cpu", 64, 32, False), ("cuda", 64, 32, True), ("tpu", 64, 32, True), ("cuda", 256, 7, False)],
)
def test_a_look_ups_gradient_is_a_product_on_accelerators_where_rows_are_long(platform, rows, width, product):
    index, pull = jnp.zeros(50, jnp.int32), jax.ShapeDtypeStruct((50, width), jnp.bfloat16)
    gradient = lambda pull: jax.vjp(lambda t: transformer.look_up(t, index, jnp.bfloat16), jnp.zeros((rows, width)))[1](
        pull
    )
    text = jax.jit(gradient).trace(pull).lower(lowering_platforms=(platform,)).as_text()
    assert ("dot_general" in text) is product and ("stablehlo.scatter" in text) is not product


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_of_positions_is_added_up_in_float32(dtype):
    x = jnp.asarray(RNG.normal(size=(2048, 5, 8)), jnp.float32).astype(dtype)
    positions = jnp.asarray(RNG.normal(size=(5, 8)), jnp.float32)
    pull = jnp.asarray(RNG.normal(1, 0.3, x.shape), jnp.float32).astype(dtype)
    found, back = jax.vjp(transformer.add_positions, x, positions)
    np.testing.assert_array_equal(found, x + positions.astype(dtype))
    for_x, for_positions = back(pull)
    np.testing.assert_array_equal(for_x, pull)
    assert for_positions.dtype == jnp.float32
    assert relative_error(for_positions, np.asarray(pull, np.float64).sum(0)) < 1e-6


@pytest.mark.parametrize("equation", ["pd,dv->pv", "smp,smf->sfp", "bhm,mf->bhf"])
@pytest.mark.parametrize(("dtype", "limit"), [(jnp.float32, 1e-6), (jnp.bfloat16, 4e-3)])
def test_products_under_a_softmax_are_float32_and_so_are_the_kernels_gradients(equation, dtype, limit):
    sizes = dict(zip("pdvsmfbh", (11, 16, 9, 3, 16, 5, 4, 6), strict=True))
    left, right, out = (tuple(sizes[axis] for axis in term) for term in equation.replace("->", ",").split(","))
    x = jnp.asarray(RNG.normal(size=left), jnp.float32).astype(dtype)
    kernel, pull = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in (right, out))
    found, back = jax.vjp(lambda x, kernel: transformer.float32_einsum(equation, x, kernel), x, kernel)
    for_x, for_kernel = back(pull)
    assert (found.dtype, for_x.dtype, for_kernel.dtype) == (jnp.float32, dtype, jnp.float32)
    exact = [np.asarray(each, np.float64) for each in (x, kernel, pull)]
    first, second, result = equation.replace("->", ",").split(",")
    for value, terms, operands in [
        (found, (first, second, result), (exact[0], exact[1])),
        (for_x, (result, second, first), (exact[2], exact[1])),
        (for_kernel, (first, result, second), (exact[0], exact[2])),
    ]:
        wanted = np.einsum(f"{terms[0]},{terms[1]}->{terms[2]}", *operands)
        assert relative_error(value, wanted) < limit


def test_separate_products_give_what_one_gives(tiny_config):
    x = jnp.asarray(RNG.normal(size=(3, 7, 16)), jnp.float32)
    one, three = (transformer.QKV(2, jnp.float32, separate) for separate in (False, True))
    params = one.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, three.init(jax.random.key(0), x))
    for a, b in zip(one.apply(params, x), three.apply(params, x), strict=True):
        assert a.shape == b.shape == (3, 7, 2, 8)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
