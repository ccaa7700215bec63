"""Requests to stop: signals, and that all processes hear them at the same step."""

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
    """Whether SIGTERM or SIGINT has come to any process of the run; a second SIGINT stops at once.

    As a context manager it handles the signals inside.
    """

    def __init__(self, mesh: Mesh | None):
        """Compiles the question and asks it once, so that the devices' processes know each other.

        Where a CPU's processes meet for the first time one waits 30 s for another, too little for a compilation.

        Args:
          mesh: whose processes agree; None = this process is alone.
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
        """Handles the signals from here on."""
        try:
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # only the main thread may handle signals; a caller's thread keeps its own ways
            self._before = {}
        return self

    def __exit__(self, *error) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ask(self) -> Callable[[], bool]:
        """Asks whether any process was told to stop; the function returned gives the answer, the same in all.

        The question travels with the steps: asked before a step and answered after it, it waits for nothing.
        """
        if self._any is None:
            came = bool(self._came)
            return lambda: came
        answer = self._any(self._flags(self._mesh))
        return lambda: bool(answer)

    @contextlib.contextmanager
    def preemptible(self, message: str) -> Iterator[Callable[[], None]]:
        """Inside, nothing is lost by stopping: a request raises Preempted with `message`.

        Alone, at once. Several processes must stop at one place: where they call the function that is yielded.
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
        # Schedulers repeat SIGTERM; only a second Ctrl-C means that saving is not wanted either.
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
