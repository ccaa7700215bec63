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
import printed
import pytest

from hybrid_jax import metrics, train
from hybrid_jax.errors import UserError
from hybrid_jax.evaluate import evaluate_workdir

ROOT = pathlib.Path(__file__).parent.parent.parent


def assert_one_error_line(result, *words):
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for word in words:
        assert word in lines[0], lines[0]


# flags, then words the line must have: the field, the value, what is allowed. One of each part of the program that may
# refuse them: absl, ml_collections, ours, the config's validation, training. tests/test_config.py has all fields.
MISTAKES = {
    "unknown flag": (["--workdri=x"], ["workdri"]),
    "unknown key": (["--config.model.widht=3"], ["model.widht", "model.width"]),
    "not a number": (["--config.model.width=wide"], ["model.width", "wide"]),
    "bad mode": (["--mode=trian"], ["--mode=trian", "train"]),
    "bare word": (["runs/x"], ["runs/x"]),
    "a bucket": (["--workdir=gs://bucket/run"], ["--workdir=gs://bucket/run", "mount the bucket"]),
    "heads": (["--config.model.num_heads=3"], ["model.num_heads=3", "model.width=16"]),
    "batch above the data": (["--config.train.batch_size=100000"], ["train.batch_size=100000", "training images"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_2(command_line, tmp_path, name):
    flags, words = MISTAKES[name]
    assert_one_error_line(command_line(f"--workdir={tmp_path / 'run'}", *flags), *words)


def test_a_missing_config_file_and_a_missing_config(command_line, tmp_path):
    assert_one_error_line(command_line(f"--workdir={tmp_path}", config="configs/quikstart.py"), "configs/quikstart.py")
    assert_one_error_line(command_line(f"--workdir={tmp_path}", config=None), "--config")
    assert_one_error_line(command_line(), "--workdir")


def test_mode_data_tells_what_it_skipped(command_line, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 12), np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02}.png")
    (tmp_path / "images" / "07.png").write_bytes(b"not an image")
    flags = [f"--workdir={tmp_path / 'run'}", "--config.data.name=folder", f"--config.data.path={tmp_path / 'images'}"]
    result = command_line(*flags, "--config.data.on_error=skip", "--mode=data")
    assert result.returncode == 0 and "skipped 1 unreadable images" in result.stdout


def test_a_workdir_that_cannot_be_used_is_named(tiny_config, tmp_path):
    with pytest.raises(UserError, match=f"--workdir={tmp_path}: holds no checkpoint.*train"):
        evaluate_workdir(tmp_path, None, None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"--workdir={tmp_path / 'file'}"):
        train.train_and_evaluate(tiny_config(), tmp_path / "file", lambda line: None)


def test_more_colours_than_the_data_have_are_refused(tiny_config, tmp_path):
    config = tiny_config(model__token_kind="palette", model__palette_size=100)
    with pytest.raises(UserError, match=r"config\.model\.palette_size=100: the data have .* colours"):
        train.train_and_evaluate(config, tmp_path, lambda line: None)


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
    flags = ["--config.eval.every_steps=0", "--config.eval.evaluators=('knn',)"]
    result = command_line(f"--workdir={tmp_path}", *flags)
    assert result.returncode == 0, result.stderr
    assert "knn_accuracy" in result.stdout and "left" in result.stdout
    first = json.loads((tmp_path / "eval" / "10.json").read_text())
    assert json.loads((tmp_path / "config.json").read_text())["model"]["width"] == 16
    (tmp_path / "eval" / "10.json").unlink()
    result = command_line("--mode=eval", f"--workdir={tmp_path}", config=None)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "eval" / "10.json").read_text()) == first
    with pytest.raises(UserError, match="--step=6: must be latest, best or one of 5, 10"):
        evaluate_workdir(tmp_path, 6, None)


def test_sigterm_saves_and_exits_with_75_and_tensorflow_is_not_needed(tmp_path):
    # One that can be found, so that not having it installed proves nothing.
    (tmp_path / "tensorflow.py").write_text("raise AssertionError('imported')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "JAX_NUM_CPU_DEVICES": "1"}
    workdir = tmp_path / "run"
    command = [
        sys.executable, "-m", "hybrid_jax.main", "--config=tests/tiny.py", f"--workdir={workdir}",
        "--config.train.total_steps=100000", "--config.log.every_steps=20",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not len(metrics.read(workdir)) > 1:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "same command continues" in errors and "Traceback" not in errors
    assert any((workdir / "checkpoints").iterdir())


def test_nothing_slow_is_imported_before_it_is_used():
    # JAX must find in its environment where compiled programs are kept.
    code = (
        "import sys, hybrid_jax, hybrid_jax.main; assert not {'jax', 'flax', 'numpy'} & set(sys.modules)\n"
        "hybrid_jax.load, hybrid_jax.losses.nt_xent, hybrid_jax.train_and_evaluate"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


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


PARSE = """
import json, os, sys
from hybrid_jax import config, flags
from hybrid_jax.utils import cli
for words in json.load(sys.stdin):
    # The flags of a process can be parsed once.
    if not os.fork():
        try:
            sys.argv = ["x", *words]
            cli.parse(sys.argv, "")
            config.validate(flags.CONFIG.value)
        except BaseException as error:
            print(words, error, flush=True)
        os._exit(0)
    os.wait()
"""


def test_every_command_that_is_printed_can_be_parsed():
    """The flags of every command in the documentation and in config docstrings name fields that exist and agree."""
    commands = []
    for page in [*sorted((ROOT / "configs").glob("*.py")), *printed.pages()]:
        lines = re.findall(r"-m hybrid_jax\.main((?:[^\n\\`]|\\\n)*--config=(?:[^\n\\`]|\\\n)*)", page.read_text())
        assert lines or page.suffix == ".md", page
        commands += [shlex.split(line.replace("\\\n", " ").removesuffix("&")) for line in lines]
    told = subprocess.run(
        [sys.executable, "-c", PARSE], input=json.dumps(commands), capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert told.stdout == ""
