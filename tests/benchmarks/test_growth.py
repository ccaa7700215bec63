"""Exponents are slopes, and the counts they are compared with are those of the sizes."""

import math

import pytest

from benchmarks import growth, growth_counts, growth_fit
from benchmarks.growth_points import AXES, BASE
from hybrid_jax import config as config_lib

AXIS = {axis.name: axis for axis in AXES}


def counts(axis, size, devices=1):
    config = config_lib.default_config()
    config.update_from_flattened_dict(AXIS[axis].settings(size))
    config_lib.validate(config)
    return growth_counts.step(config, devices)


def row(axis, size, seconds, **others):
    counted = {"operations": size**2, "arguments": 1, "temporaries": size}
    measured = {"temporaries": 3 * size, "arguments": 1, "compile_seconds": 1.0, "trace_seconds": 1.0, "peak_rss": 1}
    known = {"axis": axis, "size": size, "seconds": seconds, "cached": False, "counts": counted}
    return known | measured | others


def test_a_power_law_has_its_exponent_and_no_error():
    found = growth_fit.fit([1, 2, 8], [3, 12, 192])
    assert found.exponent == pytest.approx(2) and found.error == pytest.approx(0, abs=1e-6)
    assert found.local == pytest.approx((2, 2))
    assert math.isnan(growth_fit.fit([1, 2], [3, 6]).error)


def test_the_error_is_that_of_the_slope():
    # Residuals of -1, 2, -1 times c about a slope of 1: error^2 = 6 c^2 / (1 degree of freedom x spread 2).
    found = growth_fit.fit([1, math.e, math.e**2], [math.exp(-0.1), math.exp(1.2), math.exp(1.9)])
    assert found.exponent == pytest.approx(1) and found.error == pytest.approx(math.sqrt(0.06 / 2))


def test_the_least_disturbed_pass_counts_and_only_real_compilations():
    rows = [
        row("batch", 32, 2.0, compile_seconds=9.0),
        row("batch", 32, 1.0, compile_seconds=0.1, cached=True),
        row("batch", 64, 4.0),
    ]
    found = growth_fit.points(rows, AXIS["batch"])
    assert found[32]["seconds"] == 1.0 and found[32]["compile_seconds"] == 9.0 and list(found) == [32, 64]


def test_only_what_grows_faster_than_the_mathematics_is_marked():
    lines = growth_fit.table([row("batch", size, 1e-3 * size**2.2) for size in (32, 64, 128)]).splitlines()
    assert "| 2.20 ± 0.00 | 2.20 to 2.20 | 2.00 | **above** | x " in lines[2]
    assert "temporaries" in lines[4] and "| 1.00 |  | x 1.00 |" in lines[4]


def test_a_fixed_part_does_not_make_a_further_unit_dearer():
    assert growth_fit.dearer([7 + 3 * size for size in (1, 2, 4)], [1, 2, 4]) == pytest.approx(1)
    assert growth_fit.dearer([7 + size**2 for size in (1, 2, 4)], [1, 2, 4]) == pytest.approx(2)


def test_counts_grow_as_the_mathematics_says():
    small, large = counts("batch", 128), counts("batch", 256)
    assert large.arguments - small.arguments == 128 * 28 * 28
    assert 1.9 < large.temporaries / small.temporaries < 2.1
    cut = counts("devices", 4, devices=4)
    whole = counts("devices", 1)
    assert cut.operations == whole.operations and whole.temporaries / 4 < cut.temporaries < whole.temporaries / 2
    fixed = [growth_counts.nt_xent(batch, 256).temporaries for batch in (1024, 2048)]
    assert fixed[1] == 2 * fixed[0]


def test_muon_orthogonalises_every_matrix_of_every_block():
    config = config_lib.default_config()
    config.update_from_flattened_dict(BASE)
    # A = X X^T, A A and the product with X, each of five times, of the matrix for query, key and value.
    m, n = 96, 3 * 96
    one = 5 * (2 * m * m * n + 2 * m**3 + 2 * m * m * n)
    square = 5 * 6 * m**3
    mlp = 2 * 5 * (4 * 4 + 2) * m**3
    assert growth_counts.orthogonalisation(config) == 3 * (one + square + mlp)


def test_the_base_is_measured_once_for_all_axes_and_quick_sizes_are_among_the_others():
    base = growth.task(AXIS["batch"], 64)
    shared = {"image": 28, "tokens": 16, "width": 96, "depth": 2, "devices": 1}
    assert all(growth.task(AXIS[name], size) == base for name, size in shared.items())
    assert all(set(axis.quick) <= set(axis.sizes) for axis in AXES)
