"""What the stages need of hybrid_jax and of jax: data, compiled train steps, timers. When those move, this moves."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.gpu.record import ROOT, Record, one_line
from benchmarks.step import palette_of
from hybrid_jax import config as config_lib
from hybrid_jax import sharding, train_state, train_step
from hybrid_jax.aot.hardware import GIB
from hybrid_jax.aot.worker import attention_form, memory

_GROUPS, _AT_MOST = 5, 500  # groups of calls that are timed; calls of a group
# The compiler has threads of its own beside these.
_COMPILING_THREADS = 10
_EMBEDDED = ROOT / "hybrid_jax/data/embedded/fashion_mnist_12k.npz"


def on_gpu() -> bool:
    """Returns whether JAX computes on a GPU."""
    return jax.default_backend() in ("gpu", "cuda")


@functools.lru_cache
def _grey_images() -> np.ndarray:
    with np.load(_EMBEDDED, allow_pickle=False) as arrays:
        return arrays["train_images"]


def real_images(shape: tuple[int, int, int], count: int) -> np.ndarray:
    """Returns pixels of photographs in any shape: clothes are tiled, and three of them make the colours.

    Args:
      shape: (H, W, C).
      count: images.

    Returns:
      (count, H, W, C) uint8.
    """
    height, width, channels = shape
    grey = _grey_images()
    chosen = grey[np.random.default_rng(0).integers(len(grey), size=(count, channels))]
    tiled = np.tile(chosen, (1, 1, -(-height // grey.shape[1]), -(-width // grey.shape[2])))
    return np.ascontiguousarray(np.moveaxis(tiled[:, :, :height, :width], 1, -1))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A train step for the devices that are here.

    Attributes:
      config: what it trains.
      mesh: of those devices.
      step: (state, images) -> (state, metrics).
      facts: `parameters`, `trace_s`, `compile_s`, `attention` (the form in the program), `conditionals` (how many),
        `peak_gib` and `temporaries_gib` by the compiler's count.
    """

    config: Any
    mesh: Any
    step: Any
    facts: dict[str, Any]

    def fresh_state(self) -> train_state.TrainState:
        """Returns the state before the first step."""
        return train_state.init_state(self.config, self.mesh, palette_of(self.config))

    def batches(self, count: int = 4) -> list[jax.Array]:
        """Returns batches of images on the devices."""
        config, size = self.config, self.config.train.batch_size
        images = real_images((*config.data.image_size, config.data.channels), count * size)
        return [sharding.global_batch(images[i * size : (i + 1) * size], self.mesh, size) for i in range(count)]


def compile_step(config) -> Compiled:
    """Compiles a config's train step and what makes its first state; the compiler leaves other threads free."""
    config_lib.validate(config)
    mesh = sharding.make_mesh(config)
    state, images = train_step.abstract_arguments(config, mesh)
    step: Any = train_step.make_train_step(config, mesh)
    begin = time.perf_counter()
    lowered = step.lower(state, images)
    traced = time.perf_counter()
    step = lowered.compile()
    done = time.perf_counter()
    text, sizes = step.as_text(), memory(step.memory_analysis())
    facts = {
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)),
        "trace_s": traced - begin,
        "compile_s": done - traced,
        "attention": attention_form(text),
        "conditionals": text.count(" conditional("),
        "peak_gib": sizes["peak_bytes_per_device"] / GIB,
        "temporaries_gib": sizes["temporaries_bytes_per_device"] / GIB,
    }
    made = Compiled(config, mesh, step, facts)
    jax.block_until_ready(made.fresh_state())
    return made


def compiled(
    names: Iterable[str], make: Callable[[str], Any], record: Record, tiny: bool, alone: bool = True
) -> Iterator[tuple[str, Any]]:
    """Compiles what the record lacks, in threads; what fails is told there.

    Args:
      names: of entries.
      make: compiles what an entry is measured with.
      record: of the stage.
      tiny: one thread only.
      alone: yield the first when the last is compiled, so that nothing compiles beside a timing.

    Yields:
      (name, what was made).
    """
    wanted = [name for name in names if not record.has(name)]
    pool = concurrent.futures.ThreadPoolExecutor(1 if tiny else min(_COMPILING_THREADS, os.cpu_count() or 1))
    futures = {name: pool.submit(make, name) for name in wanted}
    pool.shutdown(wait=alone)
    for name in wanted:
        # Given away, so that its buffers go when the caller is done with it.
        future = futures.pop(name)
        if error := future.exception():
            record.put(name, {"failed": one_line(error)})
        else:
            yield name, future.result()


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Seconds of one call: median, least and most of a few groups of calls."""

    median: float
    least: float
    most: float

    def milliseconds(self) -> dict[str, Any]:
        """Returns the entry's part about time."""
        return {"ms": 1e3 * self.median, "range_ms": [1e3 * self.least, 1e3 * self.most]}


def timed(call: Callable[[], Any], seconds: float) -> Seconds:
    """Times a call that returns arrays; the calls of a group are not waited for one by one.

    Args:
      call: does the work once; compiled already.
      seconds: that all groups shall take together, at least one call each.
    """

    def group(count: int) -> float:
        begin, last = time.perf_counter(), None
        for _ in range(count):
            last = call()
        jax.block_until_ready(last)
        return (time.perf_counter() - begin) / count

    group(1)
    count = int(seconds / _GROUPS / max(group(2), 1e-6))
    spent = [group(max(1, min(_AT_MOST, count))) for _ in range(_GROUPS)]
    return Seconds(statistics.median(spent), min(spent), max(spent))


class Stepper:
    """A compiled step with its state, called again and again."""

    def __init__(self, made: Compiled):
        """Begins with the first state, and goes round a few batches."""
        self._step, self._state, self._batches, self._done = made.step, made.fresh_state(), made.batches(), 0

    def __call__(self) -> dict[str, jax.Array]:
        """Does one step; returns its metrics."""
        images = self._batches[self._done % len(self._batches)]
        self._state, metrics = self._step(self._state, images)
        self._done += 1
        return metrics


@contextlib.contextmanager
def precision(name: str | None) -> Iterator[None]:
    """Sets how float32 products are computed; None = the platform's default, TF32 on recent GPUs."""
    with jax.default_matmul_precision(name) if name else contextlib.nullcontext():
        yield
