"""Target hardware of ahead-of-time compilation: topologies (`v5e:16x16`, `h100:256`), XLA target configs, peak rates.

Times computed from peak rates are estimates, not measurements: kernels reach only a part of the peak.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import re
import sys

from hybrid_jax import config as config_lib
from hybrid_jax.errors import UserError

GIB = 2**30
ASSUMPTIONS = (
    "compute: analytical FLOPs, blocks' forward once more under model.remat and the views' with train.microbatches "
    "> 1, at the chip's bfloat16 peak (float32 products are slower; what attention kernels recompute is not counted); "
    "memory: what the program writes to HBM, once written and once read, at the full rate; "
    "links: both directions of one torus axis, bandwidth only; slices: the network's full rate; "
    "lower bound: all of them at once, upper bound: one after the other; input and host are free"
)
# Packages with JAX's GPU compiler; the first installed one is used.
_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
# Share of a GPU's memory that JAX preallocates by default (XLA_PYTHON_CLIENT_MEM_FRACTION).
PREALLOCATED = 0.75
CANNOT_TELL = (
    "limits for GPUs: the compiler chooses kernels without autotuning, so memory may differ on a GPU; cuDNN's "
    "attention is only built on a GPU; NCCL buffers, time and traffic between hosts are not counted"
)
PER_HOST = 8
MOST = 16384
_EXAMPLES = "for example v5e:16x16, v5e:16x16x2 (two slices), v5p:8x8x16, h100:8, a100:64"


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of a TPU chip; decimal units except for memory.

    Attributes:
      flops: peak bfloat16 operations per second.
      hbm_gib: HBM, in GiB.
      usable_gib: HBM that the compiler lets one device use, in GiB.
      hbm_rate: HBM bandwidth, in bytes per second.
      link_rate: bandwidth of one link between chips, one way, in bytes per second.
      dcn_rate: bandwidth to other slices through the data centre's network, in bytes per second.
      dimensions: dimensions of the torus; each has two links.
      max_chips: maximum chips of one slice.
      devices: JAX devices per chip.
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


def computed_flops(parts: dict[str, float], remat: bool, microbatches: int) -> float:
    """Returns the operations of a step including recomputation.

    Args:
      parts: operations from `flops.train_step`, forward and backward.
      remat: whether each block's forward pass runs twice.
      microbatches: if above 1, the views are embedded twice (GradCache).
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
    """Estimates bounds of a step's time.

    Args:
      generation: a key of `CHIPS`.
      devices: number of devices in all slices.
      flops: operations of a step on all devices, without recomputation.
      computed: operations with recomputation.
      hbm_bytes: HBM traffic of one device per step.
      ici_bytes: bytes that one device sends over links per step.
      dcn_bytes: bytes that one device sends to other slices per step.

    Returns:
      {`label`, `seconds` by part, `step_seconds` (lower, upper), `mfu` (at the lower, at the upper bound),
      `bound_by`, `assumptions`}; MFU excludes recomputation (PaLM, arXiv 2204.02311, appendix B).
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


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU of a host with eight SXM GPUs.

    Attributes:
      title: device name in CUDA.
      memory_bytes: size of the HBM, in bytes.
      cores: number of streaming multiprocessors (SMs).
      units: float32 units per SM.
      shared: shared memory per SM, in bytes.
      shared_by_block: maximum shared memory per block, in bytes.
      l2_bytes: size of the L2 cache, in bytes.
      clock_ghz: clock rate of the SMs.
      memory_rate: HBM bandwidth, in bytes per second.
      flops: dense bfloat16 operations per second of the tensor cores.
      capability: major compute capability; the minor one is 0.
      feature: architecture-specific features that kernels may use.
    """

    title: str
    memory_bytes: int
    cores: int
    units: int
    shared: int
    shared_by_block: int
    l2_bytes: int
    clock_ghz: float
    memory_rate: int
    flops: float
    capability: int
    feature: str


# Figures: openxla/xla, xla/backends/gpu/target_config/specs (h100_sxm and a100_sxm_80), read in November 2026;
# operations: NVIDIA's data sheets of both cards.
GPUS = {
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3", 84942979072, 132, 128, 233472, 232448, 52428800, 1.98, 3352320000000, 989.4e12, 9,
        "ACCELERATED_FEATURES",
    ),
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB", 85100068864, 108, 64, 167936, 166912, 41943040, 1.41, 2039040000000, 312e12, 8, "NONE",
    ),
}  # fmt: skip


def plugin() -> str | None:
    """Returns the name of the installed package with the CUDA compiler, or None."""
    return next((name for name in _PLUGINS if importlib.util.find_spec(name)), None)


def versions() -> dict[str, str]:
    """Returns {package: version} of the package with the CUDA compiler."""
    name = str(plugin()).replace("_", "-")
    return {name: importlib.metadata.version(name)}


