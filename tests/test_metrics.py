"""metrics.jsonl and the progress line."""

import json

from hybrid_jax import metrics


def test_reading_keeps_the_last_of_a_repeated_step_and_skips_broken_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 2, "loss": 1}\n[]\nnull\n{"loss": 3}\n{"step": 1, "loss": 9}\n{"step": 2, "loss": 5}\n{"st'
    )
    assert metrics.read(tmp_path) == [{"step": 1, "loss": 9}, {"step": 2, "loss": 5}]
    assert metrics.read(tmp_path / "absent") == []


def test_a_resumed_writer_drops_what_came_after_its_step(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step), "generative_loss": 0.5})
    writer.close()
    writer = metrics.MetricsWriter(tmp_path, 2)
    writer.write(3, {"loss": float("nan"), "generative_loss": 0.25})
    writer.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    # The loss of an absent branch is null, and so is a number that JSON cannot hold.
    assert rows[-1] == {"step": 3, "loss": None, "generative_loss": 0.25, "contrastive_loss": None}


def test_the_progress_line_has_losses_speed_and_time_left():
    values = {"loss": 1.5, "generative_loss": 1.25, "images_per_second": 1234.4}
    line = metrics.progress_line(50, 1000, values, 3725.4)
    assert line == "step   50/1000  loss 1.5000  nll 1.2500 nats/token  1,234 images/s  1:02:05 left"
    assert "left" not in metrics.progress_line(1, 1000, values, float("nan"))
