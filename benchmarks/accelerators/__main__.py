"""What the compilers make of the train step for accelerators that are not here, against what it needs at least.

python -m benchmarks.accelerators --workdir=runs/accelerators [--quick] [--minutes=120]

The real train step of each scale config is compiled for the devices it is made for (as `--mode=compile` does), one
after the other, each in a process of its own; and once more without each optimisation that can be switched off. Nothing
runs: bytes and operations are read from the compiled programs. Results stay in `results.json` in the workdir, from
which the same command goes on; a change of the package, of a config or of the compilers compiles anew. Programs for
GPUs are left out where JAX's CUDA compiler is not installed.

`moved` of a collective is what one device sends in rings; its minimum is in benchmarks/accelerators/tables.py. `HBM
moved` is what the program writes to memory, counted twice: once written, once read. `FLOPs` are those of the matrix
products in the program over those that the result needs (hybrid_jax/models/flops.py); what kernels (splash, cuDNN)
compute is not seen.
"""

import hashlib
import json
import os
import pathlib
import runpy
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from absl import flags

from benchmarks import common
from benchmarks.accelerators import tables
from benchmarks.common import ROOT
from hybrid_jax.aot import compile as aot
from hybrid_jax.aot import hardware
from hybrid_jax.errors import CompilerError, UserError
from hybrid_jax.storage.files import write_whole
from hybrid_jax.utils import cli

WORKDIR = flags.DEFINE_string("workdir", None, "Where results are kept.", required=True)
QUICK = flags.DEFINE_boolean("quick", False, "Only the smallest config, on four devices.")
MINUTES = flags.DEFINE_float("minutes", 120.0, "No compilation begins later than this.", lower_bound=0.0)


class Case(NamedTuple):
    """One compilation.

    Attributes:
      config: name of a file in configs/; `nt_xent` for the loss alone, of embeddings.
      topology: as `--topology`.
      overrides: `section.field=value` each; of the loss alone `batch=B`, `dim=E`, `block=rows` (0: its own choice).
    """

    config: str
    topology: str
    overrides: tuple[str, ...] = ()

    def name(self) -> str:
        """Returns its key in `results.json`."""
        return " ".join((self.config, self.topology, *self.overrides))

    def load(self):
        """Returns its config, overrides applied."""
        config = runpy.run_path(str(ROOT / "configs" / f"{self.config}.py"))["get_config"]()
        common.apply(config, self.overrides)
        return config


# Blocks in a loop and computed again, as suits a TPU; the config itself is one GPU's.
_LOOPED = ("model.remat=true", "model.scan_layers=true")
_CIFAR, _PALETTE, _MIDDLE = ("cifar10", "v5e:2x2"), ("imagenet32_igpt_s", "v5e:16x16"), ("imagenet64", "v5e:16x16")
_LOSS = ("batch=16384", "dim=128")
SCALE = (
    Case(*_CIFAR, _LOOPED), Case("cifar10", "h100:8", _LOOPED), Case(*_PALETTE), Case(*_MIDDLE),
    Case("imagenet64", "v5e:16x16x2"), Case("imagenet64_large", "v5e:16x16"),
)  # fmt: skip
# What is switched, of what, and the overrides without it and with it.
SWITCHES = (
    ("model.remat: blocks computed again in the backward pass", _CIFAR, _LOOPED[1:], _LOOPED),
    ("model.scan_layers: one block compiled, looped over", _CIFAR, _LOOPED[:1], _LOOPED),
    ("model.dtype: bfloat16 instead of float32", _CIFAR, (*_LOOPED, "model.dtype=float32"), _LOOPED),
    ("train.microbatches: 4 passes instead of 1", _CIFAR, _LOOPED, (*_LOOPED, "train.microbatches=4")),
    ("train.likelihood_fraction: half of the batch", _CIFAR, _LOOPED, (*_LOOPED, "train.likelihood_fraction=0.5")),
    (
        "NT-Xent in blocks: 32,768 views, loss alone", ("nt_xent", "v5e:2x2"), (*_LOSS, "block=32768"),
        (*_LOSS, "block=0"),
    ),
    ("model.attention: splash instead of plain", _PALETTE, ("model.attention=plain",), ()),
    ("mesh.fsdp: 8 instead of 1", _MIDDLE, ("mesh.fsdp=1",), ()),
)  # fmt: skip


