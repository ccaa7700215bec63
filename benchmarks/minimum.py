"""What a train step must communicate at least, by formula: bytes that one device sends in rings, by kind.

d devices along `data`, f along `fsdp`, n = d f; P parameters; w bytes of a number of `model.dtype`, in which weights
are multiplied; B images a step, whose 2B views have embeddings of E float32 numbers. A ring (Patarasuk & Yuan 2009)
sends of an array of s bytes (g-1)/g s when g devices gather or scatter it, twice that when they add it up for all.

| kind | minimum | what for |
|---|---|---|
| all_gather | 2 (f-1)/f P w | weights, once forward and once backward |
| | (n-1)/n 2B E 4 | embeddings of both views |
| reduce_scatter | (f-1)/f P w | gradients, over `fsdp` |
| | (n-1)/n 2B E 4 | cotangents of the embeddings |
| all_reduce | 2 (d-1)/d P/f w | gradients, over `data` |

Left out, being small: norms, losses, and parameters that are too small to cut. Choices of precision count as excess:
gradients that are added in float32 are twice the minimum where w is 2.
"""

import jax.numpy as jnp

KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "collective_permute")


def moved_bytes(config, mesh: dict[str, int], parameters: int) -> dict[str, float]:
    """Returns {kind: bytes that one device sends in a step}, by the formulas above.

    Args:
      config: a resolved config.
      mesh: {`data`: d, `fsdp`: f}.
      parameters: P.
    """
    data, fsdp = mesh["data"], mesh["fsdp"]
    weights = parameters * jnp.dtype(config.model.dtype).itemsize
    views = 0.0
    if config.objective.contrastive_weight > 0:
        views = _share(data * fsdp) * 2 * config.train.batch_size * config.model.projection_dims[-1] * 4
    return {
        "all_gather": 2 * _share(fsdp) * weights + views,
        "reduce_scatter": _share(fsdp) * weights + views,
        "all_reduce": 2 * _share(data) * weights / fsdp,
        "all_to_all": 0.0,
        "collective_permute": 0.0,
    }


def _share(group: int) -> float:
    return (group - 1) / group
