"""The training loop, from top to bottom: data, mesh, state, then steps with logs, saves, evaluations."""

import contextlib
import math
import os
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from hybrid_jax import config as config_lib
from hybrid_jax import evaluators, initialize, metric_writers, sharding, train_state, train_step
from hybrid_jax import metrics as metrics_lib
from hybrid_jax.anomaly import fit as anomaly_fit
from hybrid_jax.data import feed, pipeline, sources
from hybrid_jax.errors import NonFiniteError, Preempted, UserError, oom_advice, reject
from hybrid_jax.evaluate import evaluate_and_report, write_anomaly
from hybrid_jax.evaluators.features import FeatureStore
from hybrid_jax.inference import model as model_lib
from hybrid_jax.metrics import read_headline, results_path
from hybrid_jax.models import tokens
from hybrid_jax.multihost import coordination, preemption
from hybrid_jax.storage import best as best_checkpoint
from hybrid_jax.storage import checkpoint, lock
from hybrid_jax.storage.files import still_writable, writable, write_whole

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
    config_lib.validate(config)
    best_checkpoint.check(config)
    workdir, log = pathlib.Path(workdir), coordination.only_first(log)
    mesh = sharding.make_mesh(config)
    advice = (
        f"lower config.train.batch_size={config.train.batch_size} or config.model.width={config.model.width}, raise "
        f"config.train.microbatches={config.train.microbatches}, or set config.model.remat=True"
    )
    with contextlib.ExitStack() as stack:
        with coordination.raise_on_all_processes(UserError), coordination.first_goes_first():
            data = sources.load(config)
            pipeline.steps_per_epoch(len(data.train.images), config.train.batch_size)
            seen = data.for_evaluation(config.eval.max_images)
            evaluators.check(seen, config)
            best_checkpoint.check_data(config, seen)
            metric_writers.check(config)
            _create(workdir)
            still_ours = stack.enter_context(lock.held(workdir, log))
        coordination.check_same(
            config=config_lib.to_json(config), fingerprint=data.fingerprint, fork_from=str(fork_from)
        )
        stack.enter_context(oom_advice(advice))
        stops = stack.enter_context(preemption.StopRequests(mesh))
        checkpoints = stack.enter_context(contextlib.closing(checkpoint.Checkpoints(workdir, config, still_ours)))
        state, start = _restore_or_init(config, workdir, checkpoints, data, mesh, fork_from, log)
        with writable(workdir):
            write_whole(workdir / "config.json", config_lib.to_json(config))
        _log_setup(config, data, mesh, state, start, log)
        stack.enter_context(still_writable(workdir))
        opened = metric_writers.MetricsWriter(workdir, start, config, lambda: data.train.images[:8])
        writer = stack.enter_context(contextlib.closing(opened))
        return _run(config, workdir, data, mesh, state, start, checkpoints, writer, stops, log)


def _run(config, workdir, data, mesh, state, start, checkpoints, writer, stops, log) -> dict[str, float]:
    """The loop: evaluate what was saved, take a batch, step, log, save."""
    step_fn, compare = train_step.make_train_step(config, mesh), _gradient_comparison(config, mesh, log)
    model = model_lib.Model(config, None, None, start, mesh)
    total, batch, pending, last = config.train.total_steps, config.train.batch_size, {}, {}
    clock = metrics_lib.Clock(batch, total, start)
    on_device = feed.fits_devices(data.train.images, mesh, config.data.device_gib)
    batches = feed.batches(data.train.images, config.seed, batch, start, total, mesh, on_device)

    def evaluate(state) -> dict[str, float]:
        message = f"stopped while step {int(state.step)} was evaluated, which is saved; the same command continues"
        advice = f"lower config.eval.batch_size={config.eval.batch_size}"
        with clock.paused(), oom_advice(advice), stops.preemptible(message) as raise_if_preempted:
            results = evaluate_and_report(model.with_state(state), data, config, workdir, log, raise_if_preempted)
        writer.scalars(int(state.step), results)
        return results

    if start < total:
        log("compiling the train step (once) ...")
        _compile_beside(compare, config, mesh)
    for step in range(start, total):
        # Here, not after the save, so that a run stopped in between evaluates when it resumes.
        due = config.eval.every_steps > 0 and step > 0 and step % config.eval.every_steps == 0
        if due and not coordination.broadcast_from_process_zero(results_path(workdir, step).exists()):
            evaluate(state)
        elif due and step > start and coordination.is_first():
            writer.scalars(step, read_headline(workdir, step))
        images = next(batches)
        done = step + 1
        logs = done in (1, total) or done % config.log.every_steps == 0
        # Before the step, which donates the state.
        gradients = compare(state, images) if logs and compare else {}
        stop_asked = stops.ask()
        state, pending[done] = step_fn(state, images)
        # At most two steps in flight: a stop request is answered soon, and batches do not pile up.
        jax.block_until_ready(pending.get(done - 1))
        leaves = stop_asked() and done < total
        evaluates = config.eval.every_steps > 0 and done % config.eval.every_steps == 0
        saves = leaves or evaluates or done == total or done % config.checkpoint.every_steps == 0
        if logs or saves:
            checkpoints.check()
            values = _checked(pending, config.train.skip_nonfinite)
            pending = {}
        if logs:
            last = values | {k: float(v) for k, v in jax.device_get(gradients).items()} | clock.rates(done)
            writer.write(done, last)
            log(metrics_lib.progress_line(done, total, last, clock.seconds_left(done)))
        # Only after all losses up to here were seen to be finite.
        if saves:
            checkpoints.save(state, config, data.fingerprint)
        if leaves:
            raise Preempted(f"stopped at step {done}, which is saved; the same command continues")
    checkpoints.wait()
    if start == total and coordination.broadcast_from_process_zero(results_path(workdir, total).exists()):
        log(f"already trained and evaluated; --mode=eval evaluates again; report: {workdir / 'report.html'}")
        return _last_metrics(workdir) | read_headline(workdir, total)
    if config.eval.every_steps < 0 and not (
        start == total and coordination.broadcast_from_process_zero(anomaly_fit.path_of(workdir, total).exists())
    ):
        with oom_advice(f"lower config.eval.batch_size={config.eval.batch_size}"):
            seen = data.for_evaluation(config.eval.max_images)
            write_anomaly(FeatureStore(model.with_state(state), seen), config, workdir, log)
    return (last or _last_metrics(workdir)) | (evaluate(state) if config.eval.every_steps >= 0 else {})


