"""The training loop, from top to bottom: what a run holds, its state, then steps with evaluations, logs and saves."""

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
    """Trains, or resumes, until `total_steps`; evaluates on schedule and at the end.

    Writes `config.json`, `metrics.jsonl`, `checkpoints/<step>/`, `eval/<step>.json` and `report.html`.

    Args:
      config: a config from `get_config()` with overrides.
      workdir: folder of this run; created if missing, resumed if it has a checkpoint.
      log: takes progress lines.
      fork_from: `DIR[@step]`, whose parameters a new run begins with; ignored where `workdir` has a checkpoint.

    Returns:
      The last step's metrics, and the last evaluation's headline values by metric name.

    Raises:
      UserError: a mistake in the config, the data or the workdir.
      Preempted: SIGTERM or SIGINT came; the state is saved.
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
    """What is due once a number of steps is done.

    Attributes:
      total: steps of the run.
      log_every, save_every, evaluate_every: every so many steps; evaluations during training only above 0.
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
        """The first step and the last, and those between on schedule."""
        return done in (1, self.total) or done % self.log_every == 0

    def evaluates(self, done: int) -> bool:
        """Whether an evaluation during training is due; the one after the last step is not on the schedule."""
        return 0 < done < self.total and self.evaluate_every > 0 and done % self.evaluate_every == 0

    def saves(self, done: int) -> bool:
        """The last step, whatever is evaluated, and those between on schedule."""
        return done == self.total or self.evaluates(done) or done % self.save_every == 0


def _train(run: Run, state: TrainState, start: int, writer: metric_writers.MetricsWriter) -> dict[str, float]:
    """The loop: evaluate what was saved, take a batch, step, log, save."""
    config, schedule, total = run.config, Schedule.from_config(run.config), run.config.train.total_steps
    train_one, compare = train_step.make_train_step(config, run.mesh), _gradient_comparison(run)
    batches, progress = _batches(run, start), _Progress(run, start, writer)
    _compile_beside(compare, run, start)
    for done in range(start + 1, total + 1):
        # Here, not after the save, so that a run stopped in between evaluates when it resumes.
        if schedule.evaluates(done - 1):
            progress.evaluate(state)
        images, stop_asked = next(batches), run.stops.ask()
        # All that a step needs is on the devices by now.
        with jax.transfer_guard("disallow"), _profiled(run, start, done):
            # Before the step, which donates the state.
            gradients = compare(state, images) if schedule.logs(done) else None
            state, metrics = train_one(state, images)
            progress.add(done, metrics)
        leaves = stop_asked() and done < total
        saves = leaves or schedule.saves(done)
        if saves or schedule.logs(done):
            run.checkpoints.check()
            progress.settle(done, gradients)
        # Only after all losses up to here were seen to be finite.
        if saves:
            run.checkpoints.save(state, config, run.data.fingerprint)
        if leaves:
            raise Preempted(f"stopped at step {done}, which is saved; the same command continues")
    run.checkpoints.wait()
    return progress.last() | (progress.evaluate(state) if config.eval.every_steps >= 0 else {})


class _Progress:
    """What a run has measured: metrics of its steps, checked, written and told, and its evaluations."""

    def __init__(self, run: Run, start: int, writer: metric_writers.MetricsWriter):
        self._run, self._start, self._writer = run, start, writer
        self._clock = metrics_lib.Clock(run.config.train.batch_size, run.config.train.total_steps, start)
        self._model = model_lib.Model(run.config, None, None, start, run.mesh)
        self._pending: dict[int, dict[str, jax.Array]] = {}
        self._last: dict[str, float] = {}

    def add(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """Takes a step's metrics, which may still be computed; waits for those of the step before.

        At most two steps are in flight: a stop request is answered soon, and batches do not pile up.
        """
        self._pending[done] = metrics
        jax.block_until_ready(self._pending.get(done - 1))

    def settle(self, done: int, gradients: dict[str, jax.Array] | None) -> None:
        """Checks all steps up to here; writes and tells the last one's metrics unless `gradients` is None.

        Raises:
          NonFiniteError: as `_checked`.
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

    def last(self) -> dict[str, float]:
        """Returns the metrics that were written last, be it by an earlier process."""
        rows = [] if self._last else metrics_lib.read(self._run.workdir)
        return self._last or ({k: v for k, v in rows[-1].items() if k != "step" and v is not None} if rows else {})

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Evaluates a state that is saved, unless that was done; returns headline values by metric name."""
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
        if step > self._start:  # what is older the writer has seen to
            self._writer.scalars(step, known)
        elif step == run.config.train.total_steps:
            report = run.workdir / "report.html"
            run.log(f"already trained and evaluated; --mode=eval evaluates again; report: {report}")
        return known


def _checked(pending: dict[int, dict], tolerated: int) -> dict[str, float]:
    """Returns the newest metrics as floats.

    Raises:
      NonFiniteError: the first step whose loss or norms are not finite, unless its update was skipped and
        no more than `tolerated` updates in a row were.
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
    """Returns compare(state, images) -> metrics, none where there are not two losses or nobody asks for them."""
    objective = run.config.objective
    both = objective.generative_weight > 0 and objective.contrastive_weight > 0
    if both and run.config.log.gradients and run.config.train.microbatches == 1:
        return train_step.make_gradient_comparison(run.config, run.mesh)
    if both and run.config.log.gradients:
        run.log("log.gradients: left out, it would need the memory of a whole batch (train.microbatches > 1)")
    return lambda state, images: {}


def _compile_beside(compare, run: Run, start: int) -> None:
    """Compiles the gradient comparison in a thread, while the first step is compiled; its first call then waits for it.

    Not in a run of several processes: their compilers wait for one another, in one order.
    """
    if start == run.config.train.total_steps:
        return
    run.log("compiling the train step (once) ...")
    if hasattr(compare, "lower") and not coordination.several():
        arguments = train_step.abstract_arguments(run.config, run.mesh)
        # What fails here fails again, and is told, where it is called.
        ThreadPoolExecutor(1).submit(lambda: compare.lower(*arguments).compile())


@contextlib.contextmanager
def _profiled(run: Run, start: int, done: int) -> Iterator[None]:
    """Names a step in a profile; writes the profile of the steps in `log.profile_steps` to the workdir's `profile/`."""
    first, last = run.config.log.profile_steps or (0, 0)
    first, last = max(first, start + 1), min(last, run.config.train.total_steps)
    if first == done <= last:
        jax.profiler.start_trace(run.workdir / "profile")
    with jax.profiler.StepTraceAnnotation("train", step_num=done):
        yield
    if done == last >= first:
        # The loop waits for the step before only.
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
    """Returns one line for each part of a model: its name, parameters and arrays."""
    sizes: dict[str, list[int]] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(str(part.key) for part in path[:2])
        sizes.setdefault(name, []).append(x.size)
    width = max(map(len, sizes))
    return [
        f"{name:<{width}}  {sum(found):>13,} in {len(found)} array{'s' if len(found) > 1 else ''}"
        for name, found in sizes.items()
    ]
