"""What this card reaches at best: matrix products, copies, gradients of look-ups, small programs, transfers.

python -m benchmarks.gpu.ceilings [--tiny]
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.common import compiled, precision, timed
from benchmarks.gpu.record import Entry, Record, stage_flags

BF16, FLOAT32 = "bf16 square", "float32 square (default)"
_LOOPS = 10  # pairs of products in one program
_GROUPS = (16, 64, 256)

LookUpGradient = Callable[[jax.Array, jax.Array], jax.Array]
Measure = Callable[[], Entry]


def main() -> None:
    """Compiles all, then measures them, those first that others are divided by."""
    tiny = stage_flags(__doc__ or "").tiny
    record = Record("ceilings", tiny, reads_sources=False)
    # Sizes of a CPU's tries are 16 times as small.
    makers = everything(16 if tiny else 1)
    for name, measure in compiled(makers, lambda name: makers[name](), record, tiny):
        record.add(name, measure)


def everything(part: int) -> dict[str, Callable[[], Measure]]:
    """Returns {name: what compiles it and returns its measure}, sizes divided by `part`."""
    sizes: dict[str, tuple] = {
        BF16: (8192, 8192, 8192, "bfloat16"),
        FLOAT32: (4096, 4096, 4096, "float32"),
        "float32 square (highest)": (2048, 2048, 2048, "float32", "highest"),
        "bf16 width 512, mlp": (32768, 512, 2048, "bfloat16"),
        "bf16 width 512, qkv": (32768, 512, 1536, "bfloat16"),
        "bf16 width 1024, mlp": (16384, 1024, 4096, "bfloat16"),
        "bf16 width 256, mlp": (32768, 256, 1024, "bfloat16"),
        "bf16 width 96, mlp": (4096, 96, 384, "bfloat16"),
        "float32 (default) width 96, mlp": (4096, 96, 384, "float32"),
    }
    products = {
        name: functools.partial(product, *(side // part for side in (m, k, n)), *how)
        for name, (m, k, n, *how) in sizes.items()
    }
    return {
        BF16: products.pop(BF16),
        FLOAT32: products.pop(FLOAT32),
        "copy": lambda: copy(2**29 // part**2),
        **look_ups(part),
        **products,
        "launch of a small program": launch,
        "512x32x32x3 uint8 to the device": transfer,
    }


def _normal(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def product(m: int, k: int, n: int, dtype: str, how: str | None = None) -> Measure:
    """(m, k) x (k, n), and its result times (n, k), in turns; `tflops` of both together."""
    x = _normal(0, (m, k), dtype)
    # Scaled, so that numbers stay in range however often they go round.
    there = _normal(1, (k, n), dtype) * k**-0.5
    back = _normal(2, (n, k), dtype) * n**-0.5

    @jax.jit
    def run(x: jax.Array, there: jax.Array, back: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, _LOOPS, lambda _, x: (x @ there) @ back, x)

    with precision(how):
        program = run.lower(x, there, back).compile()

    def measure() -> Entry:
        spent = timed(lambda: program(x, there, back), 0.5)
        return {"tflops": 4 * m * k * n * _LOOPS / spent.median / 1e12, **spent.milliseconds()}

    return measure


def copy(count: int) -> Measure:
    """x + 1 of float32 numbers; `tbytes_per_s`, read and written."""
    x, add = jnp.zeros(count, jnp.float32), jax.jit(lambda x: x + 1)

    def measure() -> Entry:
        spent = timed(lambda: add(x), 0.4)
        return {"tbytes_per_s": 2 * x.nbytes / spent.median / 1e12, **spent.milliseconds()}

    return measure


def launch() -> Measure:
    """A program that does next to nothing; `us`."""
    x, add = jnp.zeros(8), jax.jit(lambda x: x + 1)
    return lambda: {"us": 1e6 * timed(lambda: add(x), 0.2).median}


def transfer() -> Measure:
    """The way of a batch to the device."""
    images = np.zeros((512, 32, 32, 3), np.uint8)
    return lambda: timed(lambda: jax.device_put(images), 0.3).milliseconds()


def look_up_gradients(table: int) -> dict[str, LookUpGradient]:
    """Returns ways to add up the gradient of a look-up.

    Args:
      table: V, entries that are looked up in.

    Returns:
      {name: (R,) int32 places, (R, F) float32 gradients -> (V, F)}.
    """

    def scatter(dtype: str) -> LookUpGradient:
        return lambda at, given: jnp.zeros((table, given.shape[1]), dtype).at[at].add(given.astype(dtype))

    def grouped(groups: int) -> LookUpGradient:
        def add_up(at: jax.Array, given: jax.Array) -> jax.Array:
            # Fewer rows meet in one place, where additions wait for one another.
            group = jnp.arange(len(at)) % groups
            return jnp.zeros((groups, table, given.shape[1])).at[group, at].add(given).sum(0)

        return add_up

    def one_hot(dtype: str) -> LookUpGradient:
        def add_up(at: jax.Array, given: jax.Array) -> jax.Array:
            rows = jax.nn.one_hot(at, table, dtype=dtype)
            return jnp.einsum("rv,rf->vf", rows, given.astype(dtype), preferred_element_type=jnp.float32)

        return add_up

    return {
        "scatter, float32": scatter("float32"),
        "scatter, bfloat16": scatter("bfloat16"),
        **{f"scatter, {groups} groups, float32": grouped(groups) for groups in _GROUPS},
        "one-hot product, float32": one_hot("float32"),
        "one-hot product, bfloat16": one_hot("bfloat16"),
    }


def look_ups(part: int) -> dict[str, Callable[[], Measure]]:
    """Returns each way at the sizes of cifar10.py's tokens and positions, by name; rows divided by `part`."""
    # Half of all tokens are one colour: white, in many pictures.
    tokens = (512 * 64 * 48 // part**2, 256, 7, 0.5)
    positions = (2 * 512 * 32 // part, 64, 512, 0.0)
    return {
        f"look-up of {what}, {way}": functools.partial(look_up, gradient, *sizes)
        for what, sizes in {"tokens": tokens, "positions": positions}.items()
        for way, gradient in look_up_gradients(sizes[1]).items()
    }


def look_up(gradient: LookUpGradient, rows: int, table: int, features: int, alike: float) -> Measure:
    """One way, compared with float64 on the host.

    Args:
      gradient: one of `look_up_gradients(table)`.
      rows: R, look-ups.
      table: V, entries.
      features: F of an entry.
      alike: share of the rows that look up the first entry.

    Returns:
      The measure: the time, and `error`, relative, in the Euclidean norm.
    """
    rng = np.random.default_rng(0)
    at = np.where(rng.random(rows) < alike, 0, rng.integers(0, table, rows)).astype(np.int32)
    given = rng.normal(size=(rows, features)).astype(np.float32)
    exact = np.stack([np.bincount(at, given[:, i].astype(np.float64), table) for i in range(features)], axis=1)
    placed, run = jax.device_put((at, given)), jax.jit(gradient)
    found = np.asarray(run(*placed)).astype(np.float64)
    error = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    return lambda: timed(lambda: run(*placed), 0.2).milliseconds() | {"error": error}


if __name__ == "__main__":
    main()
