"""Logistic regression on an accelerator: the objective of `logistic.fit_logistic`, in few compiled shapes.

On accelerators even a small program takes seconds to compile, while padding costs next to nothing. So rows, features
and classes are padded to a few sizes, and one program finds the spectrum and fits every C.

Dimensions: n images, D features, K classes, F fits.
"""

import threading
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

_ROWS, _MOST_ROWS = (1024, 8192), 65536
_COLUMNS, _MOST_COLUMNS = (512,), 4096
_CLASSES, _MOST_CLASSES = (16,), 128
_FITS = 4
# Without the lock, each thread would compile a shape that is not compiled yet.
_one_at_a_time = threading.Lock()

Solution = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def solve(
    x: np.ndarray,
    targets: np.ndarray,
    num_classes: int,
    c_values: Sequence[float],
    max_iterations: int,
    tolerance: float,
) -> Solution:
    """Fits a classifier for every C.

    Args:
      x: (n, D) float32, standardised.
      targets: (n,) int in [0, K).
      num_classes: K.
      c_values: inverse strengths of the L2 penalty, F of them.
      max_iterations: limit of the solver.
      tolerance: largest gradient component of the mean objective at which it stops.

    Returns:
      Weights (F, D, K) and bias (F, K), float32; steps (F,) int32; (F,) bool, whether the solver converged.

    Raises:
      FloatingPointError: a weight is not finite.
    """
    (n, d), count = x.shape, len(c_values)
    rows, columns, most_classes = filled_shape(n, d, num_classes)
    filled, labels = np.zeros((rows, columns), np.float32), np.full(rows, -1, np.int32)
    filled[:n, :d], labels[:n] = x, targets
    fits = -(-count // _FITS) * _FITS
    # Fits that are padding end at once.
    penalties, limits = np.ones(fits, np.float32), np.zeros(fits, np.int32)
    penalties[:count], limits[:count] = [1 / (c * n) for c in c_values], max_iterations
    classes = np.zeros(most_classes, np.float32)
    classes[num_classes:] = -np.inf
    with _one_at_a_time:
        found = _solved(filled, labels, classes, penalties, limits, np.float32(tolerance))
        weights, bias, steps, done = (part[:count] for part in jax.device_get(found))
    weights, bias = weights[:, :d, :num_classes], bias[:, :num_classes]
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        raise FloatingPointError(f"logistic regression on {n:,} x {d:,} features: weights are not finite")
    return weights, bias, steps, done


def filled_shape(n: int, d: int, num_classes: int) -> tuple[int, int, int]:
    """Returns the padded numbers of rows, features and classes of the program for n, D and K."""

    def enough(size: int, sizes: tuple[int, ...], multiple: int) -> int:
        return next((known for known in sizes if size <= known), -(-size // multiple) * multiple)

    return (
        enough(n, _ROWS, _MOST_ROWS),
        enough(d, _COLUMNS, _MOST_COLUMNS),
        enough(num_classes, _CLASSES, _MOST_CLASSES),
    )


def compiled(n: int, d: int, num_classes: int):
    """Compiles the program for n, D and K, for at most four values of C."""
    return _solved.lower(*arguments(n, d, num_classes)).compile()


def arguments(n: int, d: int, num_classes: int) -> list[jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of the arguments of this program."""
    rows, columns, classes = filled_shape(n, d, num_classes)
    shapes = [(rows, columns), (rows,), (classes,), (_FITS,), (_FITS,), ()]
    dtypes = [np.float32, np.int32, np.float32, np.float32, np.int32, np.float32]
    return [jax.ShapeDtypeStruct(*each) for each in zip(shapes, dtypes, strict=True)]


@jax.jit
def _solved(x: jax.Array, labels: jax.Array, classes: jax.Array, penalties: jax.Array, limits: jax.Array, tolerance):
    """(N, D) features, (N,) labels or -1, (K,) 0 or -inf of each class, (F,) -> the result of `solve`, padded."""
    with jax.default_matmul_precision("highest"):
        n = jnp.sum(labels >= 0).astype(jnp.float32)
        values, vectors = jnp.linalg.eigh(x.T @ x / n)

        def fit(settings: tuple[jax.Array, jax.Array]):
            penalty, limit = settings
            # Whitened coordinates, as on the host.
            strength = jnp.sum(classes == 0) * penalty
            change = vectors / jnp.sqrt(jnp.maximum(values, 0) + strength)
            objective = lambda v: _objective(v, change, x, labels, classes, n, penalty)
            start = jnp.zeros((x.shape[1] + 1, len(classes)))
            v, steps, done = minimised(objective, start, limit, tolerance)
            return change @ v[:-1], v[-1], steps, done

        return jax.lax.map(fit, (penalties, limits))


def _objective(v: jax.Array, change: jax.Array, x, labels, classes, n, penalty) -> jax.Array:
    """Mean cross-entropy + penalty * |W|^2 / 2, of (D + 1, K) white coordinates and bias."""
    weights = change @ v[:-1]
    logits = x @ weights + v[-1] + classes
    right = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    losses = jnp.where(labels >= 0, jax.nn.logsumexp(logits, axis=1) - right, 0)
    return jnp.sum(losses) / n + penalty / 2 * jnp.sum(jnp.square(weights))


def minimised(
    objective: Callable[[jax.Array], jax.Array], start: jax.Array, limit: jax.Array, tolerance: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Minimises by L-BFGS until no gradient component is above a tolerance, or the float32 value no longer falls.

    Args:
      objective: a differentiable function with a () result.
      start: the initial argument.
      limit: () int32, maximum number of steps.
      tolerance: () float32.

    Returns:
      The minimiser; the number of steps; whether it converged.
    """
    solver = optax.lbfgs()
    value_and_slope = optax.value_and_grad_from_state(objective)

    def step(carry):
        v, state, _ = carry
        value, slope = value_and_slope(v, state=state)
        updates, state = solver.update(slope, state, v, value=value, grad=slope, value_fn=objective)
        return optax.apply_updates(v, updates), state, value

    def done(state, before: jax.Array) -> jax.Array:
        flat = jnp.max(jnp.abs(optax.tree_utils.tree_get(state, "grad"))) <= tolerance
        lowest = optax.tree_utils.tree_get(state, "value") >= before
        return (flat | lowest) & (_steps(state) > 0)

    unfinished = lambda carry: (_steps(carry[1]) < limit) & ~done(*carry[1:])
    v, state, before = jax.lax.while_loop(unfinished, step, (start, solver.init(start), jnp.float32(jnp.inf)))
    return v, _steps(state), done(state, before)


def _steps(state) -> jax.Array:
    return optax.tree_utils.tree_get(state, "count")
