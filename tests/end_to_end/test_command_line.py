"""The real command: help, modes, exit codes, and one clear line for every kind of mistake."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from hybrid_jax import metrics

ROOT = pathlib.Path(__file__).parent.parent.parent


def assert_one_error_line(result, *words):
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for word in words:
        assert word in lines[0], lines[0]


# flags, then words the line must have: the field, the value, what is allowed.
MISTAKES = {
    "unknown flag": (["--workdri=x"], ["workdri"]),
    "unknown key": (["--config.model.widht=3"], ["model.widht", "model.width"]),
    "bad mode": (["--mode=trian"], ["--mode=trian", "train"]),
    "topology": (["--mode=compile", "--topology=v5d:2x2"], ["--topology=v5d:2x2", "v5e", "tpu7x"]),
    "no topology": (["--mode=compile"], ["--topology is missing", "v5e:16x16"]),
    "a bucket": (["--workdir=gs://bucket/run"], ["--workdir=gs://bucket/run", "mount the bucket"]),
    "bare word": (["runs/x"], ["runs/x"]),
    "not a number": (["--config.model.width=wide"], ["model.width", "wide"]),
    "tuple length": (["--config.data.image_size=(8,8,8)"], ["data.image_size", "(8, 8, 8)", "2 whole numbers"]),
    "patch size": (["--config.model.patch_size=3"], ["model.patch_size=3", "1, 2, 4, 8"]),
    "heads": (["--config.model.num_heads=3"], ["model.num_heads=3", "model.width=16"]),
    "size below one": (["--config.train.batch_size=0"], ["train.batch_size=0", "at least 1"]),
    "negative rate": (["--config.optimizer.learning_rate=-1"], ["learning_rate=-1", "at least 0"]),
    "batch above the data": (["--config.train.batch_size=100000"], ["train.batch_size=100000", "training images"]),
    "batch and microbatches": (["--config.train.microbatches=3"], ["train.microbatches=3", "train.batch_size=16"]),
    "one of": (["--config.model.token_kind=colour"], ["model.token_kind='colour'", "intensity, palette"]),
    "view_keep under a causal mask": (["--config.model.view_attention=causal"], ["augment.view_keep=0.5", "must be 1"]),
    "contrastive without encoder": (["--config.model.encoder_layers=0"], ["model.encoder_layers=0", "at least 1"]),
    "both weights zero": (
        ["--config.objective.generative_weight=0", "--config.objective.contrastive_weight=0"],
        ["generative_weight", "above 0"],
    ),
    "missing data set": (["--config.data.name=cifar10", "--config.data.path=/nonexistent"], ["cifar10", "prepare"]),
    "unknown data set": (["--config.data.name=cifar_10"], ["cifar_10", "cifar10"]),
    "missing folder": (["--config.data.name=folder", "--config.data.path=/nonexistent"], ["data.path", "/nonexistent"]),
    "too many colours": (
        ["--config.model.token_kind=palette", "--config.model.palette_size=100"], ["palette_size=100", "colours"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_2(command_line, tmp_path, name):
    flags, words = MISTAKES[name]
    assert_one_error_line(command_line(f"--workdir={tmp_path / 'run'}", *flags), *words)


def test_the_batch_must_divide_by_the_devices(command_line, tmp_path):
    result = command_line(
        f"--workdir={tmp_path}", "--config.train.batch_size=10", environment={"JAX_NUM_CPU_DEVICES": "4"}
    )
    assert_one_error_line(result, "train.batch_size=10", "4 devices")


def test_a_missing_config_file_and_a_missing_config(command_line, tmp_path):
    assert_one_error_line(command_line(f"--workdir={tmp_path}", config="configs/quikstart.py"), "configs/quikstart.py")
    assert_one_error_line(command_line(f"--workdir={tmp_path}", config=None), "--config")
    assert_one_error_line(command_line(), "--workdir")


def test_an_empty_folder_and_an_unreadable_image(command_line, tmp_path):
    flags = [
        f"--workdir={tmp_path / 'run'}",
        "--config.data.name=folder",
        f"--config.data.path={tmp_path / 'images'}",
    ]
    (tmp_path / "images").mkdir()
    assert_one_error_line(command_line(*flags), str(tmp_path / "images"))
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 12), np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02}.png")
    (tmp_path / "images" / "07.png").write_bytes(b"not an image")
    assert_one_error_line(command_line(*flags), "07.png")
    result = command_line(*flags, "--config.data.on_error=skip", "--mode=data")
    assert result.returncode == 0 and "skipped 1 unreadable images" in result.stdout


def test_an_empty_workdir_cannot_be_evaluated(command_line, tmp_path):
    assert_one_error_line(command_line("--mode=eval", f"--workdir={tmp_path}", config=None), str(tmp_path), "train")


@pytest.mark.slow
def test_a_workdir_of_another_config_is_refused_field_by_field(command_line, tmp_path):
    assert command_line(f"--workdir={tmp_path}").returncode == 0
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    result = command_line(f"--workdir={tmp_path}", "--config.model.width=32", "--config.seed=1")
    assert_one_error_line(result, "model.width=32", "16", "seed=1")
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before
    # What may change, may.
    assert command_line(f"--workdir={tmp_path}", "--config.log.every_steps=3").returncode == 0
    assert json.loads((tmp_path / "config.json").read_text())["log"]["every_steps"] == 3


def test_a_workdir_that_is_a_file(command_line, tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_error_line(command_line(f"--workdir={tmp_path / 'file'}"), "--workdir")


@pytest.mark.slow
def test_running_out_of_memory_names_the_settings_that_help(command_line, tmp_path):
    result = command_line(f"--workdir={tmp_path}", "--config.model.width=4000000", "--config.model.num_heads=1")
    assert_one_error_line(result, "out of memory", "model.width=4000000", "train.batch_size", "train.microbatches")


def test_config_mode_prints_every_field(command_line):
    from hybrid_jax.config import FIELDS

    result = command_line("--mode=config", config=None)
    assert result.returncode == 0
    listed = [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert listed == list(FIELDS)


def test_train_then_eval_from_the_workdir_alone(command_line, tmp_path):
    flags = ["--config.eval.every_steps=0", "--config.eval.evaluators=('knn','likelihood')"]
    result = command_line(f"--workdir={tmp_path}", *flags)
    assert result.returncode == 0, result.stderr
    assert "bits_per_dim" in result.stdout and "left" in result.stdout
    first = json.loads((tmp_path / "eval" / "10.json").read_text())
    assert json.loads((tmp_path / "config.json").read_text())["model"]["width"] == 16
    (tmp_path / "eval" / "10.json").unlink()
    result = command_line("--mode=eval", f"--workdir={tmp_path}", config=None)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "eval" / "10.json").read_text()) == first
    assert command_line("--mode=eval", f"--workdir={tmp_path}", "--step=5", config=None).returncode == 0
    assert (tmp_path / "eval" / "5.json").exists()
    assert_one_error_line(
        command_line("--mode=eval", f"--workdir={tmp_path}", "--step=6", config=None), "--step=6", "5, 10"
    )


def test_sigterm_saves_and_exits_with_75(tmp_path):
    command = [
        sys.executable, "-m", "hybrid_jax.main", "--config=tests/tiny.py", f"--workdir={tmp_path}",
        "--config.train.total_steps=100000", "--config.log.every_steps=20",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not len(metrics.read(tmp_path)) > 1:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "same command continues" in errors and "Traceback" not in errors
    assert any((tmp_path / "checkpoints").iterdir())


def test_importing_is_quick_and_nothing_needs_tensorflow(tmp_path):
    # Neither jax nor anything else that is slow is loaded before it is used.
    code = (
        "import sys, hybrid_jax; assert not {'jax', 'flax', 'numpy'} & set(sys.modules)\n"
        "import hybrid_jax.main; hybrid_jax.load, hybrid_jax.losses.nt_xent, hybrid_jax.train_and_evaluate\n"
        "sys.argv = ['hybrid-jax', '--config=tests/tiny.py', '--workdir=' + sys.argv[1],\n"
        "            '--config.data.name=embedded']\n"
        "hybrid_jax.main.main(); assert 'tensorflow' not in sys.modules"
    )
    # One that can be found, so that not having it installed proves nothing.
    (tmp_path / "tensorflow.py").write_text("raise AssertionError('imported')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": path})


def test_help_lists_the_flags(command_line):
    result = command_line("--help", config=None)
    assert result.returncode == 0
    for flag in ("--config", "--workdir", "--mode", "--step"):
        assert flag in result.stdout


@pytest.mark.slow
def test_eval_reads_only_the_eval_section_of_a_config(command_line, tmp_path):
    assert command_line(f"--workdir={tmp_path}", "--config.train.total_steps=1").returncode == 0
    flags = [
        "--mode=eval",
        f"--workdir={tmp_path}",
        "--config.model.width=999",
        "--config.eval.likelihood.num_images=7",
    ]
    result = command_line(*flags, "--config.eval.evaluators=('likelihood',)")
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "eval" / "1.json").read_text())
    told = [(row["metric"], row["split"], row["n"]) for row in rows]
    assert told == [("bits_per_dim", "test", 7), ("bits_per_dim", "validation", 7)]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_command_that_is_printed_can_be_parsed(path):
    """The flags of every command in the README and in config docstrings name fields that exist and agree."""
    text = (ROOT / "README.md").read_text() if path.stem == "quickstart" else path.read_text()
    commands = re.findall(r"-m hybrid_jax\.main((?:[^\n\\`]|\\\n)*--config=(?:[^\n\\`]|\\\n)*)", text)
    assert commands
    for command in commands:
        words = shlex.split(command.replace("\\\n", " ").removesuffix("&"))
        code = (
            "import sys; from hybrid_jax import command_line, config, main; "
            "command_line.parse(['x', *sys.argv[1:]], ''); config.validate(main.given.CONFIG.value)"
        )
        subprocess.run([sys.executable, "-c", code, *words], check=True, cwd=ROOT)
