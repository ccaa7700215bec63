"""Analysis of compiled HLO text: computations, communication, memory traffic and matrix products.

Counts are per device and step. Loop bodies count once per iteration: the compiler notes the number of iterations
(`known_trip_count`); otherwise the constant in the loop's condition is used.

Two transformations of the TPU compiler are reversed. It splits an asynchronous collective over several fusions (start,
done, and computation in between) with one channel: only the start counts. And it fuses an all-reduce with a slice of
its result, which is a reduce-scatter.

Matrix products are `dot`s, the `convolution`s that the TPU compiler replaces them by, and cuBLAS calls. The operations
of other kernels (splash, cuDNN's attention) are not visible in the program and not counted.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "collective_permute")
FUSIONS = ("fusion", "fusion-start")
# Views of other results, control flow (whose bodies are counted separately), and instructions without a result.
WRITES_NOTHING = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "opt-barrier", "partition-id", "replica-id", "async-start", "async-update", "async-done", "fusion-done",
}  # fmt: skip
_WINDOW = {"size": 1, "stride": 1, "pad": (0, 0), "lhs_dilate": 1, "rhs_dilate": 1}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: name of its result.
      shape: shape of its result, as printed, with layout.
      opcode: its operation.
      rest: operands and attributes, as printed.
      root: whether it is the result of the computation.
    """

    name: str
    shape: str
    opcode: str
    rest: str
    root: bool


Program = dict[str, list[Instruction]]
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"^ ?([\w\-]+)\((.*)$")


def parse(text: str) -> tuple[Program, str]:
    """Returns the computations by name, and the name of the entry computation."""
    program: Program = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = program.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _LINE.match(line)):
            shape, rest = _split_shape(found[3])
            opcode = _OPCODE.match(rest)
            if opcode:
                current.append(Instruction(found[2], shape, opcode[1], opcode[2], bool(found[1])))
    return program, entry


