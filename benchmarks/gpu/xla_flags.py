"""The hybrid step of cifar10.py under sets of XLA's flags, each in a process of its own; the default is in `steps`.

python -m benchmarks.gpu.xla_flags [--tiny] [--cases=...]
"""

import os
import subprocess
import sys

from benchmarks.gpu.record import ROOT, Record, stage_flags

_WITH_LOOPS = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL"
SETS = {
    "no CUDA graphs": "--xla_gpu_enable_command_buffer=",
    "CUDA graphs with loops": f"--xla_gpu_enable_command_buffer={_WITH_LOOPS}",
    "no Triton products": "--xla_gpu_enable_triton_gemm=false",
    "latency-hiding scheduler": "--xla_gpu_enable_latency_hiding_scheduler=true",
    "deterministic": "--xla_gpu_deterministic_ops=true",
}
_LAST = 120  # characters of what a failed process said


def main() -> None:
    """Runs the stage `steps` under each set."""
    given = stage_flags(__doc__ or "", "cases")
    cases = given.cases or "cifar10/hybrid"
    for name, text in SETS.items():
        command = [sys.executable, "-m", "benchmarks.gpu.steps", "--stage=xla_flags", f"--prefix={name}, "]
        command += [f"--cases={cases}"] + ["--tiny"] * given.tiny
        outer = os.environ.get("XLA_FLAGS", "")
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": f"{outer} {text}".strip()},
            stderr=subprocess.PIPE,
            text=True,
        )
        sys.stderr.write(done.stderr)
        if done.returncode:
            # A flag that this version does not know ends the process.
            said = " ".join(done.stderr.split())[-_LAST:]
            Record("xla_flags", given.tiny).put(name, {"failed": f"exit code {done.returncode}: {said}"})


if __name__ == "__main__":
    main()
