"""Start of runs with several processes, and their end when one of them fails."""

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

# A process is gone if its heartbeat has not changed for this many checks, one per second.
_LOOKS = 9
# JAX's own limit, which ends the process with a core dump; ours is shorter.
_HEARTBEAT_SECONDS = 30
_START_SECONDS = 300
_LEAVE_TOGETHER = 5_000  # ms
_GONE, _ALIVE = "hybrid_jax/gone/", "hybrid_jax/alive/"
_GONE_LINE = "error: process {} is gone: restart all processes with the same command"
# Program of a monitor process that waits for this one to end; no input means that it did not end normally.
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
    """Joins the run's other processes, and ends this one if another has failed.

    Args:
      mode: `auto` joins if a cluster with several processes is found or flags are given; `on` requires it; `off` never.
      coordinator: HOST:PORT of process 0; None = from the cluster.
      num_processes: number of processes; None = from the cluster.
      process_id: index of this process; None = from the cluster.

    Raises:
      UserError: flags contradict each other, or the processes cannot connect.
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
            raise UserError(f"{named[0]}: not allowed with --distributed=off")
        return
    _check(**given)
    try:
        found = jax_internals.cluster()
        # Newer versions of Open MPI do not give the address of process 0: fail rather than start N separate runs.
        size = found.get_process_count() if found else int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
        if mode == "auto" and not named and size < 2:
            return
        if found is None and len(named) < len(given):
            missing = ", ".join(f"--{name}" for name, value in given.items() if value is None)
            raise UserError(
                f"--distributed={mode}: JAX detects no Cloud TPU, GKE, SLURM or Open MPI cluster; set {missing}"
            )
        # Its SIGTERM handler would replace ours.
        jax.config.update("jax_enable_preemption_service", False)
        _initialise(*given.values())
    except (UserError, IncompatibleError):
        raise
    except Exception as error:  # many types: cluster metadata, network
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"--distributed={mode}: the processes cannot connect ({reason})") from error


def _initialise(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Waits for the other processes, with a time limit; JAX's own limit ends with a core dump, so it is longer."""
    line = f"not all processes have started within {_START_SECONDS} seconds, or --coordinator cannot be reached"
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
        last = "--num_processes - 1" if num_processes is None else str(num_processes - 1)
        raise UserError(f"--process_id={process_id}: must be from 0 to {last}")


def _leave(error: BaseException, watch: "_Watch") -> None:
    """Ends this process: together with the others if all fail, else without waiting for them."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        # Most likely another process is gone; the watch reports which, and ends this one.
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
    # Not sys.exit: save threads and JAX's shutdown would wait for processes that are gone.
    os._exit(code)


def _last_word() -> subprocess.Popen[bytes]:
    """Starts a monitor that reports the death of process 0, since JAX then ends this process at once."""
    host, _, port = str(coordinator_address()).rpartition(":")
    command = [sys.executable, "-S", "-E", "-c", _LAST_WORD, host.strip("[]"), port]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


class _Watch:
    """Sends a heartbeat every second, and ends this process if that of another stops.

    It counts checks, not time, so that a suspended machine raises no alarm.
    """

    def __init__(self):
        self._stopped, self._silence = threading.Event(), 0
        self._last_word = None if is_first() else _last_word()
        for work in (self._look, self._look_for_first):
            threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        """Ends the watch, before the processes disconnect."""
        self._stopped.set()

    def close(self) -> None:
        """Tells the monitor that this process ends normally."""
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
        """Counts checks since the last heartbeat of each process; ends the run if one has too many."""
        for each in looks:
            sign = found.get(f"{_ALIVE}{each}")
            looks[each] = 0 if sign != seen.get(each) else looks[each] + 1
            seen[each] = sign
            if looks[each] > _LOOKS:
                service().key_value_set(f"{_GONE}{each}", "")
                # The service ends with this process; give the others time to read the key.
                time.sleep(2.5)
                self._report(f"{_GONE}{each}")

    def _look_for_first(self) -> None:
        while not self._stopped.wait(1):
            # If process 0 hangs, the other thread is blocked in a call.
            self._silence += 1
            if self._silence > _LOOKS:
                self._report(f"{_GONE}0")

    def _report(self, path: str) -> None:
        if not self._stopped.is_set():
            self.close()
            _end(1, _GONE_LINE.format(path.rpartition("/")[2]))
