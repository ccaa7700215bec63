"""What a compiled program communicates, and writes to memory, in one step on one device.

Two habits of the TPU compiler are undone here. It cuts an asynchronous collective into pieces inside several fusions
(start, done, and computation in between), which share one channel: only the start counts. And it fuses an all-reduce
with the slice that is taken from it: that is a reduce-scatter.
"""

from typing import Any

from hybrid_jax import hlo
from hybrid_jax.hlo import Instruction, Program

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "collective_permute")
FUSIONS = ("fusion", "fusion-start")
# Views of other instructions' results, control flow (whose bodies count themselves), or nothing at all.
WRITES_NOTHING = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "opt-barrier", "partition-id", "replica-id", "async-start", "async-update", "async-done", "fusion-done",
}  # fmt: skip


def count(text: str) -> dict[str, Any]:
    """Counts the traffic of a step on one device.

    Args:
      text: of the compiled program (`compiled.as_text()`), whose shapes are those of one device.

    Returns:
      `collectives`: {kind: {`count`, `bytes` of the results, `moved_bytes` of a ring}}; `between_slices`: {`count`,
      `bytes`} sent to other slices; `hbm_written_bytes`: results that lie in HBM, of an update in place the part
      that is new.
    """
    program, entry = hlo.parse(text)
    times = hlo.repetitions(program, entry)
    fusions = {name: i for lines in program.values() for i in lines if i.opcode in FUSIONS for name in hlo.called(i)}
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
            "bytes": sum(runs * next(hlo.arrays(i.shape))[0] for runs, i in sends),
        },
        "hbm_written_bytes": total,
    }


def _collectives(program: Program, times: dict[str, int], fusions: dict[str, Instruction]):
    """Yields (kind, runs, bytes of the result, bytes moved); of a collective in pieces, the start."""
    channels: dict[str, list[tuple[bool, tuple[str, int, int, float]]]] = {}
    for name, lines in program.items():
        for i in lines:
            kind = i.opcode.removesuffix("-start").replace("-", "_")
            if kind not in KINDS:
                continue
            size = _result_bytes(i)
            moved = moved_bytes(kind, size, hlo.group_size(i))
            if kind == "all_reduce" and name in fusions and any("slice" in other.opcode for other in lines):
                kind, moved = "reduce_scatter", moved / 2
                size = hlo.shape_bytes(fusions[name].shape)
            continues = name.startswith("async_collective_fusion")
            continues |= name in fusions and fusions[name].name.startswith("async-collective-done")
            channel = str(hlo.attribute(i, "channel_id")) if name in fusions else f"{name}/{i.name}"
            channels.setdefault(channel, []).append((continues, (kind, times[name], size, moved)))
    for pieces in channels.values():
        # Computation that a collective overlaps with may loop: its pieces there run more often than the collective.
        starts = [piece for continues, piece in pieces if not continues]
        yield from starts or [min((piece for _, piece in pieces), key=lambda piece: piece[1])]


def moved_bytes(kind: str, result: int, group: int) -> float:
    """Returns the bytes that a device sends in a ring (Patarasuk & Yuan 2009, J. Parallel Distrib. Comput. 69).

    Args:
      kind: one of `KINDS`.
      result: bytes of the collective's result on one device.
      group: devices it joins.
    """
    share = (group - 1) / group
    shares = {"all_reduce": 2 * share, "all_gather": share, "reduce_scatter": group - 1, "all_to_all": share}
    return result * shares.get(kind, 1)


def _result_bytes(instruction: Instruction) -> int:
    """Bytes of a collective's result; the shape of some asynchronous starts holds operands in front."""
    sizes = [size for size, _ in hlo.arrays(instruction.shape)]
    if instruction.opcode == "collective-permute-start":
        # Behind the results are two numbers.
        sizes = [size for size in sizes if size > 4]
    if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)


def written(instruction: Instruction, program: Program) -> int:
    """Returns the bytes in HBM that an instruction changes: of an update in place, the part that is new."""
    opcode = instruction.opcode
    starts = (opcode.endswith("-start") and opcode not in FUSIONS) or instruction.name.startswith(
        "async-collective-start"
    )
    if opcode in WRITES_NOTHING or starts or opcode in ("send", "recv"):
        return 0
    sizes = [0 if elsewhere else size for size, elsewhere in hlo.arrays(instruction.shape)]
    if opcode == "dynamic-update-slice":
        return 0
    if opcode in FUSIONS:
        lines = program.get(hlo.called(instruction)[0], [])
        if opcode == "fusion-start":
            # Its own shape holds operands too.
            sizes = [hlo.shape_bytes(root.shape) for root in _roots(lines)]
        updates = [_update_bytes(root, lines) for root in _roots(lines)]
        if len(updates) == len(sizes):
            sizes = [size if new is None else min(size, new) for size, new in zip(sizes, updates, strict=True)]
    return sum(sizes)


def _roots(lines: list[Instruction]) -> list[Instruction]:
    """The instructions that make a fusion's results."""
    by_name = {i.name: i for i in lines}
    root = next((i for i in lines if i.root), None)
    if root is None:
        return []
    return [root] if root.opcode != "tuple" else [by_name[name] for name in hlo.operands(root) if name in by_name]


def _update_bytes(root: Instruction, lines: list[Instruction]) -> int | None:
    """Bytes that a `dynamic-update-slice` changes; None for other instructions."""
    if root.opcode != "dynamic-update-slice":
        return None
    shapes = {i.name: i.shape for i in lines}
    names = hlo.operands(root)
    return hlo.shape_bytes(shapes.get(names[1], "")) if len(names) > 1 else None