def _split_shape(text: str) -> tuple[str, str]:
    """`(f32[2]{0}, s32[]) while(...)` -> the shape and the rest of the line."""
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def arrays(shape: str) -> Iterator[tuple[int, bool]]:
    """Yields the bytes of each array of a printed shape, and whether it is outside HBM (memory space S(n), n > 0)."""
    for kind, sizes, layout in re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", shape):
        bits = _BITS.get(kind) or int((re.search(r"\d+", kind) or [0])[0])
        count = math.prod(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        yield count * bits // 8, "S(" in layout


def shape_bytes(shape: str) -> int:
    """Returns the bytes of a printed shape: `f32[2,3]{1,0}` -> 24; for a tuple the sum."""
    return sum(size for size, _ in arrays(shape))


def dimensions(shape: str) -> list[int]:
    """Returns the dimensions of a printed shape, or of the first array of a tuple: `f32[2,3]{1,0}` -> [2, 3]."""
    found = re.search(r"\b[a-z]\w*\[([\d,<=]*)\]", shape)
    return [int(size.lstrip("<=")) for size in found[1].split(",") if size] if found else []


def attribute(instruction: Instruction, name: str) -> str | None:
    """Returns the number after `name=`, as text, or None."""
    found = re.search(rf"\b{name}=(\d+)", instruction.rest)
    return found[1] if found else None


def operands(instruction: Instruction) -> list[str]:
    """Returns the names of an instruction's operands."""
    return re.findall(r"%([\w.\-]+)", instruction.rest.split(")")[0])


def called(instruction: Instruction) -> list[str]:
    """Returns the computations that an instruction calls, except scalar ones (`to_apply` of reductions)."""
    names = re.findall(r"\b(?:calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)", instruction.rest)
    for group in re.findall(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}", instruction.rest):
        names += [name.strip().lstrip("%") for name in group.split(",")]
    if instruction.opcode == "call":
        names += re.findall(r"\bto_apply=%?([\w.\-]+)", instruction.rest)
    return names


def trip_count(instruction: Instruction, program: Program) -> int:
    """Returns the iterations of a `while`: the compiler's note, else the largest constant in its condition, else 1."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.rest)
    if noted:
        return int(noted[1])
    condition = re.search(r"\bcondition=%?([\w.\-]+)", instruction.rest)
    lines = program.get(condition[1], []) if condition else []
    constants = [int(found[1]) for i in lines if i.opcode == "constant" and (found := re.match(r"(\d+)\)", i.rest))]
    return max(constants, default=1)


def repetitions(program: Program, entry: str) -> dict[str, int]:
    """Returns the runs of each computation per step; every branch of a conditional counts once."""

    @functools.cache
    def runs(name: str) -> int:
        if name == entry:
            return 1
        return sum(runs(caller) * times for caller, times in callers.get(name, ()))

    callers: dict[str, list[tuple[str, int]]] = {}
    for caller, lines in program.items():
        for instruction in lines:
            times = trip_count(instruction, program) if instruction.opcode == "while" else 1
            for name in called(instruction):
                callers.setdefault(name, []).append((caller, times))
    return {name: runs(name) for name in program}


def group_size(instruction: Instruction) -> int:
    """Returns the group size of a collective, from any of the three notations of `replica_groups`.

    `{{0,1},{2,3}}`, `[2,2]<=[4]` and `mesh['a'=2,'b'=2] {'a'}` all give 2; without groups 2 is assumed.
    """
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", instruction.rest)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        return math.prod(int(part or sizes[name]) for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2]))
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", instruction.rest)
    if listed:
        return listed[1].count(",") + 1
    iota = re.search(r"replica_groups=\[[\d,]*?(\d+)\]<=", instruction.rest)
    return int(iota[1]) if iota else 2


def count(text: str) -> dict[str, Any]:
    """Counts the traffic of a step on one device.

    Args:
      text: text of the compiled program (`compiled.as_text()`), with shapes of one device.

    Returns:
      `collectives`: {kind: {`count`, `bytes` of the results, `moved_bytes` of a ring}}; `between_slices`: {`count`,
      `bytes`} sent to other slices; `hbm_written_bytes`: results in HBM, for in-place updates only the updated
      part.
    """
    program, entry = parse(text)
    times = repetitions(program, entry)
    fusions = {name: i for lines in program.values() for i in lines if i.opcode in FUSIONS for name in called(i)}
    kinds: dict[str, dict[str, float]] = {kind: {"count": 0, "bytes": 0, "moved_bytes": 0} for kind in KINDS}
    for kind, runs, size, moved in _collectives(program, times, fusions):
        kinds[kind]["count"] += runs
        kinds[kind]["bytes"] += runs * size
        kinds[kind]["moved_bytes"] += round(runs * moved)
    sends = [(times[name], i) for name, lines in program.items() for i in lines if i.opcode == "send"]
    total = sum(
        times[name] * written(i, program) for name, lines in program.items() if name not in fusions for i in lines
    )
    return {
        "collectives": kinds,
        "between_slices": {
            "count": sum(runs for runs, _ in sends),
            "bytes": sum(runs * next(arrays(i.shape))[0] for runs, i in sends),
        },
        "hbm_written_bytes": total,
    }


def _kind(instruction: Instruction) -> str:
    return instruction.opcode.removesuffix("-start").replace("-", "_")


def _collectives(program: Program, times: dict[str, int], fusions: dict[str, Instruction]):
    """Yields (kind, runs, bytes of the result, bytes moved); for a split collective, those of its start."""
    channels: dict[str, list[tuple[bool, tuple[str, int, int, float]]]] = {}
    found = [(name, i, kind) for name, lines in program.items() for i in lines if (kind := _kind(i)) in KINDS]
    for name, i, kind in found:
        size = _result_bytes(i)
        moved = moved_bytes(kind, size, group_size(i))
        fusion = fusions.get(name)
        if kind == "all_reduce" and fusion and any("slice" in other.opcode for other in program[name]):
            kind, moved, size = "reduce_scatter", moved / 2, shape_bytes(fusion.shape)
        continues = name.startswith("async_collective_fusion")
        continues |= fusion is not None and fusion.name.startswith("async-collective-done")
        channel = str(attribute(i, "channel_id")) if fusion else f"{name}/{i.name}"
        channels.setdefault(channel, []).append((continues, (kind, times[name], size, moved)))
    for pieces in channels.values():
        # Pieces inside an overlapped loop run more often than the collective itself.
        starts = [piece for continues, piece in pieces if not continues]
        yield from starts or [min((piece for _, piece in pieces), key=lambda piece: piece[1])]


def moved_bytes(kind: str, result: int, group: int) -> float:
    """Returns the bytes that a device sends in a ring (Patarasuk & Yuan 2009, J. Parallel Distrib. Comput. 69).

    Args:
      kind: one of `KINDS`.
      result: bytes of the collective's result on one device.
      group: devices in the group.
    """
    share = (group - 1) / group
    shares = {"all_reduce": 2 * share, "all_gather": share, "reduce_scatter": group - 1, "all_to_all": share}
    return result * shares.get(kind, 1)


def _result_bytes(instruction: Instruction) -> int:
    """Returns the bytes of a collective's result; shapes of some asynchronous starts begin with operands."""
    sizes = [size for size, _ in arrays(instruction.shape)]
    if instruction.opcode == "collective-permute-start":
        # Two scalars follow the results.
        sizes = [size for size in sizes if size > 4]
    if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)


