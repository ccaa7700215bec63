"""The contest of starts: from a command to the end of its first step.

python -m benchmarks.peer_start [--compiled]

is what PyTorch's side runs: it imports, builds the model of configs/quickstart.py, does one step and prints `step`.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from benchmarks.contest import Call, Contest, Described, cores

_CONFIG = "configs/quickstart.py"


def start_contest() -> Contest:
    """Returns contest (g); caches of compiled programs are of the contest's own."""
    train = ["hybrid_jax.main", f"--config={_CONFIG}"]
    torch = ["benchmarks.peer_start"]
    contenders = {
        "hybrid_jax, its programs kept": lambda quick: kept(train, "HYBRID_JAX_CACHE"),
        "hybrid_jax, nothing kept": lambda quick: fresh(train, "HYBRID_JAX_CACHE"),
        "PyTorch": lambda quick: kept(torch, "TORCHINDUCTOR_CACHE_DIR"),
        "PyTorch, torch.compile, its programs kept": lambda quick: kept(compiled, "TORCHINDUCTOR_CACHE_DIR"),
        "PyTorch, torch.compile, nothing kept": lambda quick: fresh(compiled, "TORCHINDUCTOR_CACHE_DIR"),
    }
    compiled = [*torch, "--compiled"]
    what = f"from the command to its first step, {_CONFIG}"
    return Contest("g", what, "start", 1.0, contenders, same_parameters=False, rounds=(3, 1))


def kept(arguments: list[str], variable: str) -> Call:
    """Returns a call that starts the command with the cache that the first call fills."""
    folder = tempfile.TemporaryDirectory()

    def call() -> object:
        until_first_step(arguments, {variable: folder.name})
        # Held here, for it goes with its owner.
        return folder

    return Described(call, {})


def fresh(arguments: list[str], variable: str) -> Call:
    """Returns a call that starts the command with an empty cache."""

    def call() -> None:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            until_first_step(arguments, {variable: folder})

    return Described(call, {}, warm_up=False)


def until_first_step(arguments: list[str], environment: dict[str, str]) -> None:
    """Starts `python -m` with these, waits for a line that starts with `step`, and ends it.

    Args:
      arguments: after `-m`; hybrid_jax's own command gets a workdir that goes again.
      environment: added to this process's.

    Raises:
      RuntimeError: the command ended before.
    """
    outer = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    with _workdir(arguments) as more:
        command = [sys.executable, "-m", *arguments, *more]
        with subprocess.Popen(command, env=outer | environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("step"):
                    process.kill()
                    return
    raise RuntimeError(f"{' '.join(command)} ended before its first step")


@contextlib.contextmanager
def _workdir(arguments: list[str]) -> Iterator[list[str]]:
    if not arguments[0].startswith("hybrid_jax."):
        yield []
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield [f"--workdir={folder}"]


def main(compiled: bool) -> None:
    """Does one step in PyTorch and says so."""
    import torch

    from benchmarks import torch_models, torch_steps
    from configs import quickstart

    torch.set_num_threads(cores())
    config = quickstart.get_config()
    module = torch_models.Hybrid(config, torch_models.Kind("gpt2", library_loss=False))
    torch_steps.step(module, torch_steps.batch(config), config, compiled)()
    print("step 1", flush=True)


if __name__ == "__main__":
    main("--compiled" in sys.argv[1:])