def _last_metrics(workdir: pathlib.Path) -> dict[str, float]:
    rows = metrics_lib.read(workdir)
    return {k: v for k, v in rows[-1].items() if k != "step" and v is not None} if rows else {}


def _create(workdir: pathlib.Path) -> None:
    with writable(workdir):
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)


def _restore_or_init(config, workdir, checkpoints: checkpoint.Checkpoints, data, mesh, fork_from, log: Log):
    """Returns (state, steps done): the newest good checkpoint's, else a fork's, else fresh ones."""

    def accept(meta: dict) -> None:
        wrong = config_lib.contradictions(checkpoints.config(meta["step"]), config)
        if wrong:
            raise UserError("; ".join(wrong) + "; choose another --workdir")
        data.check(meta["fingerprint"], config.data.path)
        if meta["step"] > config.train.total_steps:
            raise reject("train.total_steps", config.train.total_steps, f"the workdir is at step {meta['step']}")

    restored = checkpoints.restore_latest(train_state.abstract_state(config, mesh), accept, log)
    if restored is not None:
        state, meta = restored
        log(f"resuming from checkpoint {meta['step']}")
        if fork_from:
            log(initialize.ignored(workdir, fork_from))
        return state, meta["step"]
    if rows := metrics_lib.read(workdir):
        log(f"no checkpoint, though metrics.jsonl goes to step {rows[-1]['step']}: starting again from step 0")
    palette = lambda: _fit_palette(config, data, log)
    if fork_from:
        return initialize.forked_state(config, workdir, fork_from, mesh, palette, log), 0
    initialize.forget(workdir, log)
    return train_state.init_state(config, mesh, palette()), 0


def _fit_palette(config, data, log: Log) -> tokens.Palette | None:
    spec = tokens.TokenSpec.from_config(config)
    if spec.kind != "palette":
        return None
    try:
        colours = tokens.fit_palette(data.train.images, spec.vocab_size)
    except UserError:  # a damaged record says so itself
        raise
    except ValueError as error:
        raise reject("model.palette_size", spec.vocab_size, f"the data have {error}") from error
    # Another kind of processor may round k-means otherwise.
    colours = np.array(coordination.broadcast_from_process_zero(colours.tolist()), np.float32)
    palette = tokens.Palette.from_colours(colours)
    psnr = tokens.palette_psnr(data.train.images[:1000], spec, palette)
    log(f"palette: {spec.vocab_size} colours, PSNR {psnr:.2f} dB on the first 1,000 training images")
    return palette


def _gradient_comparison(config, mesh, log: Log):
    both = config.objective.generative_weight > 0 and config.objective.contrastive_weight > 0
    if not (both and config.log.gradients):
        return None
    if config.train.microbatches > 1:
        log("log.gradients: left out, it would need the memory of a whole batch (train.microbatches > 1)")
        return None
    return train_step.make_gradient_comparison(config, mesh)


def _compile_beside(compare, config, mesh) -> None:
    """Compiles the gradient comparison in a thread, while the first step is compiled; its first call then waits for it.

    Not in a run of several processes: their compilers wait for one another, in one order.
    """
    if compare is None or coordination.several():
        return
    arguments = train_step.abstract_arguments(config, mesh)
    # What fails here fails again, and is told, where it is called.
    ThreadPoolExecutor(1).submit(lambda: compare.lower(*arguments).compile())


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
