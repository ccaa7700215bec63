"""The command line: flags -> mode -> one call. `python -m hybrid_jax.main --help`."""

import signal

from absl import flags
from ml_collections import config_flags

from hybrid_jax import command_line
from hybrid_jax import config as config_lib
from hybrid_jax.command_line import say
from hybrid_jax.errors import UserError

MODES = ("data", "train", "eval", "embed", "config", "compile")

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file of configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.")
_MODE = flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
_STEP = flags.DEFINE_string("step", "latest", "Which checkpoint eval and embed take: latest, best, or its step.")
_FORK_FROM = flags.DEFINE_string("fork_from", None, "DIR[@step]: a new run begins with that run's parameters.")
_INPUT = flags.DEFINE_string("input", None, "What to embed: a folder of images, an image, or an .npy of uint8 images.")
_OUTPUT = flags.DEFINE_string("output", None, "The .npz that embed writes; by default embed.npz in the workdir.")
_LAYER = flags.DEFINE_string("layer", None, "Whose features to embed with; by default the encoder's output.")
_ON_ERROR = flags.DEFINE_enum("on_error", "stop", ["stop", "skip"], "What embed does at an unreadable image file.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "What compile compiles for: v5e:16x16, v5e:16x16x2 (two slices), ...")
_DISTRIBUTED = flags.DEFINE_enum("distributed", "auto", ["auto", "on", "off"], "Whether to join other processes.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no cluster says it.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of this run, likewise.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0, likewise.")


def run() -> None:
    """Runs the chosen mode; imports inside, so that a mistake in the flags is answered at once."""
    mode = _MODE.value
    if mode not in MODES:
        raise UserError(f"--mode={mode}: must be one of {', '.join(MODES)}{config_lib.nearest(mode, MODES)}")
    if mode == "config":
        print(config_lib.describe())
        return
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: the folder where this run keeps its files")
    if mode in ("data", "train", "compile"):
        if _CONFIG.value is None:
            raise UserError("--config is missing: a file of configs/, for example --config=configs/quickstart.py")
        config_lib.validate(_CONFIG.value)
    if mode not in ("train", "eval"):
        # As Ctrl-C: what is half written is removed, and the compiler's process ends too.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        {"data": _data, "embed": _embed, "compile": _compile}[mode](_WORKDIR.value)
        return
    from hybrid_jax import processes

    with processes.joined(_DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value):
        {"train": _train, "eval": _evaluate}[mode](_WORKDIR.value)


def _data(workdir: str) -> None:
    from hybrid_jax.data_summary import summarise

    summarise(_CONFIG.value, workdir, say)


def _compile(workdir: str) -> None:
    from hybrid_jax.aot import compile_for

    compile_for(_TOPOLOGY.value, _CONFIG.value, workdir, say)


def _train(workdir: str) -> None:
    from hybrid_jax.train import train_and_evaluate

    train_and_evaluate(_CONFIG.value, workdir, say, _FORK_FROM.value)


def _evaluate(workdir: str) -> None:
    from hybrid_jax.evaluate import evaluate_workdir

    evaluate_workdir(workdir, _STEP.value, None if _CONFIG.value is None else _CONFIG.value.eval, say)


def _embed(workdir: str) -> None:
    if not _INPUT.value:
        raise UserError("--input is missing: a folder of images, an image, or an .npy file")
    from hybrid_jax.embed import embed_workdir

    batch_size = None if _CONFIG.value is None else _CONFIG.value.eval.batch_size
    choices = (_STEP.value, _LAYER.value, _ON_ERROR.value, batch_size)
    embed_workdir(workdir, _INPUT.value, _OUTPUT.value, *choices, say)


def main() -> None:
    """Entry point of `hybrid-jax` and `python -m hybrid_jax.main`."""
    command_line.answer(run, __doc__)


if __name__ == "__main__":
    main()
