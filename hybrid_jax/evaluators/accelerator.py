"""The one place that decides where evaluators do their linear algebra: on an accelerator, or with numpy on host cores.

What an accelerator computes has the host's protocol and optimum, and differs from it by rounding. Every product asks
for float32 (`highest`), which neither GPUs (TF32) nor TPUs (bfloat16) compute by default.
"""

import jax


def present() -> bool:
    """Returns whether JAX's default device is none of the host's own cores."""
    return jax.default_backend() != "cpu"
