"""Precision, recall, density and coverage of samples, from nearest neighbours in features.

Every image is the centre of a ball that reaches to its k-th nearest neighbour among its own kind, itself not counted;
the union of the balls stands for where such images lie. Precision and recall: Kynkaanniemi et al. 2019 (arXiv
1904.06991). Density and coverage: Naeem et al. 2020 (arXiv 2002.09797), as in the authors' code, where a point on the
edge of a ball lies outside.

Dimensions: n real images, m samples, D features.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.evaluators import accelerator

ROWS_AT_ONCE = 500


def precision_recall_density_coverage(real: np.ndarray, samples: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Returns what each image adds to the four measures, whose values are the means.

    Memory grows with 500 * max(n, m), not with n * m.

    Args:
      real: (n, D) features, n > k.
      samples: (m, D) features, m > k.
      k: which neighbour sets a ball's radius.

    Returns:
      `precision` (m,) bool, whether the sample lies in a ball of a real image;
      `recall` (n,) bool, whether the real image lies in a ball of a sample;
      `density` (m,) float64, in how many balls of real images the sample lies, over k;
      `coverage` (n,) bool, whether a sample lies in the real image's ball.
    """
    real, samples = _centred(real, samples)
    # Whether a point on the edge of a ball lies inside must be no chance of rounding.
    real_radii, sample_radii = (radii(x, k) * (1 - 1e-9) for x in (real, samples))
    density, recall, coverage = [], np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, squares in _snapped(samples, real):
        inside = squares < real_radii
        density.append(inside.sum(axis=1) / k)
        coverage |= inside.any(axis=0)
        recall |= (squares < sample_radii[rows, None]).any(axis=0)
    whole = np.concatenate(density)
    return {"precision": whole > 0, "recall": recall, "density": whole, "coverage": coverage}


def radii(x: np.ndarray, k: int) -> np.ndarray:
    """Returns the (n,) float64 squared distance of each of (n, D) points to its k-th nearest other point."""
    found = []
    for rows, squares in _snapped(x, x):
        # A point is its own nearest, also where others are equal to it.
        squares[np.arange(len(squares)), np.arange(rows.start, rows.stop)] = -1
        squares.partition(k, axis=1)
        # A view would keep all of the distances.
        found.append(squares[:, k].copy())
    return np.concatenate(found)


def nearest_distance(queries: np.ndarray, bank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds each query's nearest row of a bank by Euclidean distance.

    Memory grows with 500 * n, not with m * n.

    Args:
      queries: (m, D).
      bank: (n, D); of equally near rows the first counts.

    Returns:
      (m,) float64 distances and (m,) rows of the bank. The search is done in the inputs' precision: a row that
      is further by rounding only may be found instead.
    """
    rows = (_nearest_on_device if accelerator.present() else _nearest_rows)(queries, bank)
    distances = [
        np.linalg.norm(queries[part].astype(np.float64) - bank[rows[part]], axis=1)
        for part in np.array_split(np.arange(len(queries)), -(-len(queries) // ROWS_AT_ONCE))
    ]
    return np.concatenate(distances), rows


def _nearest_rows(queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
    return np.concatenate([squares.argmin(axis=1) for _, squares in _squared_distances(queries, bank)])


def _nearest_on_device(queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """As `_nearest_rows`, in float32 and in batches of one shape."""
    bank = jax.device_put(np.asarray(bank, np.float32))
    filled = np.pad(queries.astype(np.float32), ((0, -len(queries) % ROWS_AT_ONCE), (0, 0)))
    parts = [np.asarray(_nearest(part, bank)) for part in filled.reshape(-1, ROWS_AT_ONCE, filled.shape[1])]
    return np.concatenate(parts)[: len(queries)]


@jax.jit
def _nearest(queries: jax.Array, bank: jax.Array) -> jax.Array:
    products = jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(jnp.square(bank), axis=1) - 2 * products, axis=1)


def _centred(real: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same points in float64 around the real ones' mean, where differences of squares keep their digits."""
    mean = real.mean(axis=0, dtype=np.float64)
    return real - mean, samples - mean


def _snapped(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The squared distances, 0 where they are no more than rounding: whether equal points meet is then no chance."""
    largest = max(float(np.einsum("nd,nd->n", x, x).max()) for x in (a, b))
    for rows, squares in _squared_distances(a, b):
        squares[squares < 1e-13 * largest] = 0
        yield rows, squares


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields rows of `a` and their (rows, len(b)) squared distances to all of `b`, in the inputs' dtype."""
    b_squares = np.einsum("nd,nd->n", b, b)
    for start in range(0, len(a), ROWS_AT_ONCE):
        chunk = a[start : start + ROWS_AT_ONCE]
        squares = chunk @ b.T
        squares *= -2
        squares += b_squares
        squares += np.einsum("nd,nd->n", chunk, chunk)[:, None]
        yield slice(start, start + len(chunk)), squares
