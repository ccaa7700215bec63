"""Scripts of launch/: linted, alike in form, and exact in what a dry run prints. Clouds are not reached."""

import re
import shutil
import subprocess

import pytest
from launch_scripts import LAUNCH, ROOT, SCRIPTS, run, stand_in, tool

GS = {"WORKDIR": "gs://bucket/runs/one", "DATA": "gs://bucket/data", "IMAGE": "registry/hybrid:1"}
ENTRIES = ["gke.sh", "host.sh", "local.sh", "queued_resources.sh", "slurm.sbatch", "tpu_vm.sh"]


def lines(result):
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_shellcheck_finds_nothing():
    command = [tool("shellcheck"), "--external-sources", f"--source-path={ROOT}", *map(str, SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ENTRIES)
def test_scripts_fail_early_and_have_their_variables_at_the_top(name):
    text = (LAUNCH / name).read_text()
    top = text.partition("source ")[0]
    assert "\nset -euo pipefail\n" in top
    for variable in ("CONFIG", "WORKDIR") if name != "host.sh" else ("WORKDIR",):
        assert re.search(rf"^{variable}=\$\{{{variable}:-", top, re.MULTILINE)


def test_a_tpu_vm_is_made_started_stopped_evaluated_and_deleted_by_these_commands():
    ssh = "gcloud compute tpus tpu-vm ssh hybrid --zone=us-west4-a"
    create = lines(run("tpu_vm.sh", "--dry_run", "create"))
    assert create == [
        "gcloud compute tpus tpu-vm create hybrid --zone=us-west4-a --accelerator-type=v5litepod-8 "
        "--version=v2-alpha-tpuv5-lite --network=default --scopes=cloud-platform"
    ]
    # The port that JAX takes since 0.8.1, which Google's own firewall rule does not open.
    assert "--allow=tcp:8482" in lines(run("tpu_vm.sh", "--dry_run", "firewall"))[0]
    start = lines(run("tpu_vm.sh", "--dry_run", "start", "--config.seed=3", **GS))
    assert start[0].startswith("git -C ") and start[1].endswith("gs://bucket/runs/one.code.tar.gz")
    assert start[3].startswith(f"{ssh} --worker=all '--command=nohup env WORKDIR=gs://bucket/runs/one DATA=gs://")
    assert "host.sh --config=configs/imagenet64.py --config.seed=3 > hybrid_jax.log" in start[3]
    assert "kill -TERM" in lines(run("tpu_vm.sh", "--dry_run", "stop"))[0]
    assert lines(run("tpu_vm.sh", "--dry_run", "eval", **GS))[-1].endswith("hybrid_jax/launch/host.sh --mode=eval'")
    assert lines(run("tpu_vm.sh", "--dry_run", "delete"))[0].startswith("gcloud compute tpus tpu-vm delete hybrid")


def test_a_host_mounts_the_bucket_brings_the_data_and_trains_under_supervision():
    printed = lines(run("host.sh", "--dry_run", "--config=configs/x.py", **GS | {"HOME": "/home/u"}))
    assert any(line.startswith("gcsfuse ") and "ttl-secs=0" in line for line in printed)
    assert printed[-2] == "gcloud storage rsync --recursive gs://bucket/data /home/u/data"
    assert printed[-1].endswith(
        "launch/supervise.sh /home/u/bucket/runs/one /home/u/venv/bin/python -m hybrid_jax.main "
        "--workdir=/home/u/bucket/runs/one --config=configs/x.py --config.data.path=/home/u/data"
    )
    # An evaluation takes its data from the workdir's config.
    assert "data.path" not in lines(run("host.sh", "--dry_run", "--mode=eval", **GS))[-1]


@pytest.mark.parametrize("flag, path", [("--config=configs/x.py", " --config.data.path={}/data"), ("--mode=eval", "")])
def test_a_pod_brings_the_data_and_starts_once(tmp_path, flag, path):
    for name in ("gcloud", "python"):
        stand_in(tmp_path, name, f'echo {name} "$@"')
    folder = {"WORKDIR": str(tmp_path / "run"), "LOCAL_DATA": str(tmp_path / "data")}
    assert lines(run("pod.sh", flag, path=tmp_path, **GS | folder)) == [
        f"gcloud storage rsync --recursive gs://bucket/data {tmp_path}/data",
        f"python -m hybrid_jax.main --workdir={tmp_path}/run {flag}{path.format(tmp_path)}",
    ]


def test_a_pod_whose_image_has_no_gcloud_is_a_mistake(tmp_path):
    for name in ("bash", "dirname", "mkdir"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = run("pod.sh", PATH=str(tmp_path), WORKDIR=str(tmp_path / "run"), DATA="gs://bucket/data")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: DATA=gs://bucket/data: there is no gcloud here to copy it with\n"


def test_two_slices_are_asked_for_as_one_request():
    printed = lines(run("queued_resources.sh", "--dry_run", "run", SLICES="2", **GS))
    (create,) = (line for line in printed if "queued-resources create" in line)
    assert "--node-count=2 --node-prefix=hybrid" in create and "--spot" in create and "startup-script=" in create
    assert any("exec env WORKDIR=gs://bucket/runs/one" in line for line in printed)
    assert "delete hybrid" in printed[-1] and "--force" in printed[-1]


def test_slurm_starts_one_step_and_requeues_at_75():
    printed = lines(run("slurm.sbatch", "--dry_run", "--config.seed=3", WORKDIR="/shared/run"))
    assert "#SBATCH --requeue" in printed and "#SBATCH --signal=B:TERM@120" in printed
    (step,) = (line for line in printed if line.startswith("srun "))
    assert step.endswith("--config=configs/imagenet64.py --workdir=/shared/run --config.seed=3")
    assert "--gpus-per-task" not in step and printed[-1] == "scontrol requeue SLURM_JOB_ID"


@pytest.mark.parametrize("gpus, processes", [(0, 2), (4, 4)])
def test_locally_each_gpu_gets_a_process(tmp_path, gpus, processes):
    stand_in(tmp_path, "nvidia-smi", f"for ((i = 0; i < {gpus}; i++)); do echo GPU $i; done")
    printed = lines(run("local.sh", "--dry_run", path=tmp_path))
    assert len(printed) == processes
    for i, line in enumerate(printed):
        assert line.startswith(f"env JAX_LOCAL_DEVICE_IDS={i} python3" if gpus else "python3")
        assert line.endswith(f"--num_processes={processes} --process_id={i}")


@pytest.mark.parametrize("script, words, environment, told", [
    ("tpu_vm.sh", ["--dry_run", "start"], {}, "WORKDIR is empty"),
    ("tpu_vm.sh", ["--dry_run", "start"], {"WORKDIR": "/home/me/run"}, "must be gs://BUCKET/PATH"),
    ("tpu_vm.sh", ["begin"], {}, "begin: must be create,"),
    ("queued_resources.sh", ["--dry_run", "run"], {}, "WORKDIR is empty"),
    ("gke.sh", ["render"], {"WORKDIR": "gs://b/r"}, "IMAGE is empty"),
    ("local.sh", ["--dry_run"], {"PROCESSES": "two"}, "PROCESSES=two: must be"),
])  # fmt: skip
def test_a_mistake_gets_one_line(script, words, environment, told):
    done = run(script, *words, **environment)
    assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1
