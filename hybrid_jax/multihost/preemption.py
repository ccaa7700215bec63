"""Preemption: stop signals, with all processes stopping at the same step."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hybrid_jax import sharding
from hybrid_jax.errors import Preempted
from hybrid_jax.multihost.coordination import several


class StopRequests:
    """Whether any process of the run received SIGTERM or SIGINT; a second SIGINT stops at once.

    Handles the signals while used as a context manager.
    """

    def __init__(self, mesh: Mesh | None):
        """Compiles the reduction over processes and runs one, so that they are connected.

        CPU processes wait only 30 s for each other in the first collective, too short for a compilation.

        Args:
          mesh: mesh of the processes that stop together; None = a single process.
        """
        self._came: list[int] = []
        self._message: str | None = None
        self._mesh, self._any = mesh, None
        if mesh is None or not several():
            return
        groups = ("data", "fsdp", sharding.BATCH_AXES)

        def count(mine: jax.Array) -> list[jax.Array]:
            return [jax.lax.psum(mine, axes) for axes in groups]

        spec = P(sharding.BATCH_AXES)
        jax.block_until_ready(
            jax.jit(jax.shard_map(count, mesh=mesh, in_specs=spec, out_specs=spec))(self._flags(mesh))
        )
        self._any = jax.jit(jax.numpy.max, out_shardings=sharding.replicated(mesh))

    def __enter__(self) -> "StopRequests":
        """Installs the signal handlers."""
        try:
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # only the main thread may install signal handlers
            self._before = {}
        return self

    def __exit__(self, *error) -> None:
        """Restores the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ask(self) -> Callable[[], bool]:
        """Starts a check whether any process should stop; the returned function gives the result, equal in all.

        The reduction runs on the devices with the steps: started before a step and read after it, it adds no wait.
        """
        if self._any is None:
            came = bool(self._came)
            return lambda: came
        answer = self._any(self._flags(self._mesh))
        return lambda: bool(answer)

    @contextlib.contextmanager
    def preemptible(self, message: str) -> Iterator[Callable[[], None]]:
        """Raises Preempted with `message` on a stop request, inside a block that is safe to interrupt.

        A single process stops at once; several stop when they call the yielded function.
        """

        def raise_if_preempted() -> None:
            if self.ask()():
                raise Preempted(message)

        raise_if_preempted()
        self._message = None if several() else message
        try:
            yield raise_if_preempted
        finally:
            self._message = None

    def _note(self, number, frame) -> None:
        # Schedulers repeat SIGTERM; only a second Ctrl-C stops without saving.
        if number == signal.SIGINT and signal.SIGINT in self._came:
            raise KeyboardInterrupt
        self._came.append(number)
        if self._message is not None:
            raise Preempted(self._message)

    def _flags(self, mesh: Mesh | None) -> jax.Array:
        assert mesh is not None
        where = NamedSharding(mesh, P(sharding.BATCH_AXES))
        mine = np.full(1, bool(self._came), np.int32)
        return jax.make_array_from_callback((mesh.size,), where, lambda _: mine)
