"""What is measured along each axis, what the mathematics requires there, and how one point is measured.

python -m benchmarks.growth.points TASK

measures one (`Axis.task`) in a process of its own and prints JSON: seconds of a step, of tracing and of compiling,
bytes that the compiler says a device holds, and what is required of these. Dimensions: B images, L of them in the
likelihood, N patches, Q kept by a view, S tokens per patch, D width, H heads.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.step import images_of
from hybrid_jax import config as config_lib
from hybrid_jax import losses, sharding, train_state, train_step
from hybrid_jax.models import flops
from hybrid_jax.models.heads import factor_sizes, hidden_units
from hybrid_jax.models.tokens import TokenSpec

FLOAT, NT_XENT_DIM, TEMPERATURE = 4, 64, 0.2  # bytes; numbers of an embedding
ROUNDS, ENOUGH = 7, 3.0  # seconds of timed steps after which three rounds suffice

# Near configs/fashion_mnist.py, with half of its batch and of its encoder, so that the largest sizes stay affordable.
BASE: dict[str, Any] = {
    "data.image_size": (28, 28), "model.patch_size": 7, "model.width": 96, "model.num_heads": 3,
    "model.encoder_layers": 2, "model.decoder_layers": 1, "objective.contrastive_weight": 0.3,
    "augment.crop_min_area": 0.8, "augment.view_keep": 0.5, "train.batch_size": 64, "train.likelihood_fraction": 0.5,
    "train.ema_decay": 0.998, "optimizer.name": "muon", "optimizer.learning_rate": 8e-3,
}  # fmt: skip


class Axis(NamedTuple):
    """One thing that grows.

    Attributes:
      label: what the sizes are, with their unit.
      sizes: where it is measured; each axis of the step holds the base's own size, measured once for all of them.
      quick: which of them `--quick` measures.
      settings: of a size: changes of the base, `devices`, or `batch` and `block_size` of NT-Xent alone.
    """

    label: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    settings: Callable[[int], dict[str, Any]]

    def task(self, size: int) -> str:
        """Returns what `measured` is told of a size, as JSON; equal for equal work."""
        settings = self.settings(size)
        devices = settings.pop("devices", 1)
        return json.dumps({"devices": devices, **(settings if "batch" in settings else BASE | settings)})


_DEPTH, _BATCHES = (2, 4, 8, 16), (1024, 2048, 4096, 8192)
AXES = {
    "batch": Axis("batch, images", (32, 64, 128, 256), (64, 256), lambda n: {"train.batch_size": n}),
    "image": Axis(
        "image side, pixels (patches of 7)", (14, 28, 56, 112), (28, 56), lambda n: {"data.image_size": (n, n)}
    ),
    "tokens": Axis(
        "patches of an image of 28x28", (4, 16, 49, 196), (16, 49), lambda n: {"model.patch_size": 28 // math.isqrt(n)}
    ),
    "width": Axis(
        "width, features (heads of 32)", (32, 96, 192, 384), (96, 192),
        lambda n: {"model.width": n, "model.num_heads": n // 32},
    ),
    "depth": Axis("encoder_layers, blocks", _DEPTH, (2, 4), lambda n: {"model.encoder_layers": n}),
    "depth_scan": Axis(
        "encoder_layers, blocks, scan_layers", _DEPTH, (),
        lambda n: {"model.encoder_layers": n, "model.scan_layers": True},
    ),
    "devices": Axis("fake devices, global batch fixed", (1, 2, 4, 8), (1, 8), lambda n: {"devices": n}),
    "nt_xent": Axis(
        "NT-Xent alone, batch, images", _BATCHES, (1024, 4096), lambda n: {"batch": n, "block_size": None}
    ),
    "nt_xent_256": Axis(
        "NT-Xent alone, batch, images, block_size 256", _BATCHES, (1024, 4096),
        lambda n: {"batch": n, "block_size": 256},
    ),
}  # fmt: skip


class Counts(NamedTuple):
    """What is required of a step.

    Attributes:
      operations: a multiply-add is two.
      arguments: bytes of state and images on one device.
      temporaries: bytes of gradients and of what the backward pass reads again, on one device.
    """

    operations: float
    arguments: float
    temporaries: float


def step_counts(config, devices: int) -> Counts:
    """Counts a train step whose batch is cut over `devices`, each with the whole state."""
    state = train_state.abstract_state(config)
    held = lambda tree: float(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)))
    pixels = math.prod(config.data.image_size) * config.data.channels
    return Counts(
        flops.total(config) + orthogonalisation(config),
        held(state) + config.train.batch_size * pixels / devices,
        held(state.params) + _kept(config) / devices,
    )


def orthogonalisation(config) -> float:
    """Returns the operations of Muon's Newton-Schulz iterations, which flops.py leaves out.

    Each of the five takes an m x n matrix, m <= n, through two products of 2 m^2 n operations and one of 2 m^3. A block
    has matrices of D x 3D, D x D and twice D x 4D.
    """
    if config.optimizer.name != "muon":
        return 0.0
    iteration = sum(4 * ratio + 2 for ratio in (3, 1, 4, 4)) * config.model.width**3
    return 5.0 * iteration * (config.model.encoder_layers + config.model.decoder_layers)


def _kept(config) -> float:
    """Returns the bytes that the forward pass of a whole batch leaves for the backward pass.

    A block keeps 14 D + H N numbers a position: the inputs of its two norms, query, key and value, what attention
    gives, and 4 D twice around the activation; and a row of attention's weights for each head, whole under the causal
    mask too, which leaves half of it.
    """
    model, spec, batch = config.model, TokenSpec.from_config(config), config.train.batch_size
    n, s, images = spec.num_patches, spec.tokens_per_patch, config_lib.likelihood_batch(config)
    block = lambda positions: positions * (14 * model.width + model.num_heads * positions)
    head = s * (3 * hidden_units(model.width, s) + 2 * sum(factor_sizes(spec.vocab_size))) if s > 1 else spec.vocab_size
    numbers = 2 * batch * model.encoder_layers * block(max(1, round(config.augment.view_keep * n)))
    numbers += images * ((model.encoder_layers + model.decoder_layers) * block(n) + n * head)
    return float(FLOAT * numbers) + nt_xent_counts(batch, None).temporaries


def nt_xent_counts(batch: int, block_size: int | None) -> Counts:
    """Counts NT-Xent and its gradient; one block's similarities are held, as `losses.nt_xent` chooses its size."""
    rows = 2 * batch
    block = min(block_size or max(1, 2**23 // rows), rows)
    embeddings = float(FLOAT * rows * NT_XENT_DIM)
    # Four products: forward, again in the backward pass, and the gradients of both factors.
    return Counts(4.0 * 2 * rows**2 * NT_XENT_DIM, embeddings, 2 * embeddings + FLOAT * block * rows)


def config_of(settings: dict[str, Any]):
    """Returns the valid config of a task's settings."""
    config = config_lib.default_config()
    config.update_from_flattened_dict({k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
    config_lib.validate(config)
    return config


def _step(**settings: Any) -> tuple[Any, list, Counts]:
    """Returns the jitted train step, a state and images to call it with, and its counts."""
    config = config_of(settings)
    mesh = sharding.make_mesh(config)

    def filled(like: jax.ShapeDtypeStruct) -> jax.Array:
        # Small numbers instead of initial values, whose compilation would take as long again.
        most = 0.02 if jnp.issubdtype(like.dtype, jnp.floating) else 0
        return jax.device_put(np.random.default_rng(0).uniform(0, most, like.shape).astype(like.dtype), like.sharding)

    arguments = [jax.tree.map(filled, train_state.abstract_state(config, mesh)), images_of(config, mesh)]
    return train_step.make_train_step(config, mesh), arguments, step_counts(config, mesh.size)


def _nt_xent(batch: int, block_size: int | None) -> tuple[Any, list, Counts]:
    """Returns the jitted gradient of NT-Xent, embeddings of both views, and its counts."""
    views = np.random.default_rng(0).normal(size=(2, batch, NT_XENT_DIM)).astype(np.float32)
    loss = lambda views: jnp.mean(losses.nt_xent(views[0], views[1], TEMPERATURE, block_size))
    # In the step's form, a state and a result, so that one loop times both.
    function = jax.jit(lambda views: (views, jax.grad(loss)(views)))
    return function, [jnp.asarray(views)], nt_xent_counts(batch, block_size)


def measured(task: str) -> dict[str, Any]:
    """Traces, compiles and calls a function (state, ...) -> (state, result)."""
    settings = json.loads(task)
    del settings["devices"]  # which this process has
    function, (state, *rest), counts = (_nt_xent if "batch" in settings else _step)(**settings)
    start = time.perf_counter()
    lowered = function.lower(state, *rest)
    traced = time.perf_counter()
    compiled = lowered.compile()
    ready, memory, seconds = time.perf_counter(), compiled.memory_analysis(), []
    # The first call finds nothing in place and is not counted.
    while len(seconds) <= ROUNDS and (len(seconds) <= 3 or sum(seconds[1:]) < ENOUGH):
        begin = time.perf_counter()
        state = jax.block_until_ready(compiled(state, *rest))[0]
        seconds.append(time.perf_counter() - begin)
    return {
        "seconds": statistics.median(seconds[1:]),
        "trace_seconds": traced - start,
        "compile_seconds": ready - traced,
        "temporaries": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "counts": counts._asdict(),
    }


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1])))
