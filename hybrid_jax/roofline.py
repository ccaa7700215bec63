"""What a TPU could do at best with a compiled step: published peak rates, and the time they allow.

Every result is a model estimate, not a measurement: kernels reach a share of the peaks.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one TPU chip, all decimal but the memory.

    Attributes:
      flops: peak bfloat16 operations a second.
      hbm_gib: memory, in GiB.
      usable_gib: of it, what the compiler lets one device use.
      hbm_rate: its bytes a second.
      link_rate: bytes a second of one link between chips, one way.
      dcn_rate: bytes a second to other slices, through the data centre's network.
      dimensions: of the torus; each has two links.
      max_chips: of one slice.
      devices: that JAX shows for a chip.
    """

    flops: float
    hbm_gib: float
    usable_gib: float
    hbm_rate: float
    link_rate: float
    dcn_rate: float
    dimensions: int
    max_chips: int
    devices: int = 1


# Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, read in November 2026. A link is the documented
# two-way rate of a chip over its links, halved; data-centre rates are those of a pod over its chips (v5e 6.4 Tbit/s,
# v6e 25.6 Tbit/s, both 256 chips) or of a chip (v5p 50 Gbit/s). Not in them: v4's link (45 GB/s) and network
# (25 GB/s for a host of 4), from jax-ml.github.io/scaling-book/tpus; tpu7x's memory rate, from JAX's own table
# (jax/_src/pallas/mosaic/tpu_info.py). Usable memory: from the errors of libtpu 0.0.42.1 for a program that is too
# large. Assumed: tpu7x's links and network as v5p's.
CHIPS = {
    "v4": Chip(275e12, 32, 30.75, 1.2e12, 45e9, 6.25e9, 3, 4096),
    "v5e": Chip(197e12, 16, 15.75, 819e9, 50e9, 3.125e9, 2, 256),
    "v5p": Chip(459e12, 95, 95.74, 2765e9, 100e9, 6.25e9, 3, 8960),
    "v6e": Chip(918e12, 32, 31.25, 1638e9, 100e9, 12.5e9, 2, 256),
    "tpu7x": Chip(2307e12, 192, 94.75, 7.4e12, 100e9, 6.25e9, 3, 9216, devices=2),
}

ASSUMPTIONS = (
    "compute: analytical FLOPs, blocks' forward once more under model.remat and the views' with train.microbatches "
    "> 1, at the chip's bfloat16 peak (float32 products are slower; what attention kernels recompute is not counted); "
    "memory: what the program writes to HBM, once written and once read, at the full rate; "
    "links: both directions of one torus axis, bandwidth only; slices: the network's full rate; "
    "lower bound: all of them at once, upper bound: one after the other; input and host are free"
)


def computed_flops(parts: dict[str, float], remat: bool, microbatches: int) -> float:
    """Returns the operations of a step with those that recomputation adds.

    Args:
      parts: of `flops.train_step`, forward and backward.
      remat: each block's forward pass runs twice.
      microbatches: above 1 the views are embedded once more (GradCache).
    """
    total = 0.0
    for name, count in parts.items():
        forwards = 3.0
        forwards += remat and name in ("view_encoder", "likelihood_encoder", "decoder")
        forwards += microbatches > 1 and name == "view_encoder"
        total += count * forwards / 3
    return total


def estimate(
    generation: str, devices: int, flops: float, computed: float, hbm_bytes: float, ici_bytes: float, dcn_bytes: float
) -> dict[str, object]:
    """Bounds of a step's time.

    Args:
      generation: a key of `CHIPS`.
      devices: in all slices.
      flops: that the result needs, of a step on all devices.
      computed: with recomputation.
      hbm_bytes, ici_bytes, dcn_bytes: that one device moves in a step.

    Returns:
      {`label`, `seconds` by part, `step_seconds` (lower, upper), `mfu` (at the lower, at the upper), `bound_by`,
      `assumptions`}; MFU counts the needed operations only (PaLM, arXiv 2204.02311, appendix B).
    """
    chip = CHIPS[generation]
    peak = chip.flops / chip.devices
    seconds = {
        "compute": computed / devices / peak,
        "memory": hbm_bytes / (chip.hbm_rate / chip.devices),
        "links": ici_bytes / (2 * chip.link_rate / chip.devices),
        "slices": dcn_bytes / (chip.dcn_rate / chip.devices),
    }
    bounds = (max(seconds.values()), sum(seconds.values()))
    return {
        "label": "model estimate",
        "seconds": seconds,
        "step_seconds": bounds,
        "mfu": tuple(flops / (devices * peak * bound) for bound in bounds),
        "bound_by": max(seconds, key=lambda name: seconds[name]),
        "assumptions": ASSUMPTIONS,
    }
