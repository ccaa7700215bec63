"""Several processes as one run: how they start, and how they end when one of them is gone."""

import contextlib
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax

from hybrid_jax import jax_internals
from hybrid_jax.errors import IncompatibleError, UserError, explain
from hybrid_jax.multihost.coordination import barrier, coordinator_address, count, is_first, process, service, several

# A process whose sign of life has not changed for this many looks is gone; one look a second.
_LOOKS = 9
# The last resort: JAX ends a process with a core dump.
_HEARTBEAT_SECONDS = 30
_START_SECONDS = 300
_LEAVE_TOGETHER = 5_000  # ms
_GONE, _ALIVE = "hybrid_jax/gone/", "hybrid_jax/alive/"
_GONE_LINE = "error: process {} is gone: start all again with the same command"
# What a small process runs that waits for this one to end; no word on its input = it did not end by itself.
_LAST_WORD = f"""
import socket, sys
if not sys.stdin.buffer.read():
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()
    except OSError:
        print({_GONE_LINE.format(0)!r}, file=sys.stderr)
"""


@contextlib.contextmanager
def joined(mode: str, coordinator: str | None, num_processes: int | None, process_id: int | None) -> Iterator[None]:
    """Joins the run's other processes, and sees to it that none waits for one that has ended.

    Args:
      mode: `auto` joins where a cluster of several processes is found or flags name them; `on` must; `off` does not.
      coordinator: HOST:PORT of process 0; None = what the cluster says, as for the other two.
      num_processes: of the run.
      process_id: of this process.

    Raises:
      UserError: flags that do not fit together, or processes that do not find each other.
    """
    _join(mode, {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id})
    if not several():
        yield
        return
    watch = _Watch()
    try:
        yield
    except BaseException as error:
        _leave(error, watch)
    barrier("end")
    watch.stop()
    jax.distributed.shutdown()
    watch.close()


def _join(mode: str, given: dict[str, Any]) -> None:
    named = [f"--{name}={value}" for name, value in given.items() if value is not None]
    if mode == "off":
        if named:
            raise UserError(f"{named[0]}: does not go with --distributed=off")
        return
    _check(**given)
    try:
        found = jax_internals.cluster()
        # Newer versions of Open MPI do not say where process 0 is: better a line than N runs in one workdir.
        size = found.get_process_count() if found else int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
        if mode == "auto" and not named and size < 2:
            return
        if found is None and len(named) < len(given):
            missing = ", ".join(f"--{name}" for name, value in given.items() if value is None)
            raise UserError(f"no Cloud TPU, GKE, SLURM or Open MPI that JAX knows is found here: give {missing}")
        # Its handler of SIGTERM would stand in the way of ours.
        jax.config.update("jax_enable_preemption_service", False)
        _initialise(*given.values())
    except (UserError, IncompatibleError):
        raise
    except Exception as error:  # of many types, from a cluster's metadata to the network
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"--distributed={mode}: the processes do not find each other ({reason})") from error


def _initialise(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Waits for the other processes, but not for ever; JAX's own limit ends with a core dump, so it comes later."""
    line = f"not all processes have started within {_START_SECONDS} seconds, or --coordinator is not reached"
    late = threading.Timer(_START_SECONDS, _end, (1, f"error: {line}"))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id,
            initialization_timeout=2 * _START_SECONDS, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )  # fmt: skip
    finally:
        late.cancel()


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    host, _, port = (coordinator or "host:1").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={coordinator}: must be HOST:PORT of process 0")
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes={num_processes}: must be at least 1")
    if process_id is not None and not 0 <= process_id < (num_processes or sys.maxsize):
        last = "--num_processes less 1" if num_processes is None else str(num_processes - 1)
        raise UserError(f"--process_id={process_id}: must be from 0 to {last}")


def _leave(error: BaseException, watch: "_Watch") -> None:
    """Ends this process: with the others where they fail alike, else without waiting for them."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        # Most likely a process is gone; the watch learns which, and ends this one.
        time.sleep(_LOOKS + 3)
    line, code = explain(error) or ("".join(traceback.format_exception(error)), 1)
    alone = False
    try:
        barrier("leave", _LEAVE_TOGETHER)
    except jax.errors.JaxRuntimeError:
        alone = True
    watch.stop()
    if not alone:
        jax.distributed.shutdown()
    watch.close()
    _end(code, line if alone or is_first() else None)


def _end(code: int, line: str | None) -> None:
    if line is not None:
        print(line, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of saves and JAX's own end would wait for processes that are gone.
    os._exit(code)


def _last_word() -> subprocess.Popen[bytes]:
    """Starts what names process 0 if that dies: JAX then ends this process before any line of ours can run."""
    host, _, port = str(coordinator_address()).rpartition(":")
    command = [sys.executable, "-S", "-E", "-c", _LAST_WORD, host.strip("[]"), port]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


class _Watch:
    """Gives a sign of life every second, and ends this process when another one gives none.

    It counts looks, not time: a machine that was suspended has not looked.
    """

    def __init__(self):
        self._stopped, self._silence = threading.Event(), 0
        self._last_word = None if is_first() else _last_word()
        for work in (self._look, self._look_for_first):
            threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        """Ends the watch, before the processes part."""
        self._stopped.set()

    def close(self) -> None:
        """Says that this process ends of its own will."""
        if self._last_word is not None:
            self._last_word.communicate(b"ends")

    def _look(self) -> None:
        number, looks = 0, dict.fromkeys(range(1, count()), 0)
        seen: dict[int, str | None] = {}
        while not self._stopped.wait(1):
            number += 1
            try:
                service().key_value_set(f"{_ALIVE}{process()}", str(number), allow_overwrite=True)
                for path, _ in service().key_value_dir_get(_GONE):
                    self._report(path)
                found = dict(service().key_value_dir_get(_ALIVE)) if is_first() else {}
            except jax.errors.JaxRuntimeError:
                continue  # process 0 is gone, or this one is leaving
            self._silence = 0
            if is_first():
                self._judge(found, seen, looks)

    def _judge(self, found: dict[str, str], seen: dict[int, str | None], looks: dict[int, int]) -> None:
        """Counts the looks since each process last gave a sign; ends the run where one is silent for too many."""
        for each in looks:
            sign = found.get(f"{_ALIVE}{each}")
            looks[each] = 0 if sign != seen.get(each) else looks[each] + 1
            seen[each] = sign
            if looks[each] > _LOOKS:
                service().key_value_set(f"{_GONE}{each}", "")
                # The service ends with this process: the others must have read it.
                time.sleep(2.5)
                self._report(f"{_GONE}{each}")

    def _look_for_first(self) -> None:
        while not self._stopped.wait(1):
            # The other thread waits in a call where process 0 hangs.
            self._silence += 1
            if self._silence > _LOOKS:
                self._report(f"{_GONE}0")

    def _report(self, path: str) -> None:
        if not self._stopped.is_set():
            self.close()
            _end(1, _GONE_LINE.format(path.rpartition("/")[2]))
