"""What the tests of several evaluators share."""

import pytest

from hybrid_jax.evaluators import logistic_device


@pytest.fixture
def small_shapes(monkeypatch):
    """Programs of the sizes that digits need, so that the host need not compute what only fills up."""
    monkeypatch.setattr(logistic_device, "_ROWS", (200, 600))
    monkeypatch.setattr(logistic_device, "_COLUMNS", (64, 128))
