"""Topologies by name, and the roofline of a chip."""

import pytest

from hybrid_jax.aot import hardware
from hybrid_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "shape", "slices", "devices"),
    [("v5e:16x16", (16, 16), 1, 256), ("v5e:16x16x2", (16, 16), 2, 512), ("v5p:8x8x16", (8, 8, 16), 1, 1024),
     ("v4:2x2x1x3", (2, 2, 1), 3, 12), ("tpu7x:2x2x1", (2, 2, 1), 1, 8), ("v6e:1x1", (1, 1), 1, 1),
     ("h100:8", (1, 8), 1, 8), ("h100:256", (32, 8), 1, 256), ("a100:1", (1, 1), 1, 1)],
)  # fmt: skip
def test_topologies_are_read(text, shape, slices, devices):
    found = hardware.parse_topology(text)
    assert (found.shape, found.slices, found.devices) == (shape, slices, devices)


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "--topology is missing"), ("v7:2x2", "must be one of v4, v5e"), ("v5f:2x2", "did you mean v5"),
     ("v5e", "v5e:AxB chips"), ("v5e:4", "v5e:AxBxN for N slices"), ("v5p:4x4", "v5p:AxBxC"),
     ("v5e:4x0", "v5e:AxB"), ("v5e:4x4x2x2", "v5e:AxB"), ("v5e:32x8", "at most 16x16"),
     ("v5p:32x32x32", "at most 8,960 chips"), ("h100", "h100:N GPUs"), ("a100:0", "N from 1 to 8"),
     ("h100:12", "or a multiple of 8"), ("h100:2x8", "h100:N GPUs"), ("h100:99999999", "up to 16,384"),
     ("h200:8", "did you mean h100")],
)  # fmt: skip
def test_other_topologies_are_refused_in_one_line(text, words):
    with pytest.raises(UserError) as error:
        hardware.parse_topology(text)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_roofline_arithmetic():
    parts = {"view_encoder": 3.0, "likelihood_encoder": 6.0, "decoder": 9.0, "pixel_head": 12.0, "losses": 1.0}
    assert hardware.computed_flops(parts, remat=False, microbatches=1) == 31
    assert hardware.computed_flops(parts, remat=True, microbatches=1) == pytest.approx(31 + (3 + 6 + 9) / 3)
    assert hardware.computed_flops(parts, remat=False, microbatches=2) == pytest.approx(31 + 1)
    found = hardware.estimate("v5e", 4, 4 * 197e12, 6 * 197e12, 819e9 / 2, 10e9, 3.125e9 / 4)
    expected = {"compute": 1.5, "memory": 0.5, "links": 0.1, "slices": 0.25}
    assert found["seconds"] == pytest.approx(expected)
    assert found["step_seconds"] == pytest.approx((1.5, 2.35)) and found["mfu"] == pytest.approx((1 / 1.5, 1 / 2.35))
    assert found["bound_by"] == "compute" and found["label"] == "model estimate"
    # Two devices share a chip.
    assert hardware.estimate("tpu7x", 2, 0, 2307e12, 0, 0, 0)["seconds"]["compute"] == pytest.approx(1)
