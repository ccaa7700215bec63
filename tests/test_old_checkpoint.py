"""A run of an earlier version, in `old_run/`, is read, scored and continued as that version did.

It was made from tests/tiny.py with width 8, 16 levels, `train.ema_decay=0.9`, four steps and an anomaly score fitted to
100 images; `expected.json` holds what the version that wrote it gave for four digits, and for two steps more.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest
from sklearn.datasets import load_digits

import hybrid_jax
from hybrid_jax import config as config_lib
from hybrid_jax import metrics

OLD_RUN = pathlib.Path(__file__).parent / "old_run"
EXPECTED = json.loads((OLD_RUN / "expected.json").read_text())


IMAGES = (load_digits().images[:4] * 15).astype(np.uint8)[..., None]


@pytest.fixture
def old_run(tmp_path):
    shutil.copytree(OLD_RUN, tmp_path / "run")
    return tmp_path / "run"


def test_its_model_gives_the_recorded_numbers(old_run):
    model = hybrid_jax.load(old_run)
    assert model.step == 4
    np.testing.assert_allclose(model.log_prob(IMAGES), EXPECTED["log_prob"], rtol=1e-5)
    np.testing.assert_allclose(model.embed(IMAGES), EXPECTED["embed"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.anomaly_score(IMAGES), EXPECTED["anomaly_score"], rtol=1e-3)


def test_it_continues_with_its_optimizer_and_its_average(old_run, one_device):
    nested = json.loads((old_run / "config.json").read_text())
    assert "cache_gib" in nested["eval"], "a field that is no more"
    config = config_lib.from_dict(nested)
    config.train.total_steps, config.eval.every_steps, config.eval.anomaly.num_images = 6, -1, 0
    lines: list[str] = []
    hybrid_jax.train_and_evaluate(config, old_run, lines.append)
    assert "resuming from checkpoint 4" in lines
    rows = metrics.read(old_run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row, expected in zip(rows[4:], EXPECTED["resumed"], strict=True):
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-4), (row["step"], name)
    np.testing.assert_allclose(hybrid_jax.load(old_run).log_prob(IMAGES), EXPECTED["resumed_log_prob"], rtol=1e-5)
