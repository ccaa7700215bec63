"""GPUs that `--mode=compile` compiles for without having them: what XLA needs to know of one."""

import dataclasses
import importlib.metadata
import importlib.util

# Where JAX's GPU compiler lies; the first that is installed is taken.
_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
# What the client takes of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
PREALLOCATED = 0.75
CANNOT_TELL = (
    "not proven for GPUs: the compiler chooses kernels without timing them, so memory may differ there; cuDNN's "
    "attention is named in the program, but built only on a GPU; NCCL's buffers, time and what crosses hosts are not "
    "counted"
)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU on the SXM boards that hosts hold eight of.

    Attributes:
      title: its name in CUDA.
      memory_bytes: of its HBM.
      cores: streaming multiprocessors.
      units: float32 units of a core.
      shared, shared_by_block: bytes of a core's shared memory, and those that one block may ask for.
      l2_bytes: of the second cache.
      clock_ghz: of the cores.
      memory_rate: bytes a second of its HBM.
      flops: bfloat16 operations a second of its tensor cores, dense.
      capability: compute capability, major; the minor one is 0.
      feature: what kernels may use beyond the portable instructions.
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
PER_HOST = 8
MOST = 16384


def plugin() -> str | None:
    """Returns the name of the installed package that compiles for CUDA; None without one."""
    return next((name for name in _PLUGINS if importlib.util.find_spec(name)), None)


def versions() -> dict[str, str]:
    """Returns {package: version} of that package."""
    name = str(plugin()).replace("_", "-")
    return {name: importlib.metadata.version(name)}


def target_config(name: str) -> str:
    """Returns what XLA calls a GpuTargetConfigProto of a key of `GPUS`, as text."""
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
    """Returns the lines that a GPU's report ends with: what was not proven, what may have to be set."""
    lines = [CANNOT_TELL]
    if report["fits"] and report["peak_bytes_per_device"] > PREALLOCATED * report["available_bytes_per_device"]:
        lines.append(
            f"memory: JAX takes {PREALLOCATED:.0%} of a GPU's unless told; set XLA_PYTHON_CLIENT_MEM_FRACTION=.95 there"
        )
    if report["attention"] == "plain":
        lines.append(
            "attention: as plain matrix products, with scores in memory; cuDNN's needs model.attention='auto', "
            "model.dtype='bfloat16', at most 128 features a head, a multiple of 8, and here too package nvidia-cudnn"
        )
    return lines
