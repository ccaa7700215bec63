"""Requests to stop: signals, and that all processes hear them at the same step."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hybrid_jax import sharding
from hybrid_jax.distributed import several


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGTERM or SIGINT has come; a second SIGINT stops at once."""
    came: list[int] = []

    def note(number, frame):
        # Schedulers repeat SIGTERM; only a second Ctrl-C means that saving is not wanted either.
        if number == signal.SIGINT and signal.SIGINT in came:
            raise KeyboardInterrupt
        came.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # only the main thread may handle signals; a caller's thread keeps its own ways
        before = {}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Agreement:
    """Tells all processes whether any of them says yes.

    The question travels with the steps: asked before a step and answered after it, it waits for nothing.
    """

    def __init__(self, mesh: Mesh):
        """Compiles the question and asks it once, so that the devices' processes know each other.

        Where a CPU's processes meet for the first time one waits 30 s for another, too little for a compilation.
        """
        self._mesh, self._any = mesh, None
        if not several():
            return
        groups = ("data", "fsdp", sharding.BATCH_AXES)

        def count(mine: jax.Array) -> list[jax.Array]:
            return [jax.lax.psum(mine, axes) for axes in groups]

        spec = P(sharding.BATCH_AXES)
        jax.block_until_ready(jax.jit(jax.shard_map(count, mesh=mesh, in_specs=spec, out_specs=spec))(self._flags(0)))
        self._any = jax.jit(jax.numpy.max, out_shardings=sharding.replicated(mesh))

    def ask(self, mine: bool) -> Callable[[], bool]:
        """Starts the question; the function returned gives its answer, the same in all processes."""
        if self._any is None:
            return lambda: mine
        answer = self._any(self._flags(mine))
        return lambda: bool(answer)

    def _flags(self, mine: bool | int) -> jax.Array:
        where = NamedSharding(self._mesh, P(sharding.BATCH_AXES))
        return jax.make_array_from_callback((self._mesh.size,), where, lambda _: np.full(1, mine, np.int32))
