"""The whole quickstart; minutes, so only with `pytest -m slow`."""

import json

import pytest


@pytest.mark.slow
def test_the_quickstart_learns_the_likelihood_and_features(command_line, tmp_path):
    result = command_line(f"--workdir={tmp_path}", config="configs/quickstart.py", timeout=1800)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "eval" / "600.json").read_text())
    rows = [row for row in rows if row["split"] == "test"]
    (likelihood,) = (row for row in rows if row["metric"] == "bits_per_dim")
    assert likelihood["comparable_with_literature"]
    assert likelihood["value"] < min(likelihood["floor"].values()) - 1.0
    probes = {row["variant"]: row["value"] for row in rows if row["metric"] == "linear_probe_accuracy"}
    assert probes["default"] > 0.82 and probes["last_four"] > 0.84
    assert "raw pixels" in (tmp_path / "report.html").read_text()
