"""metrics.jsonl and the progress line."""

import json
import struct

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


def test_tensorboard_gets_the_same_scalars_and_a_resumed_run_continues_them(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writer = metrics.MetricsWriter(tmp_path, start)
        for step in steps:
            writer.write(step, {"loss": float(step)})
        writer.close()
    seen: dict[int, float] = {}
    for file in sorted(tmp_path.glob("events.out.tfevents.*")):
        for event in _events(file.read_bytes(), Event):
            if event.HasField("session_log"):
                # What TensorBoard does at a restart: points from there on are purged.
                seen = {step: value for step, value in seen.items() if step < event.step}
            for value in event.summary.value:
                seen[event.step] = value.simple_value
    assert seen == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}


def _events(content, kind):
    """Parses TFRecord framing: length, its checksum, data, its checksum."""
    place = 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        event = kind()
        event.ParseFromString(content[place + 12 : place + 12 + length])
        yield event
        place += 16 + length


def test_the_progress_line_has_losses_speed_and_time_left():
    values = {"loss": 1.5, "generative_loss": 1.25, "images_per_second": 1234.4}
    line = metrics.progress_line(50, 1000, values, 3725.4)
    assert line == "step   50/1000  loss 1.5000  nll 1.2500 nats/token  1,234 images/s  1:02:05 left"
    assert "left" not in metrics.progress_line(1, 1000, values, float("nan"))
