"""Worker process that compiles a train step for a topology: `python -m hybrid_jax.aot.worker REQUEST ANSWER`.

A separate process, because the TPU compiler crashes on some inputs, and because its environment must be set
before JAX is imported. `hybrid_jax.aot.compile` writes the JSON file REQUEST and reads ANSWER.
"""

import importlib.metadata
import json
import math
import pathlib
import re
import sys
import time
from typing import Any

import jax
from jax.experimental import topologies

from hybrid_jax import config as config_lib
from hybrid_jax import sharding, train_step
from hybrid_jax.aot import hardware, hlo, kernels
from hybrid_jax.errors import UserError
from hybrid_jax.models import flops

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def out_of_memory(message: str) -> tuple[int, int] | None:
    """Parses the TPU compiler's out-of-memory error.

    Returns:
      (needed, available) bytes of one device's HBM, including arguments and results (although the message only
      mentions temporaries); None for any other error.
    """
    size = r"\(?([\d.]+)([KMGT]?)\)?"
    patterns = (rf"HLO temporaries {size} exceeds available HBM {size}", rf"Used {size} of {size} hbm")
    found = next(filter(None, (re.search(pattern, message) for pattern in patterns)), None)
    if found is None:
        return None
    needed, needed_unit, available, unit = found.groups()
    return round(float(needed) * _UNITS[needed_unit]), round(float(available) * _UNITS[unit])


def topology_devices(generation: str, shape: list[int], slices: int) -> list[Any]:
    """Returns device descriptions of a topology, which need not be present.

    Raises:
      UserError: the TPU compiler does not support the topology.
    """
    if generation in hardware.GPUS:
        hosts, each = shape
        target = hardware.target_config(generation)
        return topologies.get_topology_desc(platform="cuda", target_config=target, topology=f"1x{hosts}x{each}").devices
    name = f"{generation}:{'x'.join(map(str, shape))}"
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if generation == "v4":
        # One device for both cores of a chip, as on Cloud TPU.
        options["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--topology={name}: not supported by the TPU compiler ({reason})") from error


def argument_bytes(arguments) -> int:
    """Returns the bytes per device, without padding, of a tree of `jax.ShapeDtypeStruct` with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(arguments))


def compile_step(request: dict[str, Any]) -> dict[str, Any]:
    """Compiles the train step of a config for a topology.

    Args:
      request: `config` (as `config.json`), `generation`, `shape`, `slices`.

    Returns:
      The content of `compile.json` without the verdict.

    Raises:
      UserError: the mesh or the batch does not fit the topology.
    """
    config = config_lib.from_dict(request["config"])
    generation = request["generation"]
    devices = topology_devices(generation, request["shape"], request["slices"])
    mesh = sharding.make_mesh(config, devices)
    state, images = train_step.abstract_arguments(config, mesh)
    answer: dict[str, Any] = {
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
        "compilers": _compilers(generation),
        "devices": len(devices),
        "mesh": dict(mesh.shape),
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)),
        "flops": flops.total(config),
        "arguments_bytes_per_device": argument_bytes((state, images)),
    }
    step: Any = train_step.make_train_step(config, mesh)
    start = time.perf_counter()
    try:
        compiled = step.lower(state, images).compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = out_of_memory(str(error))
        if sizes is None:
            raise
        answer |= dict(zip(("peak_bytes_per_device", "available_bytes_per_device"), sizes, strict=True))
        return answer | {"fits": False, "collectives": None, "compile_seconds": time.perf_counter() - start}
    answer["compile_seconds"] = time.perf_counter() - start
    return answer | memory(compiled.memory_analysis()) | _traffic(config, generation, len(devices), compiled.as_text())


def _compilers(generation: str) -> dict[str, str]:
    return hardware.versions() if generation in hardware.GPUS else {"libtpu": importlib.metadata.version("libtpu")}


def attention_form(text: str) -> str:
    """Returns the attention implementation in a compiled program's text (`models.attention`), kernels first."""
    calls = {"splash": 'custom_call_target="tpu_custom_call"', "cudnn": 'custom_call_target="__cudnn$fmha'}
    return next((name for name, call in calls.items() if call in text), "plain")


def memory(stats) -> dict[str, Any]:
    """Returns the fields of `compile.json` from a compiled program's `memory_analysis()`, in bytes per device."""
    # The compiler's own peak was observed at two thirds of this sum; use the larger.
    held = stats.argument_size_in_bytes + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
    held += stats.output_size_in_bytes - stats.alias_size_in_bytes
    return {
        "fits": True,
        "peak_bytes_per_device": max(held, stats.peak_memory_in_bytes),
        "compiler_peak_bytes_per_device": stats.peak_memory_in_bytes,
        "arguments_bytes_per_device": stats.argument_size_in_bytes,
        "temporaries_bytes_per_device": stats.temp_size_in_bytes,
        "output_bytes_per_device": stats.output_size_in_bytes,
        "aliased_bytes_per_device": stats.alias_size_in_bytes,
        "program_bytes_per_device": stats.generated_code_size_in_bytes,
    }


def _traffic(config, generation: str, devices: int, text: str) -> dict[str, Any]:
    found = hlo.count(text) | {"attention": attention_form(text), "compiled_flops_per_device": hlo.flops(text)}
    if generation in hardware.GPUS:
        gpu = hardware.GPUS[generation]
        # Communication between GPUs is not modelled.
        alone = kernels.estimate(text, flops.total(config), gpu.flops, gpu.memory_rate) if devices == 1 else None
        return found | {"estimate": alone}
    parts = flops.train_step(config)
    computed = hardware.computed_flops(parts, config.model.remat, config.train.microbatches)
    ici = sum(kind["moved_bytes"] for kind in found["collectives"].values())
    estimate = hardware.estimate(
        generation, devices, math.fsum(parts.values()), computed, 2 * found["hbm_written_bytes"], ici,
        found["between_slices"]["bytes"],
    )  # fmt: skip
    return {**found, "estimate": estimate}


def main(request: str, answer: str) -> None:
    """Reads REQUEST, compiles, writes ANSWER, which may hold a user error."""
    try:
        result = compile_step(json.loads(pathlib.Path(request).read_text(encoding="utf-8")))
    except UserError as error:
        result = {"mistake": str(error)}
    pathlib.Path(answer).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
