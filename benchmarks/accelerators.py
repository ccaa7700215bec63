"""What the compilers make of the train step for accelerators that are not here, against what it needs at least.

python -m benchmarks.accelerators --workdir=runs/accelerators [--quick] [--minutes=120]

The real train step of each scale config is compiled for the devices it is made for (as `--mode=compile` does), one
after the other, each in a process of its own; and once more without each optimisation that can be switched off. Nothing
runs: bytes and operations are read from the compiled programs. Results stay in `results.json` in the workdir, from
which the same command goes on; a change of the package, of a config or of the compilers compiles anew. Programs for
GPUs are left out where JAX's CUDA compiler is not installed.

`moved` of a collective is what one device sends in rings; its minimum is in benchmarks/minimum.py. `HBM moved` is what
the program writes to memory, counted twice: once written, once read. `FLOPs` are those of the matrix products in the
program over those that the result needs (hybrid_jax/models/flops.py); what kernels (splash, cuDNN) compute is not seen.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import runpy
import subprocess
import sys
import time
from typing import Any

from absl import flags

from benchmarks import accelerator_tables
from benchmarks.overrides import apply
from hybrid_jax.aot import compile as aot
from hybrid_jax.aot import hardware
from hybrid_jax.aot.hardware import parse_topology
from hybrid_jax.errors import CompilerError, UserError
from hybrid_jax.storage.files import write_whole

WORKDIR = flags.DEFINE_string("workdir", None, "Where results are kept.", required=True)
QUICK = flags.DEFINE_boolean("quick", False, "Only the smallest config, on four devices.")
MINUTES = flags.DEFINE_float("minutes", 120.0, "No compilation begins later than this.", lower_bound=0.0)
ROOT = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Case:
    """One compilation.

    Attributes:
      config: name of a file in configs/; `nt_xent` for the loss alone, of embeddings.
      topology: as `--topology`.
      overrides: `section.field=value` each; of the loss alone `batch=B`, `dim=E`, `block=rows` (0: its own choice).
    """

    config: str
    topology: str
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its key in `results.json`."""
        return " ".join((self.config, self.topology, *self.overrides))


# Blocks in a loop and computed again, as suits a TPU; the config itself is one GPU's.
_LOOPED = ("model.remat=true", "model.scan_layers=true")
CIFAR, POD = Case("cifar10", "v5e:2x2", _LOOPED), "v5e:16x16"
PALETTE, LARGE = Case("imagenet32_igpt_s", POD), Case("imagenet64_large", POD)
MIDDLE = Case("imagenet64", POD)
SMALLEST = Case("quickstart", "v5e:2x2")
GPU = Case("cifar10", "h100:8", _LOOPED)
LOSS = Case("nt_xent", "v5e:2x2", ("batch=16384", "dim=128", "block=0"))
SCALE = (CIFAR, GPU, PALETTE, MIDDLE, Case("imagenet64", "v5e:16x16x2"), LARGE)


def _with(case: Case, *overrides: str) -> Case:
    return dataclasses.replace(case, overrides=overrides)


# What is switched, then without and with it.
SWITCHES = (
    ("model.remat: blocks computed again in the backward pass", _with(CIFAR, "model.scan_layers=true"), CIFAR),
    ("model.scan_layers: one block compiled, looped over", _with(CIFAR, "model.remat=true"), CIFAR),
    ("model.dtype: bfloat16 instead of float32", _with(CIFAR, *_LOOPED, "model.dtype=float32"), CIFAR),
    ("train.microbatches: 4 passes instead of 1", CIFAR, _with(CIFAR, *_LOOPED, "train.microbatches=4")),
    ("train.likelihood_fraction: half of the batch", CIFAR, _with(CIFAR, *_LOOPED, "train.likelihood_fraction=0.5")),
    ("NT-Xent in blocks: 32,768 views, loss alone", _with(LOSS, *LOSS.overrides[:2], "block=32768"), LOSS),
    ("model.attention: splash instead of plain", _with(PALETTE, "model.attention=plain"), PALETTE),
    ("mesh.fsdp: 8 instead of 1", _with(MIDDLE, "mesh.fsdp=1"), MIDDLE),
)


