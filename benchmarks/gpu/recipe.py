"""Trains configs/cifar10.py as a command, on a folder of images, for as long as the stage has; another call goes on.

python -m benchmarks.gpu.recipe --data=FOLDER [--tiny] [--changes="train.total_steps=7000 model.width=256"]

FOLDER is an image folder (`train/` and `test/` with a sub-folder for each class), or where tfds has prepared `cifar10`.
The workdir is $WORK/recipe: a run that the time limit stops saves first, and goes on from there.
"""

import pathlib
import signal
import sys

from benchmarks.gpu import commands
from benchmarks.gpu.record import Entry, Record, stage_flags, work_folder
from hybrid_jax import metrics

_KEPT_ROWS = 60


def main() -> None:
    """Runs it, and writes down how far it came however it ends."""
    given = stage_flags(__doc__ or "", "data", "changes")
    if not pathlib.Path(given.data or "nowhere").is_dir():
        sys.exit(f"error: --data={given.data}: must be a folder of images, or of prepared tfds sets")
    record, workdir = Record("recipe", given.tiny), work_folder() / "recipe"
    # The run itself is told too, and ends when it has saved.
    signal.signal(signal.SIGTERM, lambda *_: None)
    said = commands.run(
        "--config=configs/cifar10.py", f"--workdir={workdir}", *words(given.data, given.changes, given.tiny)
    )
    record.put(
        "cifar10", progress(workdir) | {"exit_code": said.code, "seconds": said.seconds, "lines": said.lines[-20:]}
    )


def words(data: str, changes: str, tiny: bool) -> list[str]:
    """Returns the command's flags."""
    prepared = (pathlib.Path(data) / "cifar10").is_dir()
    set_up = [f"data.name={'cifar10' if prepared else 'folder'}", f"data.path={data}", "checkpoint.every_steps=500"]
    if tiny:
        set_up += [*commands.TINY_MODEL, "train.total_steps=3", "eval.every_steps=-1", "eval.anomaly.num_images=0"]
    return commands.settings(*set_up, *changes.split())


def progress(workdir: pathlib.Path) -> Entry:
    """Returns the run's last step and losses, its median speed, its curve, and the evaluation's headline."""
    rows = metrics.read(workdir)
    if not rows:
        return {"step": 0}
    speeds = sorted(row["images_per_second"] for row in rows[1:] or rows)
    results = sorted((workdir / "eval").glob("*.json"))
    headline = metrics.read_headline(workdir, int(results[-1].stem)) if results else {}
    kept = rows[:: max(1, len(rows) // _KEPT_ROWS)]
    curve = [{name: row.get(name) for name in ("step", "loss", "generative_loss", "contrastive_loss")} for row in kept]
    last = {name: rows[-1].get(name) for name in ("step", "loss", "generative_loss", "contrastive_loss")}
    return {**last, "images_per_s": speeds[len(speeds) // 2], "headline": headline, "curve": curve}


if __name__ == "__main__":
    main()
