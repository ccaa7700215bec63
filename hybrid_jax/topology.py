"""Devices that are not here, by name: `v5e:16x16` TPUs, `h100:256` GPUs."""

import dataclasses
import importlib.util
import math
import re
import sys

from hybrid_jax import config as config_lib
from hybrid_jax import gpu_targets
from hybrid_jax.errors import UserError
from hybrid_jax.gpu_targets import GPUS
from hybrid_jax.roofline import CHIPS, GIB

_EXAMPLES = "for example v5e:16x16, v5e:16x16x2 (two slices), v5p:8x8x16, h100:8, a100:64"


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPUs, or several; or hosts of GPUs.

    Attributes:
      generation: a key of `roofline.CHIPS` or of `gpu_targets.GPUS`.
      shape: chips along each axis of one slice: two axes for v5e and v6e, three for the other TPUs; of GPUs the hosts
        and the devices of each.
      slices: connected by the data centre's network; 1 for GPUs.
    """

    generation: str
    shape: tuple[int, ...]
    slices: int

    @property
    def is_gpu(self) -> bool:
        """Whether it is of GPUs."""
        return self.generation in GPUS

    @property
    def devices(self) -> int:
        """Devices as JAX counts them."""
        return math.prod(self.shape) * self.slices * (1 if self.is_gpu else CHIPS[self.generation].devices)

    @property
    def memory_bytes(self) -> int:
        """Bytes that one device has for a program."""
        return GPUS[self.generation].memory_bytes if self.is_gpu else round(CHIPS[self.generation].usable_gib * GIB)

    def check_compiler(self) -> None:
        """Raises UserError where the compiler is not installed."""
        if self.is_gpu and gpu_targets.plugin() is None:
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
      UserError: an unknown generation, or a shape that it does not have.
    """
    if not text:
        raise UserError(f"--topology is missing: what to compile for, {_EXAMPLES}")
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
    # A longer side of a flat torus would end the compiler's process.
    if math.prod(one) > chip.max_chips or (chip.dimensions == 2 and max(one) > 16):
        limit = "16x16" if chip.dimensions == 2 else f"{chip.max_chips:,} chips"
        raise UserError(f"--topology={text}: a {generation} slice has at most {limit}; add slices as {axes}xN")
    return Topology(generation, one, slices)


def _gpus(text: str, generation: str, shape: str) -> Topology:
    host, most = gpu_targets.PER_HOST, gpu_targets.MOST
    count = int(shape) if re.fullmatch(r"[1-9]\d{0,8}", shape) else 0
    if not 1 <= count <= most or (count > host and count % host):
        allowed = f"N from 1 to {host}, or a multiple of {host} up to {most:,}"
        raise UserError(f"--topology={text}: must be {generation}:N GPUs, {allowed}")
    return Topology(generation, (1, count) if count <= host else (count // host, host), 1)
