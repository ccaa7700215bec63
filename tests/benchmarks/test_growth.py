"""Exponents are slopes, and the counts they are compared with are those of the sizes."""

import json
import math

import pytest

from benchmarks.growth import fit, points
from benchmarks.growth.points import AXES, BASE


def row(size, seconds, **others):
    counts = {"operations": size**2, "arguments": 1, "temporaries": size}
    found = {"temporaries": 3 * size, "arguments": 1, "compile_seconds": 1.0, "trace_seconds": 1.0, "counts": counts}
    return found | {"seconds": seconds} | others


def counts(settings, devices=1):
    return points.step_counts(points.config_of(BASE | settings), devices)


def test_a_power_law_has_its_exponent_and_no_error():
    found = fit.fit([1, 2, 8], [3, 12, 192])
    assert found.exponent == pytest.approx(2) and found.error == pytest.approx(0, abs=1e-6)
    assert found.local == pytest.approx((2, 2))
    assert math.isnan(fit.fit([1, 2], [3, 6]).error)


def test_the_least_disturbed_pass_counts_and_only_the_first_compiles():
    task, passes = AXES["batch"].task, [row(32, 2.0, compile_seconds=9.0), row(32, 1.0, compile_seconds=0.1)]
    found = fit.points({task(64): [row(64, 4.0)], task(32): passes}, AXES["batch"])
    assert found[32]["seconds"] == 1.0 and found[32]["compile_seconds"] == 9.0 and list(found) == [32, 64]


def test_only_what_grows_faster_than_the_mathematics_is_marked(tmp_path):
    found = {AXES["batch"].task(size): [row(size, 1e-3 * size**2.2)] for size in (32, 64, 128)}
    lines = fit.exponents(found).splitlines()
    assert "| 2.20 ± 0.00 | 2.20 to 2.20 | 2.00 | **above** | x " in lines[2]
    assert "temporaries" in lines[4] and "| 1.00 |  | x 1.00 |" in lines[4]
    fit.draw(found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 5_000


def test_a_fixed_part_does_not_make_a_further_unit_dearer():
    assert fit.dearer([7 + 3 * size for size in (1, 2, 4)], [1, 2, 4]) == pytest.approx(1)
    assert fit.dearer([7 + size**2 for size in (1, 2, 4)], [1, 2, 4]) == pytest.approx(2)


def test_counts_grow_as_the_mathematics_says():
    small, large = (counts({"train.batch_size": size}) for size in (128, 256))
    assert large.arguments - small.arguments == 128 * 28 * 28
    assert 1.9 < large.temporaries / small.temporaries < 2.1
    cut, whole = counts({}, devices=4), counts({})
    assert cut.operations == whole.operations and whole.temporaries / 4 < cut.temporaries < whole.temporaries / 2
    fixed = [points.nt_xent_counts(batch, 256).temporaries for batch in (1024, 2048)]
    assert fixed[1] == 2 * fixed[0]


def test_muon_orthogonalises_every_matrix_of_every_block():
    # A = X X^T, A A and the product with X, each of five times, of the matrix for query, key and value.
    m, n = 96, 3 * 96
    one = 5 * (2 * m * m * n + 2 * m**3 + 2 * m * m * n)
    square = 5 * 6 * m**3
    mlp = 2 * 5 * (4 * 4 + 2) * m**3
    assert points.orthogonalisation(points.config_of(BASE)) == 3 * (one + square + mlp)


def test_the_base_is_measured_once_for_all_axes_and_quick_sizes_are_among_the_others():
    base = AXES["batch"].task(64)
    shared = {"image": 28, "tokens": 16, "width": 96, "depth": 2, "devices": 1}
    assert all(AXES[name].task(size) == base for name, size in shared.items())
    assert all(set(axis.quick) <= set(axis.sizes) for axis in AXES.values())


def test_a_point_is_measured_from_its_task():
    found = points.measured(json.dumps({"devices": 1, "batch": 8, "block_size": None}))
    assert found["seconds"] > 0 and found["counts"] == points.nt_xent_counts(8, None)._asdict()
