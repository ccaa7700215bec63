"""Reading metrics.jsonl, and the progress line."""

from hybrid_jax import metrics


def test_reading_keeps_the_last_of_a_repeated_step_and_skips_broken_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 2, "loss": 1}\n[]\nnull\n{"loss": 3}\n{"step": 1, "loss": 9}\n{"step": 2, "loss": 5}\n{"st'
    )
    assert metrics.read(tmp_path) == [{"step": 1, "loss": 9}, {"step": 2, "loss": 5}]
    assert metrics.read(tmp_path / "absent") == []


def test_the_progress_line_has_losses_speed_and_time_left():
    values = {"loss": 1.5, "generative_loss": 1.25, "images_per_second": 1234.4}
    line = metrics.progress_line(50, 1000, values, 3725.4)
    assert line == "step   50/1000  loss 1.5000  nll 1.2500 nats/token  1,234 images/s  1:02:05 left"
    assert "left" not in metrics.progress_line(1, 1000, values, float("nan"))
