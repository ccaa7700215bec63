"""Who may train in a workdir: the living holder of its lease, and nobody else."""

import os
import subprocess
import sys
import threading
import time

import pytest
from filelock import SoftFileLease

from hybrid_jax.errors import StorageError, UserError
from hybrid_jax.storage import lock

HOLDER = """
import sys, time, filelock
with filelock.SoftFileLease(sys.argv[1], lease_duration={0}, heartbeat_interval={1}):
    print("holds", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch):
    """A holder elsewhere is given a second instead of a minute."""
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(lock, "REFRESH_SECONDS", 0.1)


def holder(workdir, seconds=(60.0, 5.0)):
    """Starts another process that holds a workdir."""
    command = [sys.executable, "-c", HOLDER.format(*seconds), str(workdir / lock.NAME)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "holds\n"
    return process


def moved_elsewhere(workdir):
    """Lets the lease of a workdir say that its holder is on another host."""
    path = workdir / lock.NAME
    lines = ["host=elsewhere" if line.startswith("host=") else line for line in path.read_text().splitlines()]
    path.write_text("\n".join([*lines, ""]))


def take(workdir):
    """Returns the lines logged while a workdir was held once."""
    lines: list[str] = []
    with lock.held(workdir, lines.append):
        assert SoftFileLease(workdir / lock.NAME).pid == os.getpid()
    assert not list(workdir.iterdir())
    return lines


def test_a_second_run_is_refused_in_one_line_that_names_holder_and_file(tmp_path):
    other = holder(tmp_path)
    try:
        with pytest.raises(UserError) as refused, lock.held(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    for word in (f"--workdir={tmp_path}", f"process {other.pid} on host", f"remove {tmp_path / 'train.lock'}"):
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)
    # Killed on this machine, it is replaced at once.
    (line,) = take(tmp_path)
    assert f"process {other.pid} on host" in line and "taking over" in line
    assert take(tmp_path) == []


def test_a_holder_elsewhere_is_gone_once_its_lease_is_not_refreshed(tmp_path, quick):
    other = holder(tmp_path, (1.0, 0.1))
    other.kill()
    other.wait()
    moved_elsewhere(tmp_path)
    first, second = take(tmp_path)
    assert "waiting" in first and "on host elsewhere" in second and "taking over" in second


def test_a_holder_elsewhere_that_gives_a_sign_of_life_is_respected(tmp_path, quick):
    other = holder(tmp_path, (1.0, 0.1))
    other.kill()
    other.wait()
    moved_elsewhere(tmp_path)
    stop = threading.Event()

    def refresh():
        while not stop.wait(0.05):
            os.utime(tmp_path / lock.NAME)

    thread = threading.Thread(target=refresh)
    thread.start()
    try:
        with pytest.raises(UserError, match="on host elsewhere trains here"):
            take(tmp_path)
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("content", [b"", b"\xff", b'{"pid": 12, "host": "of an earlier version"}\n'])
def test_a_file_that_names_no_holder_is_taken_over(tmp_path, quick, monkeypatch, content):
    # A file that says nothing must be seen unchanged for two seconds.
    monkeypatch.setattr(lock, "LEASE_SECONDS", 2.0)
    (tmp_path / lock.NAME).write_bytes(content)
    assert "an unknown process trained here and has ended: taking over its lock" in take(tmp_path)[-1]


def test_the_holder_restores_a_removed_lease_and_notices_that_another_took_it(tmp_path, quick):
    path = tmp_path / lock.NAME
    with lock.held(tmp_path) as check:
        path.unlink()
        until(lambda: check() or path.exists())
        path.unlink()
        other = holder(tmp_path, (1.0, 0.1))
        try:
            with pytest.raises(StorageError, match=rf"process {other.pid} on host .* now trains here"):
                until(check)
        finally:
            other.kill()
            other.wait()
    # Not ours to remove.
    assert path.exists()


def until(reached):
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_runs_that_start_at_once_one_gets_the_workdir(tmp_path):
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
