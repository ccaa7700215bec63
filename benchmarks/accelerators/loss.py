"""Compiles the contrastive loss and its gradient alone.

python -m benchmarks.accelerators.loss TOPOLOGY BATCH DIM BLOCK

A process of its own, in the environment of `aot.compile.worker_environment`; prints JSON as `compile.json` has it.
BLOCK 0 leaves the choice to the loss.
"""

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from hybrid_jax import losses, sharding
from hybrid_jax.aot import hardware, hlo, worker
from hybrid_jax.config import default_config


def compile_loss(topology: str, batch: int, dim: int, block: int) -> dict[str, Any]:
    """Compiles NT-Xent of 2 x batch embeddings of dim numbers, forward and backward."""
    target, config = hardware.parse_topology(topology), default_config()
    devices = worker.topology_devices(target.generation, list(target.shape), target.slices)
    config.train.batch_size = batch
    mesh = sharding.make_mesh(config, devices)
    where = sharding.batch_sharding(mesh)

    def loss(pair: jax.Array) -> jax.Array:
        found = losses.nt_xent_and_accuracy(pair[:, 0], pair[:, 1], 0.2, block or None, len(devices))
        return jnp.mean(found[0])

    function = jax.jit(jax.value_and_grad(loss), out_shardings=(sharding.replicated(mesh), where))
    pair, start = jax.ShapeDtypeStruct((batch, 2, dim), jnp.float32, sharding=where), time.perf_counter()
    answer: dict[str, Any] = {"devices": len(devices), "mesh": dict(mesh.shape), "parameters": 0}
    # Three products of all views with all, as the loss has in hybrid_jax/models/flops.py.
    answer["flops"] = 3.0 * 2 * (2 * batch) ** 2 * dim
    try:
        compiled = function.lower(pair).compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = worker.out_of_memory(str(error))
        if sizes is None:
            raise
        answer |= dict(zip(("peak_bytes_per_device", "available_bytes_per_device"), sizes, strict=True))
        return answer | {"collectives": None, "compile_seconds": time.perf_counter() - start}
    answer["compile_seconds"], text = time.perf_counter() - start, compiled.as_text()
    answer |= worker.memory(compiled.memory_analysis()) | hlo.count(text)
    return answer | {"compiled_flops_per_device": hlo.flops(text)}


if __name__ == "__main__":
    print(json.dumps(compile_loss(sys.argv[1], *map(int, sys.argv[2:]))))
