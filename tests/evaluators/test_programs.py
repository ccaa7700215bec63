"""How many programs the default evaluators compile, and that an accelerator's path gives what the host's does."""

import json
from unittest import mock

import jax
import numpy as np
import pytest
import tiny

from benchmarks import evaluation
from hybrid_jax import evaluate
from hybrid_jax.data import sources
from hybrid_jax.evaluators import accelerator, ahead, logistic, logistic_device, prdc
from hybrid_jax.evaluators.features import FeatureStore
from hybrid_jax.inference import Model
from hybrid_jax.models import hybrid

# Of the whole default suite with its report; each costs seconds on an accelerator.
MOST_PROGRAMS = 22


def untrained(config) -> Model:
    params = hybrid.init_params(hybrid.build_model(config), jax.random.key(0), None)
    return Model(config, jax.device_put(params, jax.devices()[0]), None, 0)


@pytest.fixture(scope="module")
def whole_suite(tmp_path_factory):
    """Returns run(accelerated): the default suite on digits in batches of 100; results, and the programs compiled."""
    config = tiny.get_config()
    config.eval.batch_size, config.eval.anomaly.num_images, config.eval.report_samples = 100, 100, 4
    config.eval.ood.num_images, config.eval.corruptions.num_images, config.eval.adversarial.num_images = 130, 130, 130
    config.eval.sample_quality.num_images, config.eval.corruptions.severities = 130, (5,)
    config.eval.adversarial.epsilons, config.eval.adversarial.steps = (4,), 2
    data = sources.load(config)

    def run(accelerated: bool):
        workdir = tmp_path_factory.mktemp("run")
        with (
            mock.patch.object(accelerator, "present", lambda: accelerated),
            evaluation.measured(evaluation.Cost()) as cost,
        ):
            evaluate.evaluate_and_report(untrained(config), data, config, workdir, lambda line: None)
        return json.loads((workdir / "eval" / "0.json").read_text()), cost.programs

    return run


def test_the_default_suite_compiles_few_programs(whole_suite):
    _, programs = whole_suite(False)
    print(programs)
    assert programs.total() <= MOST_PROGRAMS, programs
