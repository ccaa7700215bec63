"""The tables, as Markdown, from what `compile.json` holds; and what a train step must communicate at least.

The least is what one device sends in rings, by kind: d devices along `data`, f along `fsdp`, n = d f; P parameters; w
bytes of a number of `model.dtype`, in which weights are multiplied; B images a step, whose 2B views have embeddings of
E float32 numbers. A ring (Patarasuk & Yuan 2009) sends of an array of s bytes (g-1)/g s when g devices gather or
scatter it, twice that when they add it up for all.

| kind | minimum | what for |
|---|---|---|
| all_gather | 2 (f-1)/f P w | weights, once forward and once backward |
| | (n-1)/n 2B E 4 | embeddings of both views |
| reduce_scatter | (f-1)/f P w | gradients, over `fsdp` |
| | (n-1)/n 2B E 4 | cotangents of the embeddings |
| all_reduce | 2 (d-1)/d P/f w | gradients, over `data` |

Left out, being small: norms, losses, and parameters that are too small to cut. Choices of precision count as excess:
gradients that are added in float32 are twice the minimum where w is 2.
"""

from typing import Any

import jax.numpy as jnp

from benchmarks.common import GIB, MIB, table

Answer = dict[str, Any]
KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "collective_permute")
ABSENT = "not compiled"


def minimum(config, mesh: dict[str, int], parameters: int) -> dict[str, float]:
    """Returns {kind: bytes that one device sends in a step}, by the formulas above; `mesh` has `data` and `fsdp`."""
    data, fsdp = mesh["data"], mesh["fsdp"]
    share = lambda group: (group - 1) / group
    weights, views = parameters * jnp.dtype(config.model.dtype).itemsize, 0.0
    if config.objective.contrastive_weight > 0:
        views = share(data * fsdp) * 2 * config.train.batch_size * config.model.projection_dims[-1] * 4
    return dict.fromkeys(KINDS, 0.0) | {
        "all_gather": 2 * share(fsdp) * weights + views,
        "reduce_scatter": share(fsdp) * weights + views,
        "all_reduce": 2 * share(data) * weights / fsdp,
    }


def sizes(rows: list[tuple[str, Answer | None]]) -> str:
    """One row a config: memory and traffic of a device, operations of a step."""

    def cells(answer: Answer) -> list[object]:
        peak = f"{answer['peak_bytes_per_device'] / GIB:.2f} of {answer['available_bytes_per_device'] / GIB:.2f}"
        size, seconds = f"{answer['parameters'] / 1e6:.1f}", f"{answer['compile_seconds']:.0f}"
        return [answer["devices"], size, peak, *_measured(answer), seconds]

    columns = "parameters, 10^6|peak, GiB|temporaries, GiB|HBM moved, GB|FLOPs, x needed|compiled in, s"
    lines = [[name, *(cells(answer) if answer else [ABSENT, *[""] * 6])] for name, answer in rows]
    return table(f"compiled for|devices|{columns}", lines) + "\n"


def collectives(rows: list[tuple[str, Any, Answer | None]]) -> str:
    """One row a config and kind of collective: bytes that one device sends, and the least by formula."""
    lines = []
    for name, config, answer in rows:
        if answer is None or answer["collectives"] is None:
            continue
        least, found = minimum(config, answer["mesh"], answer["parameters"]), answer["collectives"]
        for kind in KINDS:
            if found[kind]["count"] or least[kind]:
                against = _against(found[kind]["moved_bytes"], least[kind])
                lines.append([name, kind, f"{found[kind]['count']:,}", *against])
        lines.append([name, "all", "", *_against(_moved(answer), sum(least.values()))])
    return table("compiled for|collective|a step|moved, MiB|minimum, MiB|moved / minimum", lines) + "\n"


def switches(rows: list[tuple[str, tuple[str, Answer | None], tuple[str, Answer | None]]]) -> str:
    """Two rows an optimisation: without it, with it."""

    def cells(answer: Answer | None) -> list[str]:
        if answer is None:
            return [ABSENT, *[""] * 5]
        seconds = f"{answer['compile_seconds']:.0f}"
        if answer["collectives"] is None:
            needs, there = (answer[f"{word}_bytes_per_device"] / GIB for word in ("peak", "available"))
            return [f"does not fit: {needs:.1f} of {there:.2f}", *[""] * 4, seconds]
        program = f"{answer['program_bytes_per_device'] / MIB:.0f}"
        return [*_measured(answer), f"{_moved(answer) / MIB:,.1f}", program, seconds]

    lines = []
    for title, *pair in rows:
        for label, (name, answer) in zip(("without", "with"), pair, strict=True):
            lines.append([title, label, name, *cells(answer)])
    columns = "temporaries, GiB|HBM moved, GB|FLOPs, x needed|collectives moved, MiB|program, MiB|compiled in, s"
    return table(f"optimisation||compiled for|{columns}", lines) + "\n"


def _moved(answer: Answer) -> float:
    return sum(answer["collectives"][kind]["moved_bytes"] for kind in KINDS)


def _measured(answer: Answer) -> list[str]:
    """Temporaries, HBM traffic, operations over those needed."""
    if answer["collectives"] is None:
        return [""] * 3
    computed = answer["compiled_flops_per_device"] * answer["devices"] / answer["flops"]
    kernels = " without its kernels" if answer.get("attention", "plain") != "plain" else ""
    moved = f"{2 * answer['hbm_written_bytes'] / 1e9:.1f}"
    return [f"{answer['temporaries_bytes_per_device'] / GIB:.2f}", moved, f"{computed:.2f}{kernels}"]


def _against(found: float, least: float) -> list[str]:
    return [f"{found / MIB:,.2f}", f"{least / MIB:,.2f}", f"{found / least:.2f}" if least else ""]
