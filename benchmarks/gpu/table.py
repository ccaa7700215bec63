"""The table that ends a run, from what there is in $OUT/results.json: python -m benchmarks.gpu.table"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.gpu.attention import LENGTHS, Shape
from benchmarks.gpu.ceilings import BF16, FLOAT32
from benchmarks.gpu.record import Entry, entries, good, read, short

# Dense operations a second by the datasheets of the SXM cards: bfloat16, and TF32 for float32.
_DATASHEET = {
    "H100": {"bfloat16": 989.4e12, "float32": 494.7e12},
    "H200": {"bfloat16": 989.4e12, "float32": 494.7e12},
    "A100": {"bfloat16": 312e12, "float32": 156e12},
}
_MEASURED = {"bfloat16": BF16, "float32": FLOAT32}
_HEADS, _FEATURES = 8, 64  # of attention's sweep over lengths
_NOT_SHOWN = ("lines", "curve", "top", "range_ms", "limits")

Results = dict[str, Any]


def main() -> None:
    """Prints all sections that have something; nothing measured is one line."""
    results = read()
    lines = list(table(results))
    print("\n".join(lines))
    sys.exit(0 if results else 1)


def table(results: Results) -> Iterator[str]:
    """Yields the lines, as Markdown."""
    device, packages = (entries(results, "versions").get(name, {}) for name in ("device", "packages"))
    yield f"## {device.get('kind', 'no device')}, " + short({k: packages[k] for k in ("jax", "torch") if k in packages})
    for stage, section in _SECTIONS.items():
        if entries(results, stage):
            yield f"\n### {stage} ({results[stage]['seconds']:.0f} s)\n"
            yield from section(results, good(results, stage))
            yield from _errors(entries(results, stage))


def _errors(found: dict[str, Entry]) -> Iterator[str]:
    for name, entry in found.items():
        if "failed" in entry:
            yield f"- FAILED {name}: {entry['failed']}"


def _plain(results: Results, found: dict[str, Entry]) -> Iterator[str]:
    """One line for each entry, those that are not ok marked."""
    for name, entry in found.items():
        shown = {key: value for key, value in entry.items() if key not in (*_NOT_SHOWN, "ok")}
        yield f"- {'' if entry.get('ok', True) else 'NOT OK '}{name}: {short(shown)}"


def share_of(results: Results, entry: Entry) -> tuple[float | None, float | None]:
    """Returns which share of the measured ceiling and of the datasheet's a step reaches; None where it is unknown."""
    rate = entry["gflop"] * 1e9 / (entry["ms"] / 1e3)
    measured = good(results, "ceilings").get(_MEASURED[entry["dtype"]], {}).get("tflops")
    kind = entries(results, "versions").get("device", {}).get("kind", "")
    sheet = next((peaks[entry["dtype"]] for card, peaks in _DATASHEET.items() if card in kind), None)
    return rate / (measured * 1e12) if measured else None, rate / sheet if sheet else None


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


def _steps(results: Results, found: dict[str, Entry]) -> Iterator[str]:
    yield "| step | ms | range | images/s | TFLOP/s | MFU, measured | MFU, datasheet | attention | GiB | compiled s |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, entry in found.items():
        shares = [_percent(share) for share in share_of(results, entry)]
        low, high = entry["range_ms"]
        cells = [name, f"{entry['ms']:.2f}", f"{low:.2f} to {high:.2f}", f"{entry['images_per_s']:,.0f}"]
        cells += [f"{entry['gflop'] / entry['ms']:.1f}", *shares, entry["attention"]]
        yield " | ".join(["| " + cells[0], *cells[1:], f"{entry['peak_gib']:.1f}", f"{entry['compile_s']:.0f} |"])


def _torch(results: Results, found: dict[str, Entry]) -> Iterator[str]:
    yield "| step | PyTorch, ms | images/s | ours / PyTorch, images/s | parameters, PyTorch / ours | first call s |"
    yield "|---|---|---|---|---|---|"
    for name, entry in found.items():
        ours = good(results, "steps").get(name.partition("@")[0])
        ratio = f"{ours['images_per_s'] / entry['images_per_s']:.2f}" if ours else "ours is missing"
        sizes = f"{entry['parameters'] / ours['parameters']:.3f}" if ours else ""
        cells = [
            name,
            f"{entry['ms']:.2f}",
            f"{entry['images_per_s']:,.0f}",
            ratio,
            sizes,
            f"{entry['first_call_s']:.0f}",
        ]
        yield "| " + " | ".join(cells) + " |"


def _attention(results: Results, found: dict[str, Entry]) -> Iterator[str]:
    shapes = dict.fromkeys(name.rpartition(", ")[0] for name in found)
    for shape in shapes:
        forms = {name.rpartition(", ")[2]: entry for name, entry in found.items() if name.startswith(shape + ", ")}
        yield f"- {shape}: " + "; ".join(f"{form} {_form(entry)}" for form, entry in forms.items())
    for causal in (True, False):
        yield f"- cuDNN pays, {'causal' if causal else 'full mask'}: {pays_from(found, causal)}"


def _form(entry: Entry) -> str:
    notes = [] if entry["ok"] else ["NOT OK"]
    notes += [] if entry["same_bits_twice"] else ["bits vary"]
    return ", ".join([f"{entry['ms']:.3f} ms", f"error {entry['error']:.1e}", *notes])


def pays_from(found: dict[str, Entry], causal: bool) -> str:
    """Returns from which of the lengths on cuDNN is faster than `plain`, in words."""
    faster = {}
    for length in LENGTHS:
        shape = Shape(65536 // length, length, _HEADS, _FEATURES, causal)
        both = [found.get(f"{shape}, {form}") for form in ("cudnn", "plain")]
        if all(both):
            faster[length] = both[0]["ms"] < both[1]["ms"]
    if not faster:
        return "not measured"
    first = next((n for n in faster if all(faster[m] for m in faster if m >= n)), None)
    return "at none of the lengths" if first is None else f"from {first} positions on"


def _profile(results: Results, found: dict[str, Entry]) -> Iterator[str]:
    for name, entry in found.items():
        yield (
            f"- {name}: {entry['kernels_a_step']:.0f} kernels a step, busy {entry['busy_ms']:.2f} of "
            f"{entry['wall_ms']:.2f} ms (idle {entry['idle_share']:.1%})"
        )
        for what in ("by_part", "by_kind"):
            yield f"  - {what}, ms: {short(entry[what])}"


_SECTIONS: dict[str, Callable[[Results, dict[str, Entry]], Iterator[str]]] = {
    "versions": _plain,
    "ceilings": _plain,
    "correctness": _plain,
    "restart": _plain,
    "steps": _steps,
    "torch_peer": _torch,
    "xla_flags": _steps,
    "profile": _profile,
    "attention": _attention,
    "loop": _plain,
    "sampling": _plain,
    "evaluation": _plain,
    "codec": _plain,
    "recipe": _plain,
}


if __name__ == "__main__":
    main()
