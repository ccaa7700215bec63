"""Mode `compile`: ahead-of-time compilation of the train step, and whether it fits a device's memory.

Nothing runs. It shows that the compiler accepts the step, the planned memory and the communication between devices;
not speed or numerical results.
"""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from hybrid_jax.aot import hardware
from hybrid_jax.aot.hardware import GIB, parse_topology
from hybrid_jax.errors import CompilerError, UserError

# With less free memory, a small change of shapes or versions may not fit.
_NARROW = 0.1
_ATTENTION = {
    "splash": "splash kernel: scores stay out of HBM",
    "cudnn": "cuDNN flash attention: scores stay out of memory",
    "plain": "plain matrix products, scores in memory",
}


def compile_for(topology: str | None, config, workdir: str | os.PathLike, log: Callable[[str], None]) -> dict[str, Any]:
    """Compiles the config's train step for a topology; prints the results and writes `compile.json`.

    Args:
      topology: as in `parse_topology`.
      config: a valid config.
      workdir: folder for `compile.json`, and for `compile.log` if the compiler fails; created if missing.
      log: function that prints a line.

    Returns:
      The content of `compile.json`: bytes per device, FLOPs of a step on all devices, seconds.

    Raises:
      UserError: the topology is unknown, does not fit the mesh or the batch, or has no installed compiler.
      CompilerError: the compiler failed for another reason.
    """
    target = parse_topology(topology)
    target.check_compiler()
    workdir = pathlib.Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written ({error.strerror})") from error
    log(f"compiling the train step for {topology}, {target.devices:,} devices ...")
    answer = _ask_worker({"config": config.to_dict(), **dataclasses.asdict(target)}, workdir, log)
    if "mistake" in answer:
        raise UserError(answer["mistake"])
    report = {"topology": topology, "slices": target.slices, **answer}
    report.setdefault("available_bytes_per_device", target.memory_bytes)
    if target.is_gpu:
        # The GPU compiler does not check the memory.
        report["fits"] = report["peak_bytes_per_device"] <= report["available_bytes_per_device"]
        report["hosts"] = target.shape[0]
        report["notes"] = hardware.notes(report)
    report["verdict"] = verdict(report, config, target.devices // target.slices)
    for line in describe(report):
        log(line)
    path = workdir / "compile.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    log(f"wrote {path}")
    return report


def worker_environment(outer: dict[str, str]) -> dict[str, str]:
    """Returns environment variables for compilation without devices, without settings of other backends."""
    # Without devices the cache cannot be read; several compilations may run on one machine.
    own = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_LOG_DIR": "disabled",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    return {name: value for name, value in outer.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")} | own


def _ask_worker(request: dict[str, Any], workdir: pathlib.Path, log: Callable[[str], None]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        question, answer = pathlib.Path(folder, "request.json"), pathlib.Path(folder, "answer.json")
        question.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "hybrid_jax.aot.worker", str(question), str(answer)]
        code, said = _run_telling_time(command, log)
        if code == 0 and answer.exists():
            return json.loads(answer.read_text(encoding="utf-8"))
    path = workdir / "compile.log"
    path.write_text(said, encoding="utf-8")
    raise CompilerError(f"{crash_reason(code, said)}; its output is in {path}")


