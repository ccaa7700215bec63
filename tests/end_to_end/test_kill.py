"""A run that is killed at any instant ends as if it had never been."""

import killing
import pytest


@pytest.mark.parametrize("kills, most_saves, flags", [
    # Ten steps, as in other tests, so that the compiled step is found in the cache.
    pytest.param(2, 1, ["--config.checkpoint.every_steps=1", "--config.log.every_steps=2"], id="2"),
    pytest.param(60, 4, [
        "--config.checkpoint.every_steps=5", "--config.log.every_steps=7", "--config.train.total_steps=1800",
        "--config.train.ema_decay=0.9",
    ], id="60", marks=pytest.mark.slow),
])  # fmt: skip
def test_killed_at_random_times_and_inside_saves_a_run_ends_to_the_bit(tmp_path, kills, most_saves, flags):
    whole, killed = (killing.Run(tmp_path / name, *flags) for name in ("whole", "killed"))
    reference = whole.start()
    found = killing.kill_again_and_again(killed, kills, kills, most_saves)
    out = killed.finish()
    assert "resuming from checkpoint" in out and "taking over" in out
    reference_out, _ = reference.communicate(timeout=1200)
    assert reference.returncode == 0, reference_out
    print("\n" + "\n".join(map(str, found)))
    print(f"{len(found)} kills, {sum(kill.in_a_save for kill in found)} of them inside a save")
    assert any(kill.in_a_save for kill in found)
    killing.assert_equal(killed, whole)
