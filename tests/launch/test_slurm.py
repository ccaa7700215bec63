"""A real SLURM on one node (Debian's slurm-wlm and munge, as root): stopped before its limit, requeued, finished."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import pytest
from launch_scripts import ROOT

from hybrid_jax import metrics
from hybrid_jax.storage import checkpoint

CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort=16827
SlurmdPort=16828
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 CoresPerSocket=2
PartitionName=all Nodes=ALL Default=YES State=UP
"""
DAEMONS = ("munged", "slurmctld", "slurmd")


@pytest.fixture
def slurm(tmp_path):
    """Returns call(command, *words): the output of a command of a cluster of this machine alone."""
    if os.geteuid() != 0 or any(shutil.which(name) is None for name in DAEMONS):
        pytest.skip("needs slurm-wlm and munge, as root")
    # A socket's path is short.
    folder = pathlib.Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(CONF.format(host=socket.gethostname().partition(".")[0], folder=folder))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHON": sys.executable}
    options = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = ["munged", "--foreground", "--force", *(f"--{k}={folder}/munge.{v}" for k, v in options.items())]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"])
    ]

    def call(*command):
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout.strip()

    until(lambda: call("sinfo", "--noheader", "--format=%T") == "idle", 60)
    yield call
    # Their processes would outlive the daemons.
    call("scancel", "--me")
    until(lambda: not call("squeue", "--noheader"), 60)
    for process in reversed(processes):
        process.terminate()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def until(reached, seconds):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.slow
def test_a_job_that_is_told_to_stop_requeues_itself_and_finishes(slurm, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    variables = f"--export=ALL,CONFIG=tests/tiny.py,WORKDIR={workdir}"
    flags = ["--config.train.total_steps=500", "--config.checkpoint.every_steps=100000", "--config.log.every_steps=1"]
    job = slurm(
        "sbatch", "--parsable", "--ntasks-per-node=2", f"--output={log}", variables, "launch/slurm.sbatch", *flags
    )
    assert job.isdecimal(), job

    def state():
        return slurm("scontrol", "show", "job", job)

    until(lambda: len(metrics.read(workdir)) > 2, 200)
    # As --signal=B:TERM@120 does before the time limit.
    slurm("scancel", "--batch", "--signal=TERM", job)
    until(lambda: "JobState=PENDING" in state() and "Restarts=1" in state(), 60)
    stopped = checkpoint.Checkpoints(workdir).steps()[-1]
    assert 2 < stopped < 500
    # SLURM waits two minutes by itself.
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
    until(lambda: "JobState=COMPLETED" in state(), 200)
    told = log.read_text()
    assert f"resuming from checkpoint {stopped}" in told and "ended with 75, state RUNNING" in told
    assert checkpoint.Checkpoints(workdir).steps()[-1] == 500
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_job_that_is_cancelled_or_mistaken_stays_ended(slurm, tmp_path):
    log = tmp_path / "log"
    variables = f"--export=ALL,CONFIG=tests/tiny.py,WORKDIR={tmp_path / 'run'}"
    submit = ["sbatch", "--parsable", "--ntasks-per-node=1", f"--output={log}", variables, "launch/slurm.sbatch"]
    job = slurm(*submit, "--config.model.patch_size=3")
    until(lambda: "JobState=FAILED" in slurm("scontrol", "show", "job", job), 60)
    assert "model.patch_size=3" in log.read_text() and "ExitCode=2:0" in slurm("scontrol", "show", "job", job)
    job = slurm(*submit, "--config.train.total_steps=100000", "--config.log.every_steps=1")
    until(lambda: len(metrics.read(tmp_path / "run")) > 2, 100)
    slurm("scancel", job)
    until(lambda: "JobState=CANCELLED" in slurm("scontrol", "show", "job", job), 60)
    time.sleep(5)
    assert "JobState=CANCELLED" in slurm("scontrol", "show", "job", job)
