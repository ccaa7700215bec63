"""How many programs the default evaluators compile, and that an accelerator's way gives what the host's does."""

import contextlib
import functools
import json
from collections import Counter
from unittest import mock

import jax
import pytest
import tiny
from fakes import untrained

from hybrid_jax import evaluate
from hybrid_jax.data import sources
from hybrid_jax.utils import runtime

# Of the default suite and its report; each costs seconds on an accelerator.
MOST_PROGRAMS, MOST_WITH_PROBES = 18, 21
C_VALUES = (0.01, 0.1)


@contextlib.contextmanager
def compiled_programs():
    """Yields {name: how many programs of it were compiled inside}."""
    programs: Counter[str] = Counter()

    def listen(event: str, duration: float, **told) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            programs[str(told.get("fun_name"))] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


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
        with mock.patch.object(runtime, "on_accelerator", lambda: accelerated), compiled_programs() as programs:
            evaluate.evaluate_and_report(model, data, config, workdir, lines.append)
        assert not [line for line in lines if "not compiled" in line]
        return json.loads((workdir / "eval" / "0.json").read_text()), programs

    return run


def test_the_default_suite_compiles_few_programs_and_partial_batches_none(run):
    rows, programs = run(accelerated=False)
    assert programs.total() <= MOST_PROGRAMS, programs
    # Features, embedding, measures, likelihood, samples, completions: of each one shape.
    assert programs["jit(function)"] == 6
    told = {row["protocol"].rpartition("-v")[0] for row in rows}
    assert told >= {"linear-probe", "few-label", "knn", "likelihood", "sample-quality", "calibration", "corruptions"}
    assert told >= {"adversarial", "ood"}


@pytest.mark.slow
def test_an_accelerator_gives_the_hosts_results_in_few_programs(run, small_shapes):
    known, _ = run(accelerated=False)
    found, programs = run(accelerated=True)
    assert programs.total() <= MOST_WITH_PROBES, programs
    assert [(row["metric"], row.get("variant")) for row in found] == [(r["metric"], r.get("variant")) for r in known]
    for ours, host in zip(found, known, strict=True):
        # Of some hundred images, one or two may lie at a border.
        assert ours["value"] == pytest.approx(host["value"], abs=0.02), ours
