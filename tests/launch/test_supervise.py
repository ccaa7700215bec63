"""What starts a run again, and what gives up, with commands that stand in for training and for gcloud."""

import os
import signal
import subprocess
import time

import pytest
from launch_scripts import LAUNCH, ROOT, run, stand_in

FAST = {"RESTART_SECONDS": "0", "MAX_STUCK": "2"}
# Each start takes the next word of `plan`: EXIT_CODE, or EXIT_CODE:STEP that it saves before.
TRAINING = """
echo start >> {0}/starts
next=$(sed -n "$(wc -l < {0}/starts)p" {0}/plan)
step=${{next#*:}}
if [[ $step != "$next" ]]; then mkdir -p {0}/checkpoints/$step; fi
exit ${{next%%:*}}
"""


@pytest.fixture
def training(tmp_path):
    """Returns run(plan, *flags): (exit code, starts, stderr)."""
    command = stand_in(tmp_path, "train", TRAINING.format(tmp_path))

    def train(plan, *flags, **environment):
        (tmp_path / "plan").write_text(plan.replace(" ", "\n") + "\n")
        (tmp_path / "starts").write_text("")
        done = run("supervise.sh", *flags, str(tmp_path), str(command), **FAST | environment)
        return done.returncode, len((tmp_path / "starts").read_text().splitlines()), done.stderr

    return train


@pytest.mark.parametrize("plan, code, starts", [
    ("0", 0, 1),
    ("2 0", 2, 1),
    ("75:10 134 1:20 75 0:30", 0, 5),
    ("75 75 75 0", 75, 3),
    ("1:500 1 1 1 0", 1, 4),
])  # fmt: skip
def test_a_run_is_started_again_while_it_gets_on(training, plan, code, starts):
    found, times, told = training(plan)
    assert (found, times) == (code, starts), told
    assert ("giving up" in told) == (code in (1, 75))


def test_a_scheduler_is_told_to_start_again_until_the_run_does_not_get_on(training, tmp_path):
    state = {"STATE_FILE": str(tmp_path / "state" / "starts")}
    codes = [training(plan, "--once", **state)[0] for plan in ("75:5", "1:10", "75", "134", "75", "0", "2")]
    assert codes == [75, 75, 75, 75, 3, 0, 2]


def test_a_stop_request_reaches_the_command_and_nothing_is_started_again(tmp_path):
    command = stand_in(
        tmp_path, "train", f"trap 'exit 75' TERM; echo >> {tmp_path}/starts; while true; do sleep 0.05; done"
    )
    supervise = subprocess.Popen(
        ["bash", str(LAUNCH / "supervise.sh"), str(tmp_path), str(command)], env=os.environ | FAST
    )
    while not (tmp_path / "starts").exists():
        time.sleep(0.02)
    supervise.send_signal(signal.SIGTERM)
    assert supervise.wait(10) == 75
    assert len((tmp_path / "starts").read_text().splitlines()) == 1


GCLOUD = """
echo "$*" >> {0}/calls
case "$*" in
  *"queued-resources describe"*)
    line=$(head -n 1 {0}/states)
    sed -i 1d {0}/states
    [[ $line != ABSENT ]] && echo "$line"
    ;;
  *"storage cat"*) [[ -s {0}/states ]] || echo 0 ;;
  *"storage ls"*)
    newest=$(($(grep -c create {0}/calls) * {1}))
    for ((i = 10; i <= newest; i += 10)); do echo "gs://b/r/checkpoints/$i/"; done
    ;;
esac
"""


def ask_again(tmp_path, states, growth):
    stand_in(tmp_path, "gcloud", GCLOUD.format(tmp_path, growth))
    (tmp_path / "states").write_text(states.replace(" ", "\n") + "\n")
    environment = {"WORKDIR": "gs://b/r", "POLL_SECONDS": "0", "TMPDIR": str(tmp_path), **FAST}
    done = run("queued_resources.sh", "run", path=tmp_path, **environment)
    return done, [line for line in (tmp_path / "calls").read_text().splitlines() if "queued-resources" in line]


def asked(calls):
    return [call.split()[3] for call in calls if "describe" not in call]


def test_spot_tpus_that_were_taken_away_are_asked_for_again_and_given_back_at_the_end(tmp_path):
    states = "ABSENT ABSENT WAITING_FOR_RESOURCES ACTIVE SUSPENDED ACTIVE FAILED ACTIVE"
    done, calls = ask_again(tmp_path, states, growth=10)
    assert done.returncode == 0, done.stderr
    assert asked(calls) == ["create", "delete", "create", "delete", "create", "delete"]
    assert (tmp_path / "hybrid_jax_startup_hybrid.sh").read_text().startswith("#!")
    assert "--spot" in calls[2] and ROOT.name not in calls[2]


def test_requests_that_bring_no_newer_checkpoint_end(tmp_path):
    done, calls = ask_again(tmp_path, "ABSENT" + " FAILED" * 9, growth=0)
    assert done.returncode == 2 and "giving up" in done.stderr
    assert asked(calls).count("create") == 3
