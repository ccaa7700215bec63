"""The training loop, from top to bottom: data, mesh, state, then steps with logs, saves, evaluations."""

import contextlib
import json
import math
import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from hybrid_jax import checkpoint, sharding, train_step
from hybrid_jax import config as config_lib
from hybrid_jax import metrics as metrics_lib
from hybrid_jax.data import pipeline, sources
from hybrid_jax.errors import NonFiniteError, Preempted, UserError, reject
from hybrid_jax.evaluate import evaluate_and_report
from hybrid_jax.inference import from_state
from hybrid_jax.models import tokens

Log = Callable[[str], None]


def train_and_evaluate(config, workdir: str | os.PathLike, log: Log = print) -> dict[str, float]:
    """Trains, or resumes, until `total_steps`; evaluates on schedule and at the end.

    Writes `config.json`, `metrics.jsonl`, `checkpoints/<step>/`, `eval/<step>.json` and `report.html`.

    Args:
      config: a config from `get_config()` with overrides.
      workdir: folder of this run; created if missing, resumed if it has a checkpoint.
      log: takes progress lines.

    Returns:
      The last step's metrics, and the last evaluation's headline values by metric name.

    Raises:
      UserError: a mistake in the config, the data or the workdir.
      Preempted: SIGTERM or SIGINT came; the state is saved.
      NonFiniteError: a loss became infinite or NaN.
    """
    config_lib.validate(config)
    workdir = pathlib.Path(workdir)
    mesh = sharding.make_mesh(config)
    _refuse_other_config(config, workdir)
    data = sources.load(config)
    pipeline.steps_per_epoch(len(data.train.images), config.train.batch_size)
    _claim_workdir(config, workdir)
    with _explained_memory(config), _stop_requests() as stop_requested:
        return _run(config, workdir, data, mesh, stop_requested, log)


def _run(config, workdir: pathlib.Path, data, mesh, stop_requested: Callable[[], bool], log: Log) -> dict[str, float]:
    checkpoints = checkpoint.Checkpoints(workdir, config)
    state, start = _restore_or_init(config, checkpoints, data, mesh, log)
    _log_setup(config, data, mesh, state, start, log)
    step_fn = train_step.make_train_step(config, mesh)
    compare = _gradient_comparison(config, mesh)
    writer = metrics_lib.MetricsWriter(workdir, start)
    clock = _Clock(config, start)
    total, pending, last = config.train.total_steps, {}, {}
    if start < total:
        log("compiling the train step (once) ...")
    for step in range(start, total):
        done = step + 1
        logs = done in (1, total) or done % config.log.every_steps == 0
        saves = done == total or done % config.checkpoint.every_steps == 0
        evaluates = config.eval.every_steps > 0 and done % config.eval.every_steps == 0 and done < total
        indices = pipeline.batch_indices(config.seed, step, len(data.train.images), config.train.batch_size)
        images = sharding.global_batch(data.train.images, indices, mesh)
        # Before the step, which donates the state.
        gradients = compare(state, images) if logs and compare else {}
        state, pending[done] = step_fn(state, images)
        # At most two steps in flight: a stop request is answered soon, and batches do not pile up.
        jax.block_until_ready(pending.get(done - 1))
        stops = stop_requested()
        if logs or saves or evaluates or stops:
            values = _checked(pending)
            pending = {}
        if logs:
            last = values | {k: float(v) for k, v in jax.device_get(gradients).items()} | clock.rates(done)
            writer.write(done, last)
            log(metrics_lib.progress_line(done, total, last, clock.seconds_left(done)))
        # Saved only after the losses up to here were seen to be finite.
        if saves or stops:
            checkpoints.save(state, config, data.fingerprint)
        if stops and done < total:
            checkpoints.close()
            raise Preempted(f"stopped at step {done}, which is saved; the same command continues")
        if evaluates:
            with clock.paused():
                results = evaluate_and_report(from_state(config, state, mesh), data, config, workdir, log)
            writer.scalars(done, results)
    checkpoints.wait()
    if config.eval.every_steps >= 0:
        last |= _final_evaluation(config, workdir, state, data, mesh, writer, log)
    writer.close()
    checkpoints.close()
    return last


def _final_evaluation(config, workdir: pathlib.Path, state, data, mesh, writer, log: Log) -> dict[str, float]:
    step = int(state.step)
    if (workdir / "eval" / f"{step}.json").exists() and (workdir / "report.html").exists():
        log(f"already trained and evaluated at step {step}: {workdir / 'report.html'}")
        return {}
    results = evaluate_and_report(from_state(config, state, mesh), data, config, workdir, log)
    writer.scalars(step, results)
    return results


def _refuse_other_config(config, workdir: pathlib.Path) -> None:
    """Raises UserError where the workdir has a checkpoint of a config that this one contradicts."""
    path = workdir / "config.json"
    if not path.exists() or not checkpoint.directory(workdir).exists():
        return
    try:
        before = config_lib.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise UserError(f"--workdir={workdir}: config.json is not JSON ({error})") from error
    wrong = config_lib.contradictions(before, config)
    if wrong:
        raise UserError("; ".join(wrong) + "; choose another --workdir")


