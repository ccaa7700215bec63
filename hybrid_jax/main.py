"""The command line: flags -> mode -> one call. `python -m hybrid_jax.main --help`."""

import functools
import signal
import sys

from absl import flags, logging
from ml_collections import config_flags

from hybrid_jax import command_line
from hybrid_jax import config as config_lib
from hybrid_jax.errors import CompilerError, NonFiniteError, Preempted, UserError

MODES = ("data", "train", "eval", "embed", "config", "compile")

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file of configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.")
_MODE = flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
_STEP = flags.DEFINE_string("step", "latest", "Which checkpoint to evaluate or to embed with: latest, or its step.")
_INPUT = flags.DEFINE_string("input", None, "What to embed: a folder of images, an image, or an .npy of uint8 images.")
_OUTPUT = flags.DEFINE_string("output", None, "The .npz that embed writes; by default embed.npz in the workdir.")
_LAYER = flags.DEFINE_string("layer", None, "Whose features to embed with; by default the encoder's output.")
_ON_ERROR = flags.DEFINE_enum("on_error", "stop", ["stop", "skip"], "What embed does at an unreadable image file.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "What compile compiles for: v5e:16x16, v5e:16x16x2 (two slices), ...")


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
    if mode in ("train", "data", "compile"):
        if _CONFIG.value is None:
            raise UserError("--config is missing: a file of configs/, for example --config=configs/quickstart.py")
        config_lib.validate(_CONFIG.value)
        if mode == "train":
            from hybrid_jax.train import train_and_evaluate as task
        elif mode == "data":
            from hybrid_jax.data_summary import summarise as task
        else:
            from hybrid_jax.aot import compile_for

            # As Ctrl-C: the compiler's process ends too.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            task = functools.partial(compile_for, _TOPOLOGY.value)
        task(_CONFIG.value, _WORKDIR.value, _say)
        return
    section = None if _CONFIG.value is None else _CONFIG.value.eval
    if mode == "embed":
        _embed(_WORKDIR.value, None if section is None else section.batch_size)
    else:
        from hybrid_jax.evaluate import evaluate_workdir

        evaluate_workdir(_WORKDIR.value, _STEP.value, section, _say)


def _embed(workdir: str, batch_size: int | None) -> None:
    if not _INPUT.value:
        raise UserError("--input is missing: a folder of images, an image, or an .npy file")
    from hybrid_jax.embed import embed_workdir

    # As Ctrl-C: what is half written is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    choices = (_STEP.value, _LAYER.value, _ON_ERROR.value, batch_size)
    embed_workdir(workdir, _INPUT.value, _OUTPUT.value, *choices, _say)


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Entry point of `hybrid-jax` and `python -m hybrid_jax.main`."""
    try:
        command_line.parse(sys.argv, __doc__)
        # Orbax and tfds log their own steps; what a user needs to know, the modes say.
        logging.set_verbosity(logging.ERROR)
        run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (NonFiniteError, CompilerError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(1)
    except Preempted as event:
        print(event, file=sys.stderr)
        sys.exit(75)


if __name__ == "__main__":
    main()
