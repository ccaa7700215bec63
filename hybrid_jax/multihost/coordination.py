"""Coordination of processes: barriers, broadcasts, shared errors.

It uses JAX's coordination service, not the devices, so that waits may be long: a process may decode images or write a
report for hours. With a single process these functions do nothing.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

from hybrid_jax.errors import UserError
from hybrid_jax.jax_internals import distributed_state

_LONG = 7 * 24 * 3600 * 1000  # ms

_calls = itertools.count()


def several() -> bool:
    """Returns whether this run has more than one process."""
    return count() > 1


def is_first() -> bool:
    """Returns whether this is process 0, the one that writes logs and results."""
    return process() == 0


def process() -> int:
    """Returns this process's index; unlike `jax.process_index` it does not initialise devices."""
    return distributed_state().process_id


def count() -> int:
    """Returns the number of processes, without initialising devices."""
    return distributed_state().num_processes


def only_first(log: Callable[[str], None]) -> Callable[[str], None]:
    """Returns `log` on the first process, and a function that does nothing on others."""
    return log if is_first() else lambda line: None


def coordinator_address() -> str | None:
    """Returns HOST:PORT of process 0's coordination service."""
    return distributed_state().coordinator_address


def service() -> Any:
    """Returns the client of the coordination service."""
    return distributed_state().client


def barrier(name: str | None = None, milliseconds: int = _LONG) -> None:
    """Waits for all processes; a name may be used once per run, None = the next number."""
    if several():
        service().wait_at_barrier(f"hybrid_jax/meet/{name or next(_calls)}", milliseconds)


def broadcast_from_process_zero(value: Any) -> Any:
    """Returns process 0's value after a JSON round trip; all processes must make the same calls in the same order."""
    if not several():
        return value
    key = f"hybrid_jax/first/{next(_calls)}"
    if is_first():
        service().key_value_set(key, json.dumps(value))
    return json.loads(service().blocking_key_value_get(key, _LONG))


def check_same(**values: str) -> None:
    """Raises UserError in all processes if a value differs from that of process 0."""
    with raise_on_all_processes(UserError):
        for name, value in broadcast_from_process_zero(values).items():
            if value != values[name]:
                raise UserError(f"has another {name} than process 0; start all with the same command and data")


@contextlib.contextmanager
def raise_on_all_processes(*kinds: type[Exception]) -> Iterator[None]:
    """Raises an error of these kinds in all processes if one raises it, so that none waits for the others."""
    if not several():
        yield
        return
    # Numbered first, since an error may skip further calls in some processes.
    name, own = f"errors {next(_calls)}", None
    try:
        yield
    except kinds as error:
        own = error
        service().key_value_set(f"{name}/{process()}", json.dumps([type(error).__name__, str(error)]))
    barrier(name)
    if own is not None:
        raise own
    for path, told in sorted(service().key_value_dir_get(f"{name}/")):
        kind, message = json.loads(told)
        raise {k.__name__: k for k in kinds}[kind](f"process {path.rpartition('/')[2]}: {message}")


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """Runs the block in process 0 before the others, so that they find its files."""
    name = str(next(_calls))
    if not is_first():
        barrier(name)
    try:
        yield
    finally:
        if is_first():
            barrier(name)
