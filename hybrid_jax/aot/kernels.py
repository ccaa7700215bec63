"""Kernels of a compiled GPU program, and their total time at given rates.

GPU kernels run one after the other, each bound by compute or memory. So the sum of each kernel's larger time is a
better estimate than the larger of both sums, which a TPU with prefetching may reach.
"""

import dataclasses
import re

from hybrid_jax.aot import hlo
from hybrid_jax.aot.hlo import Instruction, Program

_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel launch or library call.

    Attributes:
      name: path of the operation in the traced function.
      runs: runs per step.
      flops: operations of its matrix products.
      moved_bytes: bytes read and written, without cache hits between kernels.
    """

    name: str
    runs: int
    flops: int
    moved_bytes: int


def kernels(text: str) -> list[Kernel]:
    """Returns the kernels of a compiled program's text (`compiled.as_text()`)."""
    program, entry = hlo.parse(text)
    runs = hlo.repetitions(program, entry)
    inside = {name for lines in program.values() for i in lines if i.opcode in hlo.FUSIONS for name in hlo.called(i)}
    return [
        _kernel(i, {other.name: other.shape for other in lines}, program, runs[name])
        for name, lines in program.items()
        if name not in inside and runs[name]
        for i in lines
        if i.opcode not in hlo.WRITES_NOTHING and not i.opcode.endswith("-done")
    ]


def seconds(found: list[Kernel], flops_rate: float, memory_rate: float, launch: float) -> float:
    """Returns the total time of all kernels, in seconds.

    Args:
      found: kernels of a step.
      flops_rate: operations per second.
      memory_rate: bytes per second.
      launch: overhead per kernel, in seconds.
    """
    return sum(k.runs * (launch + max(k.flops / flops_rate, k.moved_bytes / memory_rate)) for k in found)


# Shares of the two peaks that kernels of large programs reach, and the launch overhead in a CUDA graph, in seconds.
_SHARE_OF_FLOPS, _SHARE_OF_MEMORY, _LAUNCH = 0.6, 0.83, 1.5e-6
ASSUMPTIONS = (
    "kernels one after the other, each bound by its products or by its memory: lower bound at the card's peak rates, "
    f"upper at {_SHARE_OF_FLOPS:.0%} and {_SHARE_OF_MEMORY:.0%} of them and {_LAUNCH * 1e6} us a kernel; the second "
    "cache, what autotuning would choose, and the operations of cuDNN's attention are not counted"
)


def estimate(text: str, flops: float, peak_flops: float, peak_memory: float) -> dict[str, object]:
    """Estimates bounds of a step's time on one GPU; not a measurement.

    Args:
      text: text of the compiled program.
      flops: operations without recomputation (`hybrid_jax.models.flops`).
      peak_flops: bfloat16 operations per second of the GPU.
      peak_memory: memory bandwidth, in bytes per second.

    Returns:
      {`label`, `step_seconds` (lower, upper), `mfu` (at the lower, at the upper bound), `kernels` per step,
      `bound_by`, `assumptions`}.
    """
    found = kernels(text)
    high_rates = _SHARE_OF_FLOPS * peak_flops, _SHARE_OF_MEMORY * peak_memory
    bounds = seconds(found, peak_flops, peak_memory, 0), seconds(found, *high_rates, _LAUNCH)
    by_memory = [k for k in found if k.moved_bytes / high_rates[1] > k.flops / high_rates[0]]
    memory_bound = seconds(by_memory, *high_rates, _LAUNCH) > bounds[1] / 2
    return {
        "label": "model estimate",
        "step_seconds": bounds,
        "mfu": tuple(flops / (peak_flops * bound) for bound in bounds),
        "kernels": sum(k.runs for k in found),
        "bound_by": "memory" if memory_bound else "compute",
        "assumptions": ASSUMPTIONS,
    }


def _kernel(instruction: Instruction, shapes: dict[str, str], program: Program, runs: int) -> Kernel:
    flops = hlo.instruction_flops(instruction, shapes)
    operands = hlo.operands(instruction)
    read = {name: hlo.shape_bytes(shapes.get(name, "")) for name in operands}
    if instruction.opcode in hlo.FUSIONS:
        body = program.get(hlo.called(instruction)[0], [])
        inner = {i.name: i.shape for i in body}
        flops += sum(hlo.instruction_flops(i, inner) for i in body)
        for i in body:
            if i.opcode == "parameter":
                name = operands[int(i.rest.partition(")")[0])]
                read[name] = min(read[name], _used_bytes(i, body))
    path = re.search(r'op_name="([^"]*)"', instruction.rest)
    moved = sum(read.values()) + hlo.written(instruction, program)
    return Kernel(path[1] if path else instruction.name, runs, flops, moved)


def _used_bytes(parameter: Instruction, body: list[Instruction]) -> int:
    """Returns the bytes of a parameter that a fusion reads: the slices of a look-up, none for an in-place update."""
    used = 0
    for user in body:
        names = hlo.operands(user)
        if parameter.name not in names:
            continue
        if user.opcode in _SLICES and names[0] == parameter.name:
            used += hlo.shape_bytes(user.shape)
        elif user.opcode != "dynamic-update-slice" or names[0] != parameter.name:
            return hlo.shape_bytes(parameter.shape)
    return used
