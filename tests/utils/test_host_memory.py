"""A step on one CPU device finds its last call's memory again."""

import os
import subprocess
import sys

import pytest

STEP = """
import resource
import jax
from hybrid_jax import host_memory
host_memory.reuse()
import jax.numpy as jnp
step = jax.jit(lambda x: jnp.sin(jnp.sin(x) @ jnp.cos(x).T).max())
x = jnp.ones((2500, 100))  # 25 MB of temporaries, two times
for _ in range(3):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step(x).block_until_ready()
pages = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10
print(pages, jax.config.values['jax_cpu_enable_async_dispatch'])
"""


def pages_and_async(**environment: str) -> tuple[float, bool]:
    outer = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    command = [sys.executable, "-c", STEP]
    told = subprocess.run(command, env=outer | environment, capture_output=True, text=True, check=True).stdout.split()
    return float(told[0]), told[1] == "True"


@pytest.mark.skipif(sys.platform != "linux" or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"), reason="needs glibc")
def test_one_device_takes_no_new_pages_and_several_stay_as_jax_has_them():
    pages, is_async = pages_and_async()
    assert pages < 1000 and not is_async, "25 MB are 6,400 pages of 4 KiB"
    assert pages_and_async(JAX_NUM_CPU_DEVICES="2")[1]
