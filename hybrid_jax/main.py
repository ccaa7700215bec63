"""The command line: one function call per `--mode`. See `python -m hybrid_jax.main --help`."""

import signal

from absl import flags

from hybrid_jax import config as config_lib
from hybrid_jax import flags as given
from hybrid_jax.errors import UserError
from hybrid_jax.utils import cli, runtime
from hybrid_jax.utils.cli import say

flags.adopt_module_key_flags(given)


def run() -> None:
    """Runs the chosen mode. Imports are local, so that wrong flags are reported at once."""
    mode = given.MODE.value
    if mode not in given.MODES:
        raise UserError(
            f"--mode={mode}: must be one of {', '.join(given.MODES)}{config_lib.nearest(mode, given.MODES)}"
        )
    if mode == "config":
        print(config_lib.describe())
        return
    if not given.WORKDIR.value:
        raise UserError("--workdir is missing: must be the folder for the files of this run")
    if mode in ("data", "train", "compare", "compile"):
        if given.CONFIG.value is None:
            raise UserError("--config is missing: must be a config file, for example --config=configs/quickstart.py")
        config_lib.validate(given.CONFIG.value)
    runtime.reuse_memory()
    if mode not in ("train", "eval"):
        # Treated as Ctrl-C: partial files are removed and the compiler's process ends too.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        alone = {"data": _data, "embed": _embed, "sample": _sample, "compare": _compare, "compile": _compile}
        alone[mode](given.WORKDIR.value)
        return
    from hybrid_jax.multihost import processes

    with processes.joined(*given.group()):
        {"train": _train, "eval": _evaluate}[mode](given.WORKDIR.value)


def _data(workdir: str) -> None:
    from hybrid_jax.report.dataset import summarise

    summarise(given.CONFIG.value, workdir, say)


def _compile(workdir: str) -> None:
    from hybrid_jax.aot.compile import compile_for

    compile_for(given.TOPOLOGY.value, given.CONFIG.value, workdir, say)


def _compare(workdir: str) -> None:
    from hybrid_jax.comparison.run import compare

    compare(given.CONFIG.value, workdir, given.SEEDS.value, given.ARMS.value, say)


def _train(workdir: str) -> None:
    from hybrid_jax.train import train_and_evaluate

    train_and_evaluate(given.CONFIG.value, workdir, say, given.FORK_FROM.value)


def _evaluate(workdir: str) -> None:
    from hybrid_jax.evaluate import evaluate_workdir

    evaluate_workdir(workdir, given.STEP.value, given.eval_section(), say)


def _embed(workdir: str) -> None:
    if not given.INPUT.value:
        raise UserError("--input is missing: must be a folder of images, an image, or an .npy file")
    from hybrid_jax.inference.embed import embed_workdir

    choices = (given.STEP.value, given.LAYER.value, given.ON_ERROR.value, given.batch_size())
    embed_workdir(workdir, given.INPUT.value, given.OUTPUT.value, *choices, say)


def _sample(workdir: str) -> None:
    from hybrid_jax.inference.sample import sample_workdir

    runtime.use_all_cores()
    asked = (given.STEP.value, given.NUM.value, given.INPUT.value, given.OUTPUT.value)
    kept = (given.NUM_ROWS.value, given.NUM_PATCHES.value)
    sample_workdir(workdir, *asked, kept, given.draw(), given.SEED.value, given.batch_size(), say)


def main() -> None:
    """Entry point of `hybrid-jax` and `python -m hybrid_jax.main`."""
    cli.run_cli(run, __doc__)


if __name__ == "__main__":
    main()
