"""Who may train in a workdir: the living holder of its lock, and nobody else."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from hybrid_jax.errors import StorageError, UserError
from hybrid_jax.storage import lock


@pytest.fixture
def quick(monkeypatch):
    """A holder elsewhere is given a second instead of a minute."""
    monkeypatch.setattr(lock, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.05)


def write(workdir, **changes):
    owner = lock._this_process() | {"since": "2026-01-02 03:04:05", "token": "other"} | changes
    (workdir / lock.NAME).write_text(json.dumps(owner))


def take(workdir):
    """Returns the lines logged while a workdir was held once."""
    lines: list[str] = []
    with lock.held(workdir, lines.append):
        assert json.loads((workdir / lock.NAME).read_text())["pid"] == os.getpid()
    assert not list(workdir.iterdir())
    return lines


def test_a_second_run_is_refused_in_one_line_that_names_holder_and_file(tmp_path):
    with lock.held(tmp_path), pytest.raises(UserError) as refused, lock.held(tmp_path):
        pass
    for word in (f"--workdir={tmp_path}", f"process {os.getpid()} on host", f"remove {tmp_path / 'train.lock'}"):
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)
    assert take(tmp_path) == []


def test_a_dead_holder_on_this_machine_is_replaced_at_once(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    # Not waited for: a process that was killed and whose parent has not asked yet is dead too.
    while lock._started(ended.pid) != "":
        time.sleep(0.01)
    write(tmp_path, pid=ended.pid, started="1")
    (line,) = take(tmp_path)
    assert f"process {ended.pid} on host" in line and "taking over" in line
    ended.wait()
    write(tmp_path, pid=ended.pid)
    assert len(take(tmp_path)) == 1


def test_a_new_process_with_the_dead_holders_number_is_not_the_holder(tmp_path):
    write(tmp_path, started="12345")
    assert "taking over" in take(tmp_path)[0]


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"boot": "another"}, {"container": "another"}])
def test_a_holder_elsewhere_is_judged_by_the_age_of_its_file(tmp_path, quick, changes):
    write(tmp_path, **changes)
    old = time.time() - 2
    os.utime(tmp_path / lock.NAME, (old, old))
    assert "taking over" in take(tmp_path)[0]
    # A young file is watched: nothing happens to it, so its holder is dead.
    write(tmp_path, **changes)
    first, second = take(tmp_path)
    assert "waiting" in first and "taking over" in second


def test_a_holder_elsewhere_that_gives_a_sign_of_life_is_respected(tmp_path, quick):
    write(tmp_path, host="elsewhere")
    stop = threading.Event()

    def touch():
        while not stop.wait(0.05):
            os.utime(tmp_path / lock.NAME)

    thread = threading.Thread(target=touch)
    thread.start()
    with pytest.raises(UserError, match="on host elsewhere"):
        take(tmp_path)
    stop.set()
    thread.join()


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"pid": "x"}', b'{"pid": 99999999999999999999999}'])
def test_a_file_that_says_nothing_is_judged_by_its_age(tmp_path, quick, content):
    (tmp_path / lock.NAME).write_bytes(content)
    assert "taking over" in take(tmp_path)[-1]


def test_the_holder_touches_its_file_restores_it_and_notices_its_loss(tmp_path, quick):
    path = tmp_path / lock.NAME
    with lock.held(tmp_path) as check:
        before = path.stat().st_mtime_ns
        until(lambda: path.stat().st_mtime_ns > before)
        path.unlink()
        until(path.exists)
        check()
        write(tmp_path, host="elsewhere")
        until(lambda: raises(check))
        with pytest.raises(StorageError, match=r"on host elsewhere .* now trains here"):
            check()
    # Not ours to remove.
    assert json.loads(path.read_text())["host"] == "elsewhere"


def raises(check):
    with contextlib.suppress(StorageError):
        check()
        return False
    return True


def until(reached):
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(FileNotFoundError):
            if reached():
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_runs_that_start_at_once_one_gets_the_workdir(tmp_path):
    write(tmp_path, pid=2**22 + 1)
    held, refused = [], []
    start, end = threading.Barrier(8), threading.Barrier(8)

    def run():
        start.wait()
        try:
            with lock.held(tmp_path, lambda line: None):
                held.append(1)
                end.wait()
        except UserError:
            refused.append(1)
            end.wait()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)
