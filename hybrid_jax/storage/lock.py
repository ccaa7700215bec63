"""One training run at a time in a workdir: who holds it, and whether the holder still lives.

The file `train.lock` names its holder. On the holder's own machine its process is looked up; from elsewhere the file's
age tells, because the holder touches it while it runs. No clocks of two hosts are compared: ages are the file system's.
"""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator

from hybrid_jax.errors import StorageError, UserError
from hybrid_jax.multihost.coordination import is_first

NAME = "train.lock"
TOUCH_SECONDS = 5.0
# A holder elsewhere that has not touched its file for this long is dead: some file systems show changes late.
STALE_SECONDS = 60.0


@contextlib.contextmanager
def held(workdir: str | os.PathLike, log: Callable[[str], None] = print) -> Iterator[Callable[[], None]]:
    """Holds a workdir for one training run; of several processes only the first does.

    Args:
      workdir: must exist.
      log: takes the line about a dead holder, or about waiting for a holder on another host.

    Yields:
      check(): raises StorageError once another run has taken the workdir from this one.

    Raises:
      UserError: another run holds it, or the file cannot be written; the message names the holder and the file.
    """
    if not is_first():
        yield lambda: None
        return
    lock = _Lock(pathlib.Path(workdir), log)
    try:
        lock.take()
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written ({error.strerror})") from error
    thread = threading.Thread(target=lock.keep_touching, daemon=True)
    thread.start()
    try:
        yield lock.check
    finally:
        lock.stopped.set()
        thread.join(timeout=TOUCH_SECONDS)  # a file system may hang
        lock.release()


class _Lock:
    def __init__(self, workdir: pathlib.Path, log: Callable[[str], None]):
        self._workdir, self._path, self._log = workdir, workdir / NAME, log
        self._mine = _this_process() | {
            "since": datetime.datetime.now().isoformat(" ", "seconds"), "token": secrets.token_hex(8),
        }  # fmt: skip
        self._taken_by: dict | None = None
        self.stopped = threading.Event()

    def take(self) -> None:
        seen = None
        while not self._try():
            changed = _changed(self._path)
            if seen is None:
                who = _holder(_read(self._path) or {})
                self._log(f"{who} may still train here: waiting up to {STALE_SECONDS:.0f} s for a sign of life ...")
                seen = changed
            elif changed is not None and changed != seen:
                raise self._refusal(_read(self._path) or {})
            time.sleep(min(1.0, STALE_SECONDS / 10))

    def _try(self) -> bool:
        """Returns whether the workdir is now ours; False = ask again, a holder elsewhere may be dead."""
        with _alone(self._workdir), self._written() as written:
            owner = _read(self._path)
            if owner is None:
                return _link(written, self._path)
            alive = _is_alive(owner)
            if alive:
                raise self._refusal(owner)
            if alive is None and _age(self._path, written) < STALE_SECONDS:
                return False
            self._log(f"{_holder(owner)} trained here and is gone: taking over")
            written.replace(self._path)
            return True

    @contextlib.contextmanager
    def _written(self) -> Iterator[pathlib.Path]:
        path = self._path.with_name(f"{NAME}.{self._mine['token']}.tmp")
        try:
            path.write_text(json.dumps(self._mine) + "\n", encoding="utf-8")
            yield path
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _refusal(self, owner: dict) -> UserError:
        return UserError(
            f"--workdir={self._workdir}: {_holder(owner)} trains here; wait for it, stop it, or choose another "
            f"--workdir (if that is wrong, remove {self._path})"
        )

    def keep_touching(self) -> None:
        """Shows that this run lives until it is stopped, and notices when another one has taken its place."""
        while not self.stopped.wait(TOUCH_SECONDS) and self._taken_by is None:
            # What hinders it here (a full disk, a workdir that vanished) hinders the run's own files too.
            with contextlib.suppress(OSError):
                owner = _read(self._path)
                if owner is None:
                    with self._written() as written:
                        _link(written, self._path)
                elif owner.get("token") == self._mine["token"]:
                    os.utime(self._path)
                else:
                    self._taken_by = owner

    def check(self) -> None:
        if self._taken_by is not None:
            raise StorageError(f"--workdir={self._workdir}: {_holder(self._taken_by)} now trains here; this run ends")

    def release(self) -> None:
        with contextlib.suppress(OSError), _alone(self._workdir):
            owner = _read(self._path)
            if owner is not None and owner.get("token") == self._mine["token"]:
                self._path.unlink()


@contextlib.contextmanager
def _alone(workdir: pathlib.Path) -> Iterator[None]:
    """Lets one process of this machine decide at a time; the kernel ends that even when it is killed."""
    handle = os.open(workdir, os.O_RDONLY)
    try:
        # Network file systems may refuse; then only linking and the tokens stand between two runs.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _link(written: pathlib.Path, path: pathlib.Path) -> bool:
    """Gives a file its name unless another has it; returns whether it got it."""
    try:
        os.link(written, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        written.replace(path)
    return True


def _read(path: pathlib.Path) -> dict | None:
    """Returns who holds the lock, {} if that cannot be told, None if nobody does."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _holder(owner: dict) -> str:
    if not owner.get("pid"):
        return "an unknown process"
    return f"process {owner['pid']} on host {owner.get('host')} (since {owner.get('since')})"


def _this_process() -> dict:
    return _machine() | {"pid": os.getpid(), "started": _started(os.getpid())}


def _machine() -> dict:
    """Where process numbers mean the same: the host since it was booted, and in it the container."""
    boot, container = "", ""
    with contextlib.suppress(OSError):  # not Linux
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        container = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "container": container}


def _is_alive(owner: dict) -> bool | None:
    """Returns whether a holder lives; None if that cannot be seen from this machine."""
    if not isinstance(owner.get("pid"), int) or any(owner.get(k) != v for k, v in _machine().items()):
        return None
    try:
        os.kill(owner["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    # A number is given to a new process in time.
    return _started(owner["pid"]) == owner.get("started")


def _started(pid: int) -> str | None:
    """Returns when a process started, in the kernel's count; "" for one that ended, None where nobody tells."""
    try:
        # The name, in parentheses, may itself hold spaces and parentheses.
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]


def _changed(path: pathlib.Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _age(path: pathlib.Path, written: pathlib.Path) -> float:
    """Returns by how many seconds a file is older than one written just now; 0 if it is gone."""
    now = written.stat().st_mtime_ns
    return (now - (_changed(path) or now)) / 1e9
