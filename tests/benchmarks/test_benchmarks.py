"""The benchmarks run on a tiny config and print what they promise."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import common, step
from hybrid_jax.models import flops

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_step_times_every_part(tiny_config):
    config = tiny_config()
    found = step.parts(config) | {step.WHOLE_STEP: step.whole_step(config)}
    found |= {name: step.whole_step(specialist) for name, specialist in step.specialists(config).items()}
    seconds = {step.PEAK: 1.0, step.STREAM: 1.0} | step.medians({k: part.call for k, part in found.items()}, rounds=1)
    traffic = {step.PEAK: 1.0, step.STREAM: 1e9} | {name: part.traffic for name, part in found.items()}
    lines = step.table(config, seconds, traffic).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| matrix product", "| x + 1", "| augmentation, tokens", "| view_encoder", "| losses", "| likelihood_encoder",
        "| decoder", "| pixel_head", "| optimizer", "| whole step", "| generative step", "| contrastive step",
    ]  # fmt: skip
    assert "| 1.00 |" in lines[0] and " 100% " in lines[9]
    assert all(part.traffic > 0 for part in found.values())


def test_the_bound_is_the_longer_of_operations_and_bytes(tiny_config):
    peak = 2.0 * step.PEAK_SIDE**3  # operations a second
    work = flops.total(tiny_config())
    seconds = {step.PEAK: 1.0, step.STREAM: 1.0, step.WHOLE_STEP: 4 * work / peak}

    def bound(gigabytes_a_step: float) -> list[str]:
        traffic = {step.PEAK: 0.0, step.STREAM: 1e9, step.WHOLE_STEP: gigabytes_a_step * 1e9}
        return step.table(tiny_config(), seconds, traffic).splitlines()[-1].strip("| ").split(" | ")[-2:]

    assert bound(0.0) == ["operations", "0.25"]
    assert bound(2 * work / peak) == ["bytes", "0.50"]


@pytest.mark.slow
def test_screen_judges_on_validation_at_equal_computation_and_only_once(tmp_path):
    tries = tmp_path / "tries.txt"
    tries.write_text('# a comment\nplain\nwide model.width=32 optimizer.name=muon eval.evaluators=["linear_probe"]\n')
    flags = (f"--tries={tries}", f"--workdir={tmp_path / 'runs'}", "--teraflop=0.001", "--probe_images=500")

    def run() -> str:
        command = [sys.executable, "-m", "benchmarks.screen", "--config=tests/tiny.py", *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    run()
    rows = [json.loads(line) for line in (tmp_path / "runs" / "results.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["plain", "wide"]
    assert rows[0]["steps"] > 2 * rows[1]["steps"] > 0, "a wider model gets fewer steps"
    assert 0 < rows[0]["linear_probe_accuracy default"] < 1 and "bits_per_dim" not in rows[1]
    config = json.loads((tmp_path / "runs" / "wide" / "config.json").read_text())
    assert config["model"]["width"] == 32 and config["optimizer"]["name"] == "muon"
    assert run() == ""
    assert len((tmp_path / "runs" / "results.jsonl").read_text().splitlines()) == 2


def test_overrides_keep_types(tiny_config):
    config = tiny_config()
    common.apply(
        config, ["model.width=8", "data.image_size=[4, 4]", "objective.temperature=0.5", "augment.recipe=none"]
    )
    assert config.model.width == 8 and config.data.image_size == (4, 4)
    assert config.objective.temperature == 0.5 and config.augment.recipe == "none"


def test_a_command_is_killed_at_the_line_that_was_waited_for():
    counting = ("-m", "tests.benchmarks.counting")
    said = common.run("30", program=counting, until="2")
    assert said.code == 0 and [line for _, line in said.lines] == ["0", "1", "2"]
    with pytest.raises(RuntimeError, match="ended before it said '7', exit code 0"):
        common.run("3", program=counting, until="7")
    with pytest.raises(RuntimeError, match=r"exit code 1: .*No module named"):
        common.run(program=("-m", "tests.benchmarks.nothing_of_this_name")).checked()