def main() -> None:
    """Compiles what has no result yet; prints the tables."""
    scale = (Case("quickstart", "v5e:2x2"),) if QUICK.value else tuple(case for case in SCALE if _has_compiler(case))
    pairs = [(title, Case(*of, without), Case(*of, having)) for title, of, without, having in SWITCHES]
    pairs = [] if QUICK.value else pairs
    answers = _answers(dict.fromkeys([*scale, *(case for _, *pair in pairs for case in pair)]))
    print(tables.sizes([(case.name(), answers.get(case)) for case in scale]))
    print(tables.collectives([(case.name(), case.load(), answers.get(case)) for case in scale]))
    if pairs:
        named = lambda case: (case.name(), answers.get(case))
        print(tables.switches([(title, named(without), named(having)) for title, without, having in pairs]))


def _has_compiler(case: Case) -> bool:
    """Whether a case can be compiled here; without the TPU's compiler nothing is worth a table."""
    target = hardware.parse_topology(case.topology)
    try:
        target.check_compiler()
    except UserError as error:
        if not target.is_gpu:
            raise
        print(f"{case.name()}: left out: {error}", flush=True)
        return False
    return True


def _answers(cases: Iterable[Case]) -> dict[Case, dict[str, Any]]:
    """Returns what was compiled; `results.json` holds {name: {`of`: what it depends on, `answer`}}."""
    workdir, start, found = pathlib.Path(WORKDIR.value), time.monotonic(), {}
    path = workdir / "results.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        kept = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"--workdir={workdir}: cannot be used ({error})") from error
    for case in cases:
        name, of = case.name(), _depends_on(case)
        if kept.get(name, {}).get("of") != of:
            if time.monotonic() - start > 60 * MINUTES.value:
                continue
            print(f"{name} ...", flush=True)
            began = time.monotonic()
            try:
                kept[name] = {
                    "of": of,
                    "answer": _compiled(case, workdir / name.translate(str.maketrans(" :=", "___"))),
                }
            except CompilerError as error:
                print(f"  {error}", flush=True)
                continue
            print(f"  {time.monotonic() - began:.0f} s", flush=True)
            write_whole(path, json.dumps(kept, indent=1) + "\n")
        found[case] = kept[name]["answer"]
    return found


def _compiled(case: Case, folder: pathlib.Path) -> dict[str, Any]:
    if case.config != "nt_xent":
        return aot.compile_for(case.topology, case.load(), folder, lambda line: None)
    command = [sys.executable, "-m", "benchmarks.accelerators.loss", case.topology]
    command += [override.split("=")[1] for override in case.overrides]
    environment = aot.worker_environment(dict(os.environ))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilerError(aot.crash_reason(done.returncode, done.stderr))
    return json.loads(done.stdout)


def _depends_on(case: Case) -> dict[str, str]:
    """Returns versions, and digests of the package and of the config."""
    digest = lambda content: hashlib.sha256(content).hexdigest()
    files = sorted((ROOT / "hybrid_jax").rglob("*.py"))
    is_gpu = hardware.parse_topology(case.topology).is_gpu
    found = common.versions(
        ("jax", "jaxlib", "flax", "optax") if is_gpu else ("jax", "jaxlib", "flax", "optax", "libtpu")
    )
    found |= {"package": digest(b"".join(path.read_bytes() for path in files))}
    if case.config != "nt_xent":
        found["config"] = digest(json.dumps(case.load().to_dict(), sort_keys=True).encode())
    return found | (hardware.versions() if is_gpu else {})


if __name__ == "__main__":
    cli.run_cli(main, __doc__)