def target_config(name: str) -> str:
    """Returns XLA's GpuTargetConfigProto for a key of `GPUS`, as text."""
    gpu = GPUS[name]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared}
  threads_per_core_limit: 2048
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.memory_rate}
  l2_cache_size: {gpu.l2_bytes}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory_bytes}
  shared_memory_per_block_optin: {gpu.shared_by_block}
  cuda_compute_capability {{ major: {gpu.capability} feature_extension: {gpu.feature} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  device_address_bits: 64
  name: "{gpu.title}"
  driver_version: "12.9.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{gpu.title}"
"""


def notes(report: dict) -> list[str]:
    """Returns notes for a GPU's report: limits of the compilation, and settings to consider."""
    lines = [CANNOT_TELL]
    if report["fits"] and report["peak_bytes_per_device"] > PREALLOCATED * report["available_bytes_per_device"]:
        lines.append(
            f"memory: by default JAX uses {PREALLOCATED:.0%} of a GPU's memory; set XLA_PYTHON_CLIENT_MEM_FRACTION=.95"
        )
    if report["attention"] == "plain":
        lines.append(
            "attention: plain matrix products, with scores in memory; cuDNN's needs model.attention='auto', "
            "model.dtype='bfloat16', a multiple of 8 and at most 128 features per head, and package nvidia-cudnn here"
        )
    return lines


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or several TPU slices, or GPU hosts.

    Attributes:
      generation: a key of `CHIPS` or `GPUS`.
      shape: chips along each axis of one slice, two axes for v5e and v6e, three for other TPUs; for GPUs (hosts,
        devices per host).
      slices: number of slices, connected by the data centre's network; 1 for GPUs.
    """

    generation: str
    shape: tuple[int, ...]
    slices: int

    @property
    def is_gpu(self) -> bool:
        """Whether the devices are GPUs."""
        return self.generation in GPUS

    @property
    def devices(self) -> int:
        """Number of JAX devices."""
        return math.prod(self.shape) * self.slices * (1 if self.is_gpu else CHIPS[self.generation].devices)

    @property
    def memory_bytes(self) -> int:
        """Memory of one device that programs may use, in bytes."""
        return GPUS[self.generation].memory_bytes if self.is_gpu else round(CHIPS[self.generation].usable_gib * GIB)

    def check_compiler(self) -> None:
        """Raises UserError if the compiler is not installed."""
        if self.is_gpu and plugin() is None:
            what, extra = f"JAX's CUDA compiler for {self.generation}", "gpu_aot"
        elif not self.is_gpu and importlib.util.find_spec("libtpu") is None:
            what, extra = "the TPU compiler", "tpu"
        else:
            return
        pins = "constraints.txt" if sys.version_info < (3, 12) else "constraints-py312.txt"
        raise UserError(f"--mode=compile needs {what}: pip install -e '.[{extra}]' --constraint {pins}")


def parse_topology(text: str | None) -> Topology:
    """Reads `v5e:16x16`, `v5e:16x16x2` (two such slices), `h100:256` (GPUs, eight to a host).

    Raises:
      UserError: the generation is unknown, or does not have this shape.
    """
    if not text:
        raise UserError(f"--topology is missing: must be the target hardware, {_EXAMPLES}")
    generation, _, shape = text.partition(":")
    if generation in GPUS:
        return _gpus(text, generation, shape)
    if generation not in CHIPS:
        known = (*CHIPS, *GPUS)
        near = config_lib.nearest(generation, known)
        raise UserError(f"--topology={text}: the part before ':' must be one of {', '.join(known)}{near}")
    chip = CHIPS[generation]
    axes = "x".join("ABC"[: chip.dimensions])
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 - chip.dimensions not in (0, 1):
        raise UserError(f"--topology={text}: must be {generation}:{axes} chips, or {generation}:{axes}xN for N slices")
    sizes = [int(size) for size in shape.split("x")]
    one, slices = tuple(sizes[: chip.dimensions]), math.prod(sizes[chip.dimensions :])
    # A longer side of a 2-d torus would crash the compiler.
    if math.prod(one) > chip.max_chips or (chip.dimensions == 2 and max(one) > 16):
        limit = "16x16" if chip.dimensions == 2 else f"{chip.max_chips:,} chips"
        raise UserError(f"--topology={text}: a {generation} slice has at most {limit}; add slices as {axes}xN")
    return Topology(generation, one, slices)


def _gpus(text: str, generation: str, shape: str) -> Topology:
    host, most = PER_HOST, MOST
    count = int(shape) if re.fullmatch(r"[1-9]\d{0,8}", shape) else 0
    if not 1 <= count <= most or (count > host and count % host):
        allowed = f"N from 1 to {host}, or a multiple of {host} up to {most:,}"
        raise UserError(f"--topology={text}: must be {generation}:N GPUs, {allowed}")
    return Topology(generation, (1, count) if count <= host else (count // host, host), 1)
