"""Floating-point operations of the matrix products that a compiled program holds, on one device.

The compiler's own count takes a loop's body once; here it counts as often as the loop runs. Products are `dot`s, the
`convolution`s that the TPU compiler makes of them, and calls of cuBLAS; what a kernel of another kind computes
(splash, cuDNN's attention) is not to be seen in the program and not counted.
"""

import json
import math
import re

from hybrid_jax import hlo
from hybrid_jax.hlo import Instruction

_WINDOW = {"size": 1, "stride": 1, "pad": (0, 0), "lhs_dilate": 1, "rhs_dilate": 1}


def flops(text: str) -> int:
    """Returns the operations of a program's text, two for a multiply-add, every loop's body as often as it runs."""
    program, entry = hlo.parse(text)
    times = hlo.repetitions(program, entry)
    total = 0
    for name, lines in program.items():
        if times[name] == 0:
            continue
        shapes = {i.name: i.shape for i in lines}
        total += times[name] * sum(instruction_flops(i, shapes) for i in lines)
    return total


def instruction_flops(instruction: Instruction, shapes: dict[str, str]) -> int:
    """Returns the operations of one instruction, given its computation's printed shapes; 0 where it is no product."""
    count = {"dot": _dot, "convolution": _convolution, "custom-call": _cublas}.get(instruction.opcode)
    if count is None:
        return 0
    sides = [hlo.dimensions(shapes.get(name, "")) for name in hlo.operands(instruction)[:2]]
    return count(instruction, *sides) if len(sides) == 2 else 0


def _dot(instruction: Instruction, lhs: list[int], rhs: list[int]) -> int:
    found = re.search(r"\blhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    contracted = [int(axis) for axis in found[1].split(",") if axis] if found else []
    return 2 * math.prod(hlo.dimensions(instruction.shape)) * math.prod(lhs[axis] for axis in contracted)


def _cublas(instruction: Instruction, lhs: list[int], rhs: list[int]) -> int:
    """A product that cuBLAS computes; its result may be followed by scratch memory, in a tuple."""
    if 'custom_call_target="__cublas$' not in instruction.rest:
        return 0
    found = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', instruction.rest)
    contracted = [int(axis) for axis in json.loads(found[1])] if found else []
    return 2 * math.prod(hlo.dimensions(instruction.shape)) * math.prod(lhs[axis] for axis in contracted)


def _convolution(instruction: Instruction, lhs: list[int], rhs: list[int]) -> int:
    """A product as a convolution, whose batch axes the TPU compiler writes as spatial ones full of holes."""
    found = re.search(r"\bdim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if not found:
        return 0
    left, right, out = found.groups()
    result = hlo.dimensions(instruction.shape)
    total = 2 * result[out.index("b")] * result[out.index("f")] * rhs[right.index("i")]
    for axis, window in enumerate(_windows(instruction, sum(label.isdigit() for label in out))):
        label = str(axis)
        total *= meetings(lhs[left.index(label)], result[out.index(label)], **window)
    return total


def _windows(instruction: Instruction, axes: int) -> list[dict]:
    """The window along each spatial axis, as `meetings` takes it."""
    found = re.search(r"\bwindow=\{([^}]*)\}", instruction.rest)
    given = dict(part.split("=") for part in found[1].split()) if found else {}
    windows = [dict(_WINDOW) for _ in range(axes)]
    for name in _WINDOW:
        for window, value in zip(windows, given[name].split("x") if name in given else (), strict=False):
            window[name] = tuple(map(int, value.split("_"))) if name == "pad" else int(value)
    return windows


def meetings(
    length: int, results: int, size: int, stride: int, pad: tuple[int, int], lhs_dilate: int, rhs_dilate: int
) -> int:
    """Returns how many pairs of a result and a place of the window meet a true input, neither padding nor a hole."""
    end = (length - 1) * lhs_dilate
    return sum(
        0 <= place <= end and place % lhs_dilate == 0
        for result in range(results)
        for place in (result * stride + offset * rhs_dilate - pad[0] for offset in range(size))
    )