def written(instruction: Instruction, program: Program) -> int:
    """Returns the bytes that an instruction writes to HBM, for in-place updates only the updated part."""
    opcode = instruction.opcode
    starts = (opcode.endswith("-start") and opcode not in FUSIONS) or instruction.name.startswith(
        "async-collective-start"
    )
    if opcode in WRITES_NOTHING or starts or opcode in ("send", "recv"):
        return 0
    sizes = [0 if elsewhere else size for size, elsewhere in arrays(instruction.shape)]
    if opcode == "dynamic-update-slice":
        return 0
    if opcode in FUSIONS:
        lines = program.get(called(instruction)[0], [])
        if opcode == "fusion-start":
            # Its shape includes operands.
            sizes = [shape_bytes(root.shape) for root in _roots(lines)]
        updates = [_update_bytes(root, lines) for root in _roots(lines)]
        if len(updates) == len(sizes):
            sizes = [size if new is None else min(size, new) for size, new in zip(sizes, updates, strict=True)]
    return sum(sizes)


def _roots(lines: list[Instruction]) -> list[Instruction]:
    """Returns the instructions that compute a fusion's results."""
    by_name = {i.name: i for i in lines}
    root = next((i for i in lines if i.root), None)
    if root is None:
        return []
    return [root] if root.opcode != "tuple" else [by_name[name] for name in operands(root) if name in by_name]


def _update_bytes(root: Instruction, lines: list[Instruction]) -> int | None:
    """Returns the bytes that a `dynamic-update-slice` writes; None for other instructions."""
    if root.opcode != "dynamic-update-slice":
        return None
    shapes = {i.name: i.shape for i in lines}
    names = operands(root)
    return shape_bytes(shapes.get(names[1], "")) if len(names) > 1 else None


def flops(text: str) -> int:
    """Returns the operations of a program, two per multiply-add, with loop bodies once per iteration."""
    program, entry = parse(text)
    times = repetitions(program, entry)
    total = 0
    for name, lines in program.items():
        if times[name] == 0:
            continue
        shapes = {i.name: i.shape for i in lines}
        total += times[name] * sum(instruction_flops(i, shapes) for i in lines)
    return total


def instruction_flops(instruction: Instruction, shapes: dict[str, str]) -> int:
    """Returns the operations of an instruction, given the printed shapes of its computation; 0 if not a product."""
    count = {"dot": _dot, "convolution": _convolution, "custom-call": _cublas}.get(instruction.opcode)
    if count is None:
        return 0
    sides = [dimensions(shapes.get(name, "")) for name in operands(instruction)[:2]]
    return count(instruction, *sides) if len(sides) == 2 else 0


def _dot(instruction: Instruction, lhs: list[int], rhs: list[int]) -> int:
    found = re.search(r"\blhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    contracted = [int(axis) for axis in found[1].split(",") if axis] if found else []
    return 2 * math.prod(dimensions(instruction.shape)) * math.prod(lhs[axis] for axis in contracted)


def _cublas(instruction: Instruction, lhs: list[int], rhs: list[int]) -> int:
    """Operations of a cuBLAS call; its result may be a tuple with scratch memory."""
    if 'custom_call_target="__cublas$' not in instruction.rest:
        return 0
    found = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', instruction.rest)
    contracted = [int(axis) for axis in json.loads(found[1])] if found else []
    return 2 * math.prod(dimensions(instruction.shape)) * math.prod(lhs[axis] for axis in contracted)


def _convolution(instruction: Instruction, lhs: list[int], rhs: list[int]) -> int:
    """Operations of a product as a convolution; the TPU compiler encodes batch axes as dilated spatial axes."""
    found = re.search(r"\bdim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if not found:
        return 0
    left, right, out = found.groups()
    result = dimensions(instruction.shape)
    total = 2 * result[out.index("b")] * result[out.index("f")] * rhs[right.index("i")]
    for axis, window in enumerate(_windows(instruction, sum(label.isdigit() for label in out))):
        label = str(axis)
        total *= meetings(lhs[left.index(label)], result[out.index(label)], **window)
    return total


def _windows(instruction: Instruction, axes: int) -> list[dict]:
    """Returns the window along each spatial axis, as arguments of `meetings`."""
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
    """Returns the number of (result, window offset) pairs that read an input, not padding or a dilation hole."""
    end = (length - 1) * lhs_dilate
    return sum(
        0 <= place <= end and place % lhs_dilate == 0
        for result in range(results)
        for place in (result * stride + offset * rhs_dilate - pad[0] for offset in range(size))
    )
