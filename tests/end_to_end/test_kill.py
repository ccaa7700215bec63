"""A run that is killed at any instant ends as if it had never been."""

import killing
import pytest

FLAGS = ["--config.train.ema_decay=0.9", "--config.log.every_steps=7", "--config.checkpoint.every_steps=5"]


@pytest.mark.parametrize("kills, steps", [
    pytest.param(5, 150, id="5"),
    pytest.param(60, 1800, id="60", marks=pytest.mark.slow),
])  # fmt: skip
def test_killed_at_random_times_and_inside_saves_a_run_ends_to_the_bit(tmp_path, kills, steps):
    flags = [*FLAGS, f"--config.train.total_steps={steps}"]
    whole, killed = (killing.Run(tmp_path / name, *flags) for name in ("whole", "killed"))
    reference = whole.start()
    found = killing.kill_again_and_again(killed, kills, seed=kills)
    out = killed.finish()
    assert "resuming from checkpoint" in out and "taking over" in out
    reference_out, _ = reference.communicate(timeout=1200)
    assert reference.returncode == 0, reference_out
    for kill in found:
        print(kill)
    print(f"{len(found)} kills, {sum(kill.in_a_save for kill in found)} of them inside a save")
    assert any(kill.in_a_save for kill in found)
    killing.assert_equal(killed, whole)