def _run_telling_time(command: list[str], log: Callable[[str], None]) -> tuple[int, str]:
    """Runs a command, logging the time every minute; returns its exit code and standard error."""
    start = time.monotonic()
    with subprocess.Popen(
        command, env=worker_environment(dict(os.environ)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while True:
                try:
                    said = process.communicate(timeout=60)[1]
                    return process.returncode, said
                except subprocess.TimeoutExpired:
                    log(f"  still compiling after {time.monotonic() - start:.0f} s")
        finally:
            process.kill()


def crash_reason(code: int, stderr: str) -> str:
    """Returns one line on how the compiler's process ended."""
    how = f"ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    told = [line for line in lines if "Check failed" in line or re.match(r"[\w.]+(Error|Exception)\b", line)]
    said = (told or lines or ["no output"])[-1]
    return f"the compiler {how}: {said[:300]}"


def verdict(report: dict[str, Any], config, slice_devices: int) -> str:
    """Returns one line: whether the step fits a device's memory, with what margin, and what to change if not.

    Args:
      report: `fits`, and `peak_`, `compiler_peak_`, `available_` and `arguments_bytes_per_device`.
      config: the compiled config.
      slice_devices: number of devices of one slice, the limit of `mesh.fsdp`.
    """
    peak, available = report["peak_bytes_per_device"], report["available_bytes_per_device"]
    sizes = f"{peak / GIB:.2f} of {available / GIB:.2f} GiB a device"
    if report["fits"]:
        if peak > available:
            own = report["compiler_peak_bytes_per_device"] / GIB
            return (
                f"fits, but narrowly: the compiler's own peak is {own:.2f} GiB a device, the sum of the parts {sizes}"
            )
        free = 1 - peak / available
        return f"fits: {sizes}, {free:.0%} free" + (", narrowly" if free < _NARROW else "")
    return f"does not fit: needs {sizes}; {'; or '.join(advice(report, config, slice_devices))}"


def advice(report: dict[str, Any], config, slice_devices: int) -> list[str]:
    """Returns which settings to change, the most promising first."""
    found = []
    mesh, model, train = config.mesh, config.model, config.train
    if mesh.fsdp < slice_devices:
        found.append(f"raise mesh.fsdp={mesh.fsdp}")
    if not model.remat:
        found.append("set model.remat=True")
    if train.batch_size // report["devices"] > train.microbatches:
        found.append(f"raise train.microbatches={train.microbatches}")
    found.append(f"lower train.batch_size={train.batch_size}")
    mostly_state = report["arguments_bytes_per_device"] > report["available_bytes_per_device"] / 2
    if mesh.fsdp < slice_devices and not mostly_state:
        # Sharding the state helps little if activations use most of the memory.
        found.append(found.pop(0))
    return found


def describe(report: dict[str, Any]) -> list[str]:
    """Returns the lines that are printed."""
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
    grouped = f"{report['hosts']} host(s)" if "hosts" in report else f"{report['slices']} slice(s)"
    lines = [
        f"devices      {report['devices']:,} in {grouped}, mesh {mesh}",
        f"model        {report['parameters']:,} parameters, {report['flops']:.4g} FLOPs a step (analytical)",
        f"memory       {report['verdict']}",
    ]
    if report["collectives"] is not None:
        parts = ("arguments", "temporaries", "output", "aliased", "program")
        sizes = [f"{part} {report[f'{part}_bytes_per_device'] / GIB:.2f}" for part in parts]
        lines.append(f"  of which   {', '.join(sizes)} GiB")
        for kind, found in report["collectives"].items():
            lines.append(f"{kind:<19}{found['count']:>8,} a step, {found['bytes'] / 2**20:>12,.1f} MiB a device")
        if report["slices"] > 1:
            found = report["between_slices"]
            lines.append(
                f"{'between slices':<19}{found['count']:>8,} a step, {found['bytes'] / 2**20:>12,.1f} MiB a device"
            )
        lines.append(f"{'attention':<13}{_ATTENTION[report['attention']]}")
        if report["estimate"] is not None:
            lines.append(_estimate_line(report["estimate"]))
    lines += report.get("notes", [])
    compilers = ", ".join(f"{name} {version}" for name, version in report["compilers"].items())
    lines.append(f"compiled in {report['compile_seconds']:.1f} s with jax {report['jax']}, {compilers}")
    return lines


def _estimate_line(estimate: dict[str, Any]) -> str:
    low, high = estimate["step_seconds"]
    return (
        f"{estimate['label']}: step {low:.3g} to {high:.3g} s, MFU {estimate['mfu'][1]:.0%} to "
        f"{estimate['mfu'][0]:.0%}, bound by {estimate['bound_by']}; a bound from peak rates, not a measurement"
    )
