"""How many programs the default evaluators compile, and that an accelerator's way gives what the host's does."""

import functools
import json
import re
from unittest import mock

import jax
import numpy as np
import pytest
import tiny
from fakes import untrained
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from benchmarks import evaluation
from hybrid_jax import evaluate
from hybrid_jax.data import sources
from hybrid_jax.evaluators import knn, linear_probe, logistic, logistic_device, sample_metrics
from hybrid_jax.evaluators.features import Skipped
from hybrid_jax.utils import runtime

# Of the default suite and its report; each costs seconds on an accelerator.
MOST_PROGRAMS, MOST_WITH_PROBES = 18, 21
C_VALUES = (0.01, 0.1)


@pytest.fixture
def small_shapes(monkeypatch):
    """Programs of the sizes that digits need, so that the host need not compute what only fills up."""
    monkeypatch.setattr(logistic_device, "_ROWS", (200, 600))
    monkeypatch.setattr(logistic_device, "_COLUMNS", (64, 128))


def digits(n: int, num_classes: int = 10):
    x, y = load_digits(return_X_y=True)
    kept = y < num_classes
    x = linear_probe.standardise({"train": x[kept].astype(np.float32)})["train"]
    return x[:n], y[kept][:n] * 3, x[n:]


@pytest.mark.parametrize(("n", "num_classes"), [(150, 10), (500, 3)])
def test_the_device_finds_the_hosts_and_scikit_learns_optimum(small_shapes, n, num_classes):
    x, y, unseen = digits(n, num_classes)
    found = logistic.fit_logistic_on_device(x, y, C_VALUES, 300, tolerance=1e-5)
    known = logistic.fit_logistic_each(x, y, C_VALUES, 300, logistic.Spectrum.of(x))
    for c, ours, host in zip(C_VALUES, found, known, strict=True):
        oracle = LogisticRegression(C=c, tol=1e-7, max_iter=5000).fit(x.astype(np.float64), y)
        assert ours.converged and ours.iterations < 100
        np.testing.assert_array_equal(ours.classes, np.unique(y))
        np.testing.assert_allclose(ours.weights, oracle.coef_.T, atol=2e-2 * np.abs(oracle.coef_).max())
        for other in (host, oracle):
            assert np.mean(ours.predict(unseen) == other.predict(unseen)) > 0.99


def test_what_fills_up_a_fit_does_not_change_it(small_shapes, monkeypatch):
    x, y, _ = digits(150)
    (alone,) = logistic.fit_logistic_on_device(x[:, :40], y, [0.1], 300)
    monkeypatch.setattr(logistic_device, "_ROWS", (150,))
    monkeypatch.setattr(logistic_device, "_COLUMNS", (40,))
    monkeypatch.setattr(logistic_device, "_CLASSES", (10,))
    (exact,) = logistic.fit_logistic_on_device(x[:, :40], y, [0.1], 300)
    np.testing.assert_allclose(alone.weights, exact.weights, atol=2e-3)


def test_a_limit_that_is_too_low_is_told_and_a_fit_that_fails_is_loud(small_shapes):
    x, y, _ = digits(150)
    assert [(f.iterations, f.converged) for f in logistic.fit_logistic_on_device(x, y, [1.0], 2)] == [(2, False)]
    with pytest.raises(FloatingPointError, match="not finite"):
        logistic.fit_logistic_on_device(np.where(x > 2, np.nan, x), y, [1.0], 5)
    with pytest.raises(Skipped):
        logistic.fit_logistic_on_device(x, np.zeros(150), [1.0], 5)


def test_five_shapes_serve_all_fits_of_cifar10():
    fits = [(45_000, 512), (50_000, 2048), (50_000, 3072), (5_000, 512), (100, 100), (500, 500), (5_000, 3072)]
    fits += [(10_000, 3072), (1_000, 128), (5_000, 2048)]
    assert len({logistic_device.filled_shape(*fit, 10) for fit in fits}) == 5


def test_products_ask_for_float32():
    lowered = logistic_device._solved.trace(*logistic_device.arguments(100, 64, 10)).jaxpr
    tops = jax.make_jaxpr(lambda q, b: knn._top(q, b, 3))(np.ones((4, 8), np.float32), np.ones((9, 8), np.float32))
    nearest = jax.make_jaxpr(sample_metrics._nearest)(np.ones((4, 8), np.float32), np.ones((9, 8), np.float32))
    for text in map(str, (lowered, tops, nearest)):
        products = len(re.findall(r"dot_general\[", text))
        assert products and text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products


def test_the_nearest_rows_are_the_same_on_the_device():
    rng = np.random.default_rng(0)
    queries, bank = (rng.normal(size=(n, 12)).astype(np.float32) for n in (700, 300))
    rows = sample_metrics._nearest_on_device(queries, bank)
    np.testing.assert_array_equal(rows, sample_metrics._nearest_rows(queries, bank))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns run(accelerated): the default suite in batches of 100, the last ones partial; results and programs."""
    config = tiny.get_config()
    config.eval.max_images, config.eval.batch_size = 320, 100
    config.eval.anomaly.num_images, config.eval.report_samples = 100, 4
    for name in ("ood", "corruptions", "adversarial", "sample_quality"):
        config.eval[name].num_images = 130
    config.eval.corruptions.severities, config.eval.few_label.shares, config.eval.few_label.num_seeds = (5,), (0.1,), 2
    config.eval.adversarial.epsilons, config.eval.adversarial.steps = (4,), 2
    data = sources.load(config)

    @functools.cache
    def run(accelerated: bool):
        model, workdir, lines = untrained(config), tmp_path_factory.mktemp("run"), []
        model.params = jax.device_put(model.params, jax.devices()[0])
        with (
            mock.patch.object(runtime, "present", lambda: accelerated),
            evaluation.measured(evaluation.Cost()) as cost,
        ):
            evaluate.evaluate_and_report(model, data, config, workdir, lines.append)
        assert not [line for line in lines if "not compiled" in line]
        return json.loads((workdir / "eval" / "0.json").read_text()), cost.programs

    return run


def test_the_default_suite_compiles_few_programs_and_partial_batches_none(run):
    _, programs = run(accelerated=False)
    assert programs.total() <= MOST_PROGRAMS, programs
    # Features, embedding, measures, likelihood, samples, completions: of each one shape.
    assert programs["jit(function)"] == 6


@pytest.mark.slow
def test_an_accelerator_gives_the_hosts_results_in_few_programs(run, small_shapes):
    known, _ = run(accelerated=False)
    found, programs = run(accelerated=True)
    assert programs.total() <= MOST_WITH_PROBES, programs
    assert [(row["metric"], row.get("variant")) for row in found] == [(r["metric"], r.get("variant")) for r in known]
    for ours, host in zip(found, known, strict=True):
        # Of some hundred images, one or two may lie at a border.
        assert ours["value"] == pytest.approx(host["value"], abs=0.02), ours


def test_the_tool_tells_what_each_part_compiles():
    cost = evaluation.Cost()
    with evaluation.measured(cost):
        jax.jit(lambda x: x + 1)(np.ones(3, np.float32))
    jax.jit(lambda x: x + 2)(np.ones(3, np.float32))
    assert cost.programs == {"jit(<lambda>)": 1} and 0 < cost.compilation < cost.wall
    lines = evaluation.table({"knn": evaluation.Cost(1.25, 2.5, cost.programs, 0.5)}, names=True).splitlines()
    assert lines[2:] == ["| knn | 1.2 | 2.5 | 1 | 0.5 |", "knn: 1 x jit(<lambda>)"]
