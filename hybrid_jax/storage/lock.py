"""Lock of a workdir, for one training run at a time: `train.lock` is a lease that its holder refreshes.

A holder on this machine is checked by its process id; one elsewhere (another host or container) counts as dead if its
lease was not refreshed for `LEASE_SECONDS`.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

from filelock import OwnerRecord, SoftFileLease, Timeout

from hybrid_jax.errors import StorageError, UserError
from hybrid_jax.multihost.coordination import is_first

NAME = "train.lock"
# Some file systems show changes late.
LEASE_SECONDS, REFRESH_SECONDS = 60.0, 5.0


@contextlib.contextmanager
def held(workdir: str | os.PathLike, log: Callable[[str], None] = print) -> Iterator[Callable[[], None]]:
    """Locks a workdir for one training run, on the first process only.

    Args:
      workdir: an existing folder.
      log: function that prints a line, about a dead holder or about waiting.

    Yields:
      check(): renews the lease if its file was removed; raises StorageError if another run holds it.

    Raises:
      UserError: another run holds the lock, or the file cannot be written; the message names holder and file.
    """
    if not is_first():
        yield lambda: None
        return
    path = pathlib.Path(workdir) / NAME
    # Shared by threads: `check` may be called from another thread.
    lease = SoftFileLease(
        path, lease_duration=LEASE_SECONDS, heartbeat_interval=REFRESH_SECONDS, timeout=0, thread_local=False
    )

    def check() -> None:
        if lease.compromise is None:
            return
        lease.release()
        try:
            lease.acquire()
        except Timeout as error:
            who = _told(lease.owner)
            raise StorageError(f"--workdir={workdir}: {who} now trains here; this run ends") from error

    try:
        _take(lease, workdir, path, log)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written ({error.strerror})") from error
    try:
        yield check
    finally:
        lease.release()


def _take(lease: SoftFileLease, workdir: str | os.PathLike, path: pathlib.Path, log: Callable[[str], None]) -> None:
    before, found = lease.owner, path.exists()
    try:
        try:
            lease.acquire()
        except Timeout:
            if before is not None and before.hostname == _this_host():
                raise
            log(
                f"{_told(before)} may still train here: waiting up to {LEASE_SECONDS:.0f} s for its lease to expire ..."
            )
            try:
                lease.acquire(timeout=1.5 * LEASE_SECONDS, poll_interval=min(1.0, LEASE_SECONDS / 10))
            except Timeout:
                if path.stat().st_size:
                    raise
                # The holder was killed before it wrote its record.
                path.unlink()
                lease.acquire()
    except Timeout as error:
        raise UserError(
            f"--workdir={workdir}: {_told(lease.owner)} trains here; wait for it, stop it, or choose another --workdir "
            f"(if it no longer runs, remove {path})"
        ) from error
    if found:
        log(f"{_told(before)} trained here and has ended: taking over its lock")


def _told(owner: OwnerRecord | None) -> str:
    return "an unknown process" if owner is None else f"process {owner.pid} on host {owner.hostname}"


def _this_host() -> str | None:
    """Returns this machine's name in leases, which differs between containers of one host."""
    with tempfile.TemporaryDirectory() as folder, SoftFileLease(os.path.join(folder, NAME)) as own:
        return None if own.owner is None else own.owner.hostname