def main(argv: list[str]) -> None:
    """Compiles what has no result yet; prints the tables."""
    flags.FLAGS(argv)
    results = Results(pathlib.Path(WORKDIR.value))
    scale = (SMALLEST,) if QUICK.value else tuple(case for case in SCALE if _has_compiler(case))
    switches = () if QUICK.value else SWITCHES
    start = time.monotonic()
    for case in dict.fromkeys([*scale, *(case for _, *pair in switches for case in pair)]):
        if time.monotonic() - start < 60 * MINUTES.value:
            results.fill(case)
    print(accelerator_tables.sizes([(case.name, results.get(case)) for case in scale]))
    print(accelerator_tables.collectives([(case.name, load(case), results.get(case)) for case in scale]))
    if switches:
        rows = [(title, *((case.name, results.get(case)) for case in pair)) for title, *pair in switches]
        print(accelerator_tables.switches(rows))


def _has_compiler(case: Case) -> bool:
    """Whether a case can be compiled here; without the TPU's compiler nothing is worth a table."""
    target = parse_topology(case.topology)
    try:
        target.check_compiler()
    except UserError as error:
        if not target.is_gpu:
            raise
        print(f"{case.name}: left out: {error}", flush=True)
        return False
    return True


def load(case: Case):
    """Returns the config of a case, overrides applied."""
    config = runpy.run_path(str(ROOT / "configs" / f"{case.config}.py"))["get_config"]()
    apply(config, list(case.overrides))
    return config


class Results:
    """What was compiled, in `results.json`: {name of the case: {`of`: what it depends on, `answer`}}."""

    def __init__(self, workdir: pathlib.Path) -> None:
        self._workdir, self._path = workdir, workdir / "results.json"
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            self._kept = json.loads(self._path.read_text()) if self._path.exists() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"--workdir={workdir}: cannot be used ({error})") from error

    def get(self, case: Case) -> dict[str, Any] | None:
        """Returns the answer of a case; None where it was not compiled, or something changed since."""
        kept = self._kept.get(case.name, {})
        return kept.get("answer") if kept.get("of") == depends_on(case) else None

    def fill(self, case: Case) -> None:
        """Compiles a case that has no answer yet; a compiler's failure is told and leaves it without."""
        if self.get(case) is not None:
            return
        print(f"{case.name} ...", flush=True)
        start = time.monotonic()
        folder = self._workdir / case.name.replace(" ", "_").replace(":", "_").replace("=", "_")
        try:
            answer = _loss(case) if case.config == "nt_xent" else _step(case, folder)
        except CompilerError as error:
            print(f"  {error}", flush=True)
            return
        print(f"  {time.monotonic() - start:.0f} s", flush=True)
        self._kept[case.name] = {"of": depends_on(case), "answer": answer}
        write_whole(self._path, json.dumps(self._kept, indent=1) + "\n")


def _step(case: Case, folder: pathlib.Path) -> dict[str, Any]:
    return aot.compile_for(case.topology, load(case), folder, lambda line: None)


def _loss(case: Case) -> dict[str, Any]:
    """Compiles the contrastive loss and its gradient alone, in a process of its own."""
    sizes = [override.split("=")[1] for override in case.overrides]
    command = [sys.executable, "-m", "benchmarks.loss_worker", case.topology, *sizes]
    environment = aot.worker_environment(dict(os.environ))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilerError(aot.crash_reason(done.returncode, done.stderr))
    return json.loads(done.stdout)


def depends_on(case: Case) -> dict[str, str]:
    """Returns what an answer depends on beside the case: versions, and digests of the package and of the config."""
    compilers = hardware.versions() if parse_topology(case.topology).is_gpu else {}
    names = ("jax", "jaxlib", "flax", "optax") + (() if compilers else ("libtpu",))
    package = hashlib.sha256(b"".join(path.read_bytes() for path in sorted((ROOT / "hybrid_jax").rglob("*.py"))))
    found = {name: importlib.metadata.version(name) for name in names} | compilers
    if case.config != "nt_xent":
        found["config"] = hashlib.sha256(json.dumps(load(case).to_dict(), sort_keys=True).encode()).hexdigest()
    return found | {"package": package.hexdigest()}


if __name__ == "__main__":
    try:
        main(sys.argv)
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
