"""Reads a compiled program's text: its computations, how often each runs, the sizes of its arrays.

What a loop's body holds counts as often as the loop runs. How often that is, the compiler wrote beside the loop
(`known_trip_count`); where it did not, the constant of the loop's condition is taken.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "c64": 64, "c128": 128, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: of its result.
      shape: of its result, as printed, with layout.
      opcode: what it does.
      rest: operands and attributes.
      root: whether the computation returns it.
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
    """Returns the computations by name, and the name of the one that runs."""
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
    """`(f32[2]{0}, s32[]) while(...)` -> the shape and what follows it."""
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
    """Bytes of each array of a printed shape, and whether it lies outside of HBM (memory space S(n), n > 0)."""
    for kind, sizes, layout in re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", shape):
        bits = _BITS.get(kind) or int((re.search(r"\d+", kind) or [0])[0])
        count = math.prod(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        yield count * bits // 8, "S(" in layout


def shape_bytes(shape: str) -> int:
    """Returns the bytes of a printed shape: `f32[2,3]{1,0}` -> 24; of a tuple the sum."""
    return sum(size for size, _ in arrays(shape))


def dimensions(shape: str) -> list[int]:
    """Returns the sizes of a printed shape's axes, of a tuple those of its first array: `f32[2,3]{1,0}` -> [2, 3]."""
    found = re.search(r"\b[a-z]\w*\[([\d,<=]*)\]", shape)
    return [int(size.lstrip("<=")) for size in found[1].split(",") if size] if found else []


def attribute(instruction: Instruction, name: str) -> str | None:
    """Returns a number that stands behind `name=`, as text."""
    found = re.search(rf"\b{name}=(\d+)", instruction.rest)
    return found[1] if found else None


def operands(instruction: Instruction) -> list[str]:
    """Returns the names of an instruction's operands."""
    return re.findall(r"%([\w.\-]+)", instruction.rest.split(")")[0])


def called(instruction: Instruction) -> list[str]:
    """Returns the computations that an instruction names, but for those applied to single numbers."""
    names = re.findall(r"\b(?:calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)", instruction.rest)
    for group in re.findall(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}", instruction.rest):
        names += [name.strip().lstrip("%") for name in group.split(",")]
    if instruction.opcode == "call":
        names += re.findall(r"\bto_apply=%?([\w.\-]+)", instruction.rest)
    return names


def trip_count(instruction: Instruction, program: Program) -> int:
    """Returns how often a `while` runs: the compiler's own note, else its condition's largest constant, else 1."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.rest)
    if noted:
        return int(noted[1])
    condition = re.search(r"\bcondition=%?([\w.\-]+)", instruction.rest)
    lines = program.get(condition[1], []) if condition else []
    constants = [int(found[1]) for i in lines if i.opcode == "constant" and (found := re.match(r"(\d+)\)", i.rest))]
    return max(constants, default=1)


def repetitions(program: Program, entry: str) -> dict[str, int]:
    """Returns how often each computation runs in a step; of a conditional, every branch once."""

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
    """Returns how many devices a collective joins, from any of the three notations of `replica_groups`.

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