def _claim_workdir(config, workdir: pathlib.Path) -> None:
    """Creates the workdir and writes `config.json`."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            temporary = workdir / "config.tmp"
            temporary.write_text(config_lib.to_json(config), encoding="utf-8")
            temporary.replace(workdir / "config.json")
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written ({error.strerror})") from error


def _restore_or_init(config, checkpoints: checkpoint.Checkpoints, data, mesh, log: Log):
    """Returns (state, steps done): the newest good checkpoint's, else fresh ones."""
    restored = checkpoints.restore_latest(train_step.abstract_state(config, mesh), log)
    if restored is not None:
        state, meta = restored
        if meta["fingerprint"] != data.fingerprint:
            raise UserError(f"config.data.path={config.data.path!r}: not the data this workdir was trained on")
        log(f"resuming from checkpoint {meta['step']}")
        return state, meta["step"]
    palette = None
    if config.model.token_kind == "palette":
        try:
            palette = tokens.fit_palette(data.train.images, config.model.palette_size)
        except ValueError as error:
            raise reject("model.palette_size", config.model.palette_size, f"the data have {error}") from error
    return train_step.init_state(config, mesh, palette), 0


def _gradient_comparison(config, mesh):
    both = config.objective.generative_weight > 0 and config.objective.contrastive_weight > 0
    return train_step.make_gradient_comparison(config, mesh) if both and config.log.gradients else None


def _checked(pending: dict[int, dict]) -> dict[str, float]:
    """Returns the newest metrics as floats.

    Raises:
      NonFiniteError: the first step whose loss or gradient is not finite.
    """
    found = {step: {k: float(v) for k, v in m.items()} for step, m in jax.device_get(pending).items()}
    for step, values in sorted(found.items()):
        bad = [
            f"{k} = {values[k]}"
            for k in ("generative_loss", "contrastive_loss", "loss", "grad_norm")
            if k in values and not math.isfinite(values[k])
        ]
        if bad and "skipped_updates" not in values:
            raise NonFiniteError(f"step {step}: {', '.join(bad)}; the last checkpoint is kept")
    return found[max(found)]


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGTERM or SIGINT has come; a second one stops at once."""
    came: list[int] = []

    def note(number, frame):
        if came:
            raise KeyboardInterrupt
        came.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # only the main thread may handle signals; a caller's thread keeps its own ways
        before = {}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _explained_memory(config) -> Iterator[None]:
    """Turns a device's out-of-memory error into one line about the settings that help."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise UserError(
            f"out of memory: lower config.train.batch_size={config.train.batch_size} or config.model.width="
            f"{config.model.width}, or raise config.train.microbatches={config.train.microbatches}, or set "
            "config.model.remat=True"
        ) from error


class _Clock:
    """Speed and time left, without the time that evaluations take."""

    def __init__(self, config, start: int):
        self._batch, self._total, self._start = config.train.batch_size, config.train.total_steps, start
        self._first = self._last = (start, time.perf_counter())

    def rates(self, step: int) -> dict[str, float]:
        """Returns images per second since the last call."""
        now = time.perf_counter()
        before, then = self._last
        self._last = (step, now)
        if before == self._start:
            # The first interval holds compilation, which says nothing about the time left.
            self._first = self._last
        return {"images_per_second": (step - before) * self._batch / (now - then)}

    def seconds_left(self, step: int) -> float:
        """Returns the seconds that the remaining steps take at the speed so far."""
        (first, then), (last, now) = self._first, self._last
        return (self._total - step) * (now - then) / (last - first) if last > first else math.nan

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside out of the count."""
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        self._first, self._last = ((s, t + spent) for s, t in (self._first, self._last))


def _log_setup(config, data, mesh, state, start: int, log: Log) -> None:
    sizes = {name: len(split.images) for name in ("train", "validation", "test") if (split := getattr(data, name))}
    params = sum(np.prod(x.shape) for x in jax.tree.leaves(state.params))
    batch, total = config.train.batch_size, config.train.total_steps
    epochs = total / pipeline.steps_per_epoch(sizes["train"], batch)
    device = jax.devices()[0]
    log(f"data {data.name}: " + ", ".join(f"{count:,} {name}" for name, count in sizes.items()))
    for note in data.notes:
        log(f"  {note}")
    log(f"model: {params:,} parameters, {config.model.dtype}")
    log(f"devices: {mesh.size} x {device.device_kind} ({device.platform}), mesh {dict(mesh.shape)}")
    log(f"steps: {start:,} done of {total:,}, batch {batch:,}, {epochs:.1f} epochs in all")
    warmup = config.optimizer.warmup_steps
    if warmup > total // 2:
        log(f"warm-up: {total // 2} steps, half of the run, instead of {warmup}")
