"""One measured size of `benchmarks.growth`, in a process of its own: its peak memory is then this size's.

python -m benchmarks.growth_worker JSON

The JSON has `kind` and `settings` (benchmarks/growth_points.py). Prints one JSON object: seconds of each step, seconds
of tracing and of compiling, bytes that the compiler says a device holds, bytes that this process held, and what the
mathematics requires of these.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import growth_counts
from benchmarks.contest import peak_rss
from benchmarks.growth_points import NT_XENT
from hybrid_jax import config as config_lib
from hybrid_jax import losses, sharding, train_state, train_step

ROUNDS = 7
ENOUGH = 3.0  # seconds of timed steps after which three rounds suffice
TEMPERATURE = 0.2


def main(argv: list[str]) -> None:
    """Measures and prints."""
    task = json.loads(argv[1])
    prepare = nt_xent if task["kind"] == NT_XENT else step
    function, arguments, counts = prepare(task["settings"])
    print(json.dumps(measured(function, arguments) | {"counts": dataclasses.asdict(counts)}))


def step(settings: dict[str, Any]) -> tuple[Any, list, growth_counts.Counts]:
    """Returns the jitted train step, a state and images to call it with, and its counts."""
    config = config_lib.default_config()
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    config.update_from_flattened_dict(lists)
    config_lib.validate(config)
    mesh = sharding.make_mesh(config)
    # Small numbers instead of initial values, whose compilation would take as long again.
    state = jax.tree.map(_filled, train_state.abstract_state(config, mesh))
    batch = config.train.batch_size
    shape = (batch, *config.data.image_size, config.data.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    counts = growth_counts.step(config, mesh.size)
    return train_step.make_train_step(config, mesh), [state, sharding.global_batch(images, mesh, batch)], counts


def _filled(like: jax.ShapeDtypeStruct) -> jax.Array:
    if not jnp.issubdtype(like.dtype, jnp.floating):
        return jax.device_put(np.zeros(like.shape, like.dtype), like.sharding)
    values = np.random.default_rng(0).uniform(0, 0.02, like.shape)
    return jax.device_put(values.astype(like.dtype), like.sharding)


def nt_xent(settings: dict[str, Any]) -> tuple[Any, list, growth_counts.Counts]:
    """Returns the jitted gradient of NT-Xent, embeddings of both views, and its counts."""
    batch, block = settings["batch"], settings["block_size"]
    shape = (2, batch, growth_counts.NT_XENT_DIM)
    views = jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))

    def loss(views):
        return jnp.mean(losses.nt_xent(views[0], views[1], TEMPERATURE, block))

    # In the step's form, a state and a result, so that one loop times both.
    return jax.jit(lambda views: (views, jax.grad(loss)(views))), [views], growth_counts.nt_xent(batch, block)


def measured(function: Any, arguments: list) -> dict[str, Any]:
    """Traces, compiles and calls function(state, ...) -> (state, result)."""
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    ready = time.perf_counter()
    memory = compiled.memory_analysis()
    before = peak_rss()
    seconds = timed(compiled, arguments)
    return {
        "seconds": statistics.median(seconds),
        "rounds": seconds,
        "trace_seconds": traced - start,
        "compile_seconds": ready - traced,
        "temporaries": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "peak_rss_before": before,
        "peak_rss": peak_rss(),
    }


def timed(compiled: Callable, arguments: list) -> list[float]:
    """Returns the seconds of each call but the first, which finds nothing in place."""
    state, *rest = arguments
    arguments.clear()  # the state is donated
    state, _ = jax.block_until_ready(compiled(state, *rest))
    seconds: list[float] = []
    while len(seconds) < ROUNDS and (len(seconds) < 3 or sum(seconds) < ENOUGH):
        start = time.perf_counter()
        state, result = compiled(state, *rest)
        jax.block_until_ready((state, result))
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main(sys.argv)
