"""Forms of attention: error, time forward and backward, causality to the bit, and whether bits repeat.

python -m benchmarks.gpu.attention [--tiny]

Each form against `plain` in float32 at the highest precision. From which length cuDNN pays, the table says.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.gpu.common import compiled, on_gpu, precision, timed
from benchmarks.gpu.record import Entry, Record, stage_flags
from hybrid_jax.models import attention

# Relative, in the Euclidean norm: bfloat16's 8 bits round by up to 2^-9 = .002, here some of them in a row.
_ALLOWED_ERROR = 1e-2
_COMPARED_IMAGES = 16


class Shape(NamedTuple):
    """B images, N positions, H heads, E features of a head; causal or not."""

    images: int
    positions: int
    heads: int
    features: int
    causal: bool

    def __str__(self) -> str:
        return "x".join(map(str, self[:4])) + (" causal" if self.causal else "")


# As many positions in all at each length; then the passes of the configs that have other heads.
LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
SWEEP = tuple(Shape(65536 // n, n, 8, 64, causal) for causal in (True, False) for n in LENGTHS)
_CONFIGS = (
    Shape(256, 8, 3, 32, False), Shape(64, 16, 3, 32, True), Shape(512, 128, 16, 64, False),
    Shape(256, 256, 16, 64, True), Shape(128, 49, 3, 32, True), Shape(256, 25, 3, 32, False),
)  # fmt: skip


class Checked(NamedTuple):
    """A compiled form, (query, key, value, output's gradient) -> output and three gradients, and its entry so far."""

    form: Callable[..., tuple[jax.Array, ...]]
    entry: Entry


def main() -> None:
    """Compiles and checks all forms of all shapes, then times them."""
    tiny = stage_flags(__doc__ or "").tiny
    record = Record("attention", tiny)
    shapes = SWEEP[1:2] + _CONFIGS[:1] if tiny else _CONFIGS[:2] + SWEEP + _CONFIGS[2:]
    named = {f"{shape}, {form}": (shape, form) for shape in shapes for form in forms()}
    for name, checked in compiled(named, lambda name: check(*named[name], tiny), record, tiny):
        record.add(name, functools.partial(measure, checked, named[name][0], tiny))


def forms() -> dict[str, attention.Attend]:
    """Returns the forms that this platform has."""
    found: dict[str, attention.Attend] = {"plain": attention.plain, "xla": _xla}
    return found | ({"cudnn": attention.cudnn} if on_gpu() else {})


def _xla(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="xla")


def _inputs(shape: Shape, tiny: bool) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(shape.positions), 4)
    return [jax.random.normal(key, (4 if tiny else shape.images, *shape[1:4]), jnp.bfloat16) for key in keys]


def _gradient(form: attention.Attend, causal: bool):
    @jax.jit
    def run(query: jax.Array, key: jax.Array, value: jax.Array, gradient: jax.Array):
        found, pull = jax.vjp(functools.partial(form, causal=causal), query, key, value)
        return found, *pull(gradient)

    return run


def check(shape: Shape, form: str, tiny: bool) -> Checked:
    """Compiles one form for one shape and compares it with `plain` in float32.

    Returns:
      The form, and `error` (the worst of the output and the three gradients), `same_bits_twice`, with a causal mask
      `causal` (to the bit), and whether it is `ok`.
    """
    given = _inputs(shape, tiny)
    run = _gradient(forms()[form], shape.causal).lower(*given).compile()
    found, again = run(*given), run(*given)
    with precision("highest"):
        exact = _gradient(attention.plain, shape.causal)(*(x[:_COMPARED_IMAGES].astype(jnp.float32) for x in given))
    entry: Entry = {
        "error": max(_relative(x[: len(y)], y) for x, y in zip(found, exact, strict=True)),
        "same_bits_twice": all(bool((a == b).all()) for a, b in zip(found, again, strict=True)),
    }
    if shape.causal:
        # A changed last position may change no earlier output by a bit.
        changed = [x.at[:, -1].add(1) for x in given[:3]]
        entry["causal"] = bool((run(*changed, given[3])[0][:, :-1] == found[0][:, :-1]).all())
    return Checked(run, entry | {"ok": entry["error"] < _ALLOWED_ERROR and entry.get("causal", True)})


def measure(checked: Checked, shape: Shape, tiny: bool) -> Entry:
    """Returns the form's time beside what was checked."""
    given = _inputs(shape, tiny)
    return timed(lambda: checked.form(*given), 0.2).milliseconds() | checked.entry


def _relative(found: jax.Array, exact: jax.Array) -> float:
    return float(jnp.linalg.norm((found.astype(jnp.float32) - exact).ravel()) / jnp.linalg.norm(exact.ravel()))


if __name__ == "__main__":
    main()
