"""The training loop: open or resume a run, then train with logs, checkpoints and evaluations."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from hybrid_jax import initialize, metric_writers, train_step
from hybrid_jax import metrics as metrics_lib
from hybrid_jax.data import feed, pipeline
from hybrid_jax.errors import NonFiniteError, Preempted, oom_advice
from hybrid_jax.evaluate import evaluate_and_report
from hybrid_jax.inference import model as model_lib
from hybrid_jax.initialize import Run
from hybrid_jax.metrics import read_headline, results_path
from hybrid_jax.multihost import coordination
from hybrid_jax.storage.files import still_writable
from hybrid_jax.train_state import TrainState

Log = Callable[[str], None]


def train_and_evaluate(
    config, workdir: str | os.PathLike, log: Log = print, fork_from: str | None = None
) -> dict[str, float]:
    """Trains until `total_steps`, from the start or from the last checkpoint; evaluates on schedule and at the end.

    Writes `config.json`, `metrics.jsonl`, `checkpoints/<step>/`, `eval/<step>.json` and `report.html`.

    Args:
      config: a config from `get_config()` with overrides.
      workdir: folder of this run; created if missing, resumed if it has a checkpoint.
      log: function that prints a line.
      fork_from: `DIR[@step]`, the run that initialises the parameters; ignored if `workdir` has a checkpoint.

    Returns:
      Metrics of the last step, and headline values of the last evaluation, by name.

    Raises:
      UserError: the config, the data or the workdir is invalid.
      Preempted: the process received SIGTERM or SIGINT; the state is saved.
      NonFiniteError: a loss became infinite or NaN.
    """
    with contextlib.ExitStack() as stack:
        run = initialize.open_run(config, workdir, fork_from, log, stack)
        stack.enter_context(oom_advice(_memory_advice(config)))
        state, start = initialize.starting_state(run)
        _log_setup(run, state, start)
        stack.enter_context(still_writable(run.workdir))
        opened = metric_writers.MetricsWriter(run.workdir, start, config, lambda: run.data.train.images[:8])
        writer = stack.enter_context(contextlib.closing(opened))
        return _train(run, state, start, writer)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When to log, save and evaluate.

    Attributes:
      total: steps of the run.
      log_every: steps between progress lines.
      save_every: steps between checkpoints.
      evaluate_every: steps between evaluations during training; none if not above 0.
    """

    total: int
    log_every: int
    save_every: int
    evaluate_every: int

    @classmethod
    def from_config(cls, config) -> "Schedule":
        """Returns the schedule of a resolved config."""
        every = config.log.every_steps, config.checkpoint.every_steps, config.eval.every_steps
        return cls(config.train.total_steps, *every)

    def logs(self, done: int) -> bool:
        """Returns whether to log after `done` steps: the first, the last, and those on schedule."""
        return done in (1, self.total) or done % self.log_every == 0

    def evaluates(self, done: int) -> bool:
        """Returns whether to evaluate after `done` steps; the final evaluation is separate."""
        return 0 < done < self.total and self.evaluate_every > 0 and done % self.evaluate_every == 0

    def saves(self, done: int) -> bool:
        """Returns whether to save after `done` steps: the last, those evaluated, and those on schedule."""
        return done == self.total or self.evaluates(done) or done % self.save_every == 0


def _train(run: Run, state: TrainState, start: int, writer: metric_writers.MetricsWriter) -> dict[str, float]:
    """The loop: evaluate the saved state, get a batch, step, log, save."""
    config, schedule, total = run.config, Schedule.from_config(run.config), run.config.train.total_steps
    train_one, compare = train_step.make_train_step(config, run.mesh), _gradient_comparison(run)
    batches, progress = _batches(run, start), _Progress(run, start, writer)
    _compile_beside(compare, run, start)
    for done in range(start + 1, total + 1):
        # Not directly after the save, so that a run stopped in between evaluates when it resumes.
        if schedule.evaluates(done - 1):
            progress.evaluate(state)
        images, stop_asked = next(batches), run.stops.ask()
        # All inputs of the step are on the devices.
        with jax.transfer_guard("disallow"), _profiled(run, start, done):
            # Must precede the step, which donates the state.
            gradients = compare(state, images) if schedule.logs(done) else None
            state, metrics = train_one(state, images)
            progress.add(done, metrics)
        leaves = stop_asked() and done < total
        saves = leaves or schedule.saves(done)
        if saves or schedule.logs(done):
            run.checkpoints.check()
            progress.settle(done, gradients)
        # Only after `settle` found all losses finite.
        if saves:
            run.checkpoints.save(state, config, run.data.fingerprint)
        if leaves:
            raise Preempted(f"stopped at step {done}, which is saved; the same command continues")
    run.checkpoints.wait()
    return progress.finish(state)


