"""The tables of benchmarks/accelerators.py, as Markdown, from what `compile.json` holds."""

from typing import Any

from benchmarks import minimum
from hybrid_jax.aot.hardware import GIB

MIB = 2**20
Answer = dict[str, Any]
ABSENT = "not compiled"


def sizes(rows: list[tuple[str, Answer | None]]) -> str:
    """One row a config: memory and traffic of a device, operations of a step."""
    names = (
        "compiled for|devices|parameters, 10^6|peak, GiB|temporaries, GiB|HBM moved, GB|FLOPs, x needed|compiled in, s"
    )
    lines = _head(names)
    for name, answer in rows:
        if answer is None:
            lines.append(_row(name, ABSENT, *[""] * 6))
            continue
        size = f"{answer['parameters'] / 1e6:.1f}"
        peak = f"{answer['peak_bytes_per_device'] / GIB:.2f} of {answer['available_bytes_per_device'] / GIB:.2f}"
        seconds = f"{answer['compile_seconds']:.0f}"
        lines.append(_row(name, answer["devices"], size, peak, *_measured(answer)[:3], seconds))
    return "\n".join([*lines, ""])


def collectives(rows: list[tuple[str, Any, Answer | None]]) -> str:
    """One row a config and kind of collective: bytes that one device sends, and the least by formula."""
    lines = _head("compiled for|collective|a step|moved, MiB|minimum, MiB|moved / minimum")
    for name, config, answer in rows:
        if answer is None or answer["collectives"] is None:
            continue
        least = minimum.moved_bytes(config, answer["mesh"], answer["parameters"])
        found = answer["collectives"]
        for kind in minimum.KINDS:
            if found[kind]["count"] or least[kind]:
                lines.append(_row(name, kind, f"{found[kind]['count']:,}", *_against(moved(answer, kind), least[kind])))
        total = sum(moved(answer, kind) for kind in minimum.KINDS)
        lines.append(_row(name, "all", "", *_against(total, sum(least.values()))))
    return "\n".join([*lines, ""])


def switches(rows: list[tuple[str, tuple[str, Answer | None], tuple[str, Answer | None]]]) -> str:
    """Two rows an optimisation: without it, with it."""
    names = (
        "optimisation||compiled for|temporaries, GiB|HBM moved, GB|FLOPs, x needed|collectives moved, MiB|program, MiB"
    )
    lines = _head(f"{names}|compiled in, s")
    for title, *pair in rows:
        for label, (name, answer) in zip(("without", "with"), pair, strict=True):
            lines.append(_row(title, label, name, *_switched(answer)))
    return "\n".join([*lines, ""])


def moved(answer: Answer, kind: str) -> float:
    """Returns the bytes that one device sends in collectives of a kind in a step."""
    return answer["collectives"][kind]["moved_bytes"]


def _switched(answer: Answer | None) -> tuple[str, ...]:
    if answer is None:
        return (ABSENT, *[""] * 5)
    seconds = f"{answer['compile_seconds']:.0f}"
    if answer["collectives"] is None:
        needs = answer["peak_bytes_per_device"] / GIB
        return (f"does not fit: {needs:.1f} of {answer['available_bytes_per_device'] / GIB:.2f}", *[""] * 4, seconds)
    total = sum(moved(answer, kind) for kind in minimum.KINDS)
    program = f"{answer['program_bytes_per_device'] / MIB:.0f}"
    return (*_measured(answer), f"{total / MIB:,.1f}", program, seconds)


def _measured(answer: Answer) -> tuple[str, str, str]:
    """Temporaries, HBM traffic, operations over those needed."""
    if answer["collectives"] is None:
        return "", "", ""
    computed = answer["compiled_flops_per_device"] * answer["devices"] / answer["flops"]
    kernels = " without its kernels" if answer.get("attention", "plain") != "plain" else ""
    return (
        f"{answer['temporaries_bytes_per_device'] / GIB:.2f}",
        f"{2 * answer['hbm_written_bytes'] / 1e9:.1f}",
        f"{computed:.2f}{kernels}",
    )


def _against(found: float, least: float) -> tuple[str, str, str]:
    return f"{found / MIB:,.2f}", f"{least / MIB:,.2f}", f"{found / least:.2f}" if least else ""


def _head(names: str) -> list[str]:
    columns = names.split("|")
    return [_row(*columns), "|" + "---|" * len(columns)]


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
