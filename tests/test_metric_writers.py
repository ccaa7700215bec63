"""metrics.jsonl, TensorBoard and Weights & Biases: a resumed run continues the same curves."""

import json
import struct
import sys

import numpy as np
import pytest
from fakes import evaluated, interrupt_after
from tensorboardX.proto.event_pb2 import Event

from hybrid_jax import metric_writers, train
from hybrid_jax.errors import UserError


def events(workdir):
    """All events in the order of their files; TFRecord framing: length, its checksum, data, its checksum."""
    for file in sorted(workdir.glob("events.out.tfevents.*"), key=lambda p: p.stat().st_mtime_ns):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event()
            event.ParseFromString(content[place + 12 : place + 12 + length])
            yield event
            place += 16 + length


def curves(workdir):
    """What TensorBoard shows, {tag: [(step, value)]}: at a restart it drops all points from its step on."""
    shown: dict[str, list] = {}
    for event in events(workdir):
        if event.HasField("session_log"):
            shown = {tag: [point for point in points if point[0] < event.step] for tag, points in shown.items()}
        for value in event.summary.value:
            shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return {tag: points for tag, points in shown.items() if points}


def test_a_resumed_writer_drops_what_came_after_its_step(tmp_path):
    writer = metric_writers.MetricsWriter(tmp_path, 0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step), "generative_loss": 0.5})
    writer.close()
    writer = metric_writers.MetricsWriter(tmp_path, 2)
    writer.write(3, {"loss": float("nan"), "generative_loss": 0.25})
    writer.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    # The loss of an absent branch is null, and so is a number that JSON cannot hold.
    assert rows[-1] == {"step": 3, "loss": None, "generative_loss": 0.25, "contrastive_loss": None}


def test_tensorboard_has_each_point_once_however_often_a_run_is_killed_and_whatever_it_lost(tmp_path):
    # From step, steps it writes, and evaluations whose results it wrote: with the curve, or killed in between.
    for start, steps, shown, killed in (
        (0, (1, 2), (), ()), (0, (1, 2, 4), (3,), (4,)), (4, (6, 8), (), ()), (5, (6, 8), (5, 7), ()),
        (7, (8,), (), ()),
    ):  # fmt: skip
        writer = metric_writers.MetricsWriter(tmp_path, start)
        for step in steps:
            writer.write(step, {"loss": float(step)})
        for step in (*shown, *killed):
            evaluated(tmp_path, step, 0.0, test=step / 8)
            if step in shown:
                writer.scalars(step, {"knn_accuracy": step / 8})
        writer.close()
    found = curves(tmp_path)
    assert sorted(found["loss"]) == [(1, 1), (2, 2), (4, 4), (6, 6), (8, 8)]
    assert sorted(found["knn_accuracy"]) == [(step, step / 8) for step in (3, 4, 5, 7)]
    # A row that the thread of the event file had not written when it was killed.
    lost = max(tmp_path.glob("events.out.tfevents.*"), key=lambda p: p.stat().st_mtime_ns)
    lost.unlink()
    metric_writers.MetricsWriter(tmp_path, 8).close()
    assert sorted(curves(tmp_path)["loss"])[-1] == (8, 8)


def test_tensorboard_shows_the_config_and_some_training_images(tmp_path, tiny_config):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    metric_writers.MetricsWriter(tmp_path, 0, tiny_config(), lambda: images).close()
    metric_writers.MetricsWriter(
        tmp_path, 5, tiny_config(log__every_steps=7), lambda: pytest.fail("shown twice")
    ).close()
    found = [(event.step, value) for event in events(tmp_path) for value in event.summary.value]
    texts = [(step, value.tensor.string_val[0].decode()) for step, value in found if value.tag.startswith("config")]
    assert [step for step, _ in texts] == [0, 5]
    assert '"palette_size": 512' in texts[0][1] and '"every_steps": 7' in texts[1][1]
    [(step, shown)] = [(step, value.image) for step, value in found if value.tag == "training_images"]
    assert (step, shown.height, shown.width) == (0, 8, 24)


FAKE = """
import json, pathlib
def init(**settings):
    if settings["project"] == "forbidden":
        raise RuntimeError("permission\\ndenied")
    return Run(settings)
class Run:
    def __init__(self, settings):
        self.file = open(pathlib.Path(settings["dir"]) / "calls.jsonl", "a")
        self.note("init", {k: v for k, v in settings.items() if k != "config"} | {"seed": settings["config"]["seed"]})
    def note(self, *call):
        print(json.dumps(call), file=self.file, flush=True)
    def log(self, values, step):
        self.note("log", values, step)
    def finish(self):
        self.note("finish")
"""


@pytest.fixture
def fake_wandb(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield
    sys.modules.pop("wandb", None)


def test_a_resumed_run_is_the_same_run_of_weights_and_biases(tmp_path, tiny_config, fake_wandb):
    config = tiny_config(log__wandb_project="mine", seed=3)
    metric_writers.check(config)
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writer = metric_writers.MetricsWriter(tmp_path, start, config)
        for step in steps:
            writer.write(step, {"loss": float(step)})
        writer.close()
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    starts = [call[1] for call in calls if call[0] == "init"]
    assert starts[0] == starts[1] and len(starts[0]["id"]) == 16
    assert starts[0].items() >= {"project": "mine", "resume": "allow", "name": tmp_path.name, "seed": 3}.items()
    # Of a step that goes back W&B keeps what it has, the same values.
    assert [call[1:] for call in calls if call[0] == "log"] == [[{"loss": s}, s] for s in (1, 2, 3, 2, 3, 4)]
    assert [call[0] for call in calls].count("finish") == 2
    other = tiny_config(log__wandb_project="forbidden")
    with pytest.raises(UserError, match=r"log.wandb_project='forbidden': cannot be started \(permission denied\)"):
        metric_writers.MetricsWriter(tmp_path, 0, other)


def test_without_wandb_one_line_has_the_command(tmp_path, tiny_config, monkeypatch):
    # A folder of that name, as its offline runs leave, is not the package.
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    metric_writers.check(tiny_config())
    if metric_writers.importlib.util.find_spec("wandb").origin is None:
        with pytest.raises(UserError, match=r"log.wandb_project='mine': .*pip install wandb"):
            metric_writers.check(tiny_config(log__wandb_project="mine"))


@pytest.mark.slow
def test_an_interrupted_run_has_the_curves_of_one_that_was_not(tmp_path, tiny_config, one_device):
    config = tiny_config(eval__every_steps=4, eval__evaluators=("likelihood",), log__every_steps=1)

    interrupt_after(config, tmp_path / "parts", 4)
    for name in ("parts", "whole"):
        train.train_and_evaluate(config, tmp_path / name, lambda line: None)
    parts, whole = (curves(tmp_path / name) for name in ("parts", "whole"))
    assert [step for step, _ in parts["bits_per_dim"]] == [4, 8, 10]
    assert [step for step, _ in parts["loss"]] == list(range(1, 11))
    apart = ("images_per_second", "config/text_summary")
    assert {t: p for t, p in parts.items() if t not in apart} == {t: p for t, p in whole.items() if t not in apart}