class _Progress:
    """Checks, writes and logs the metrics of steps; runs evaluations."""

    def __init__(self, run: Run, start: int, writer: metric_writers.MetricsWriter):
        self._run, self._start, self._writer = run, start, writer
        self._clock = metrics_lib.Clock(run.config.train.batch_size, run.config.train.total_steps, start)
        self._model = model_lib.Model(run.config, None, None, start, run.mesh)
        self._pending: dict[int, dict[str, jax.Array]] = {}
        self._last: dict[str, float] = {}

    def add(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """Queues the metrics of a step, which may not be ready yet; waits for those of the previous step.

        At most two steps are in flight, so that stop requests take effect soon and batches do not pile up.
        """
        self._pending[done] = metrics
        jax.block_until_ready(self._pending.get(done - 1))

    def settle(self, done: int, gradients: dict[str, jax.Array] | None) -> None:
        """Checks all queued steps; writes and logs the metrics of the last unless `gradients` is None.

        Raises:
          NonFiniteError: see `_checked`.
        """
        values = _checked(self._pending, self._run.config.train.skip_nonfinite)
        self._pending = {}
        if gradients is None:
            return
        compared = {name: float(value) for name, value in jax.device_get(gradients).items()}
        self._last = values | compared | self._clock.rates(done)
        self._writer.write(done, self._last)
        total, left = self._run.config.train.total_steps, self._clock.seconds_left(done)
        self._run.log(metrics_lib.progress_line(done, total, self._last, left))

    def finish(self, state: TrainState) -> dict[str, float]:
        """Evaluates the last state unless `eval.every_steps` is -1.

        Returns:
          The last metrics written, possibly by an earlier process, and headline values of the evaluation.
        """
        rows = [] if self._last else metrics_lib.read(self._run.workdir)
        last = self._last or ({k: v for k, v in rows[-1].items() if k != "step" and v is not None} if rows else {})
        return last | (self.evaluate(state) if self._run.config.eval.every_steps >= 0 else {})

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Evaluates a saved state unless it has results already; returns headline values by metric name."""
        run, step = self._run, int(jax.device_get(state.step))
        complete = coordination.is_first() and results_path(run.workdir, step).exists()
        known = coordination.broadcast_from_process_zero(read_headline(run.workdir, step) if complete else None)
        if known is None:
            message = f"stopped while step {step} was evaluated, which is saved; the same command continues"
            advice = f"lower config.eval.batch_size={run.config.eval.batch_size}"
            with self._clock.paused(), oom_advice(advice), run.stops.preemptible(message) as raise_if_preempted:
                model = self._model.with_state(state)
                results = evaluate_and_report(model, run.data, run.config, run.workdir, run.log, raise_if_preempted)
            self._writer.scalars(step, results)
            return results
        if step > self._start:  # the writer handles earlier steps when it opens
            self._writer.scalars(step, known)
        elif step == run.config.train.total_steps:
            report = run.workdir / "report.html"
            run.log(f"already trained and evaluated; --mode=eval evaluates again; report: {report}")
        return known


def _checked(pending: dict[int, dict], tolerated: int) -> dict[str, float]:
    """Returns the newest metrics as floats.

    Raises:
      NonFiniteError: names the first step with a loss or norm that is not finite, unless its update was skipped
        and at most `tolerated` consecutive updates were.
    """
    found = {step: {k: float(v) for k, v in m.items()} for step, m in jax.device_get(pending).items()}
    for step, values in sorted(found.items()):
        bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad and not 0 < values.get("skipped_in_a_row", 0) <= tolerated:
            raise NonFiniteError(f"step {step}: {', '.join(bad)}; the last checkpoint is kept")
    return found[max(found)]


def _batches(run: Run, start: int) -> Iterator[jax.Array]:
    images, train = run.data.train.images, run.config.train
    on_device = feed.fits_devices(images, run.mesh, run.config.data.device_gib)
    return feed.batches(images, run.config.seed, train.batch_size, start, train.total_steps, run.mesh, on_device)


def _gradient_comparison(run: Run) -> Callable[[TrainState, jax.Array], dict[str, jax.Array]]:
    """Returns compare(state, images) -> metrics; no metrics unless there are two losses and `log.gradients` is set."""
    objective = run.config.objective
    both = objective.generative_weight > 0 and objective.contrastive_weight > 0
    if both and run.config.log.gradients and run.config.train.microbatches == 1:
        return train_step.make_gradient_comparison(run.config, run.mesh)
    if both and run.config.log.gradients:
        run.log("log.gradients: skipped, needs the memory of a whole batch (train.microbatches > 1)")
    return lambda state, images: {}


def _compile_beside(compare, run: Run, start: int) -> None:
    """Compiles the gradient comparison in a thread, in parallel with the train step.

    Not with several processes: they must compile programs in the same order.
    """
    if start == run.config.train.total_steps:
        return
    run.log("compiling the train step (once) ...")
    if hasattr(compare, "lower") and not coordination.several():
        arguments = train_step.abstract_arguments(run.config, run.mesh)
        # An error here occurs again, and is reported, at the first call.
        ThreadPoolExecutor(1).submit(lambda: compare.lower(*arguments).compile())


@contextlib.contextmanager
def _profiled(run: Run, start: int, done: int) -> Iterator[None]:
    """Annotates a step; writes the profile of the steps in `log.profile_steps` to `profile/` in the workdir."""
    first, last = run.config.log.profile_steps or (0, 0)
    first, last = max(first, start + 1), min(last, run.config.train.total_steps)
    if first == done <= last:
        jax.profiler.start_trace(run.workdir / "profile")
    with jax.profiler.StepTraceAnnotation("train", step_num=done):
        yield
    if done == last >= first:
        # The loop itself waits only for the previous step.
        jax.block_until_ready(jax.live_arrays())
        jax.profiler.stop_trace()
        run.log(f"profile of steps {first} to {last}: {run.workdir / 'profile'}")


def _memory_advice(config) -> str:
    return (
        f"lower config.train.batch_size={config.train.batch_size} or config.model.width={config.model.width}, raise "
        f"config.train.microbatches={config.train.microbatches}, or set config.model.remat=True"
    )


def _log_setup(run: Run, state: TrainState, start: int) -> None:
    config, data, log = run.config, run.data, run.log
    sizes = {name: len(split.images) for name in ("train", "validation", "test") if (split := getattr(data, name))}
    batch, total = config.train.batch_size, config.train.total_steps
    epochs = total / pipeline.steps_per_epoch(sizes["train"], batch)
    device = jax.devices()[0]
    log(f"data {data.name}: " + ", ".join(f"{count:,} {name}" for name, count in sizes.items()))
    for note in data.notes:
        log(f"  {note}")
    log(f"model: {sum(x.size for x in jax.tree.leaves(state.params)):,} parameters, {config.model.dtype}")
    for line in parameter_overview(state.params):
        log(f"  {line}")
    log(f"devices: {run.mesh.size} x {device.device_kind} ({device.platform}), mesh {dict(run.mesh.shape)}")
    log(f"steps: {start:,} done of {total:,}, batch {batch:,}, {epochs:.1f} epochs in all")
    warmup = config.optimizer.warmup_steps
    if warmup > total // 2:
        log(f"warm-up: {total // 2} steps, half of the run, instead of {warmup}")


def parameter_overview(params: Any) -> list[str]:
    """Returns one line per part of a model: name, number of parameters and of arrays."""
    sizes: dict[str, list[int]] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(str(part.key) for part in path[:2])
        sizes.setdefault(name, []).append(x.size)
    width = max(map(len, sizes))
    return [
        f"{name:<{width}}  {sum(found):>13,} in {len(found)} array{'s' if len(found) > 1 else ''}"
        for name, found in sizes.items()
    ]
