"""Start of a run: checks, open resources, and the initial state (resumed, forked or fresh).

A fork is a new run initialised with parameters of another, `--fork_from=DIR[@step]`; `fork.json` in its workdir
records which.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from hybrid_jax import config as config_lib
from hybrid_jax import evaluators, metric_writers, sharding, train_state
from hybrid_jax import metrics as metrics_lib
from hybrid_jax.data import pipeline, sources
from hybrid_jax.data.dataset import DataSet
from hybrid_jax.errors import UserError, reject
from hybrid_jax.models import tokens
from hybrid_jax.multihost import coordination
from hybrid_jax.multihost.preemption import StopRequests
from hybrid_jax.storage import best as best_checkpoint
from hybrid_jax.storage import checkpoint, lock
from hybrid_jax.storage.best import choose_steps
from hybrid_jax.storage.checkpoint import Checkpoints, DamagedError
from hybrid_jax.storage.files import writable, write_whole
from hybrid_jax.train_state import TrainState

Log = Callable[[str], None]
# These parameters depend on token indices; all others only on dequantised values.
_OF_VOCABULARY = ("head/", "encoder/patch_embedding/table/")


@dataclasses.dataclass(frozen=True)
class Run:
    """Resources of a training run.

    Attributes:
      config: the resolved, validated config.
      workdir: folder of the run, locked against other runs.
      mesh: mesh of all devices.
      spec: how images become tokens.
      data: the splits.
      checkpoints: checkpoints in the workdir.
      stops: requests to stop.
      fork_from: `DIR[@step]` of the run that initialises the parameters, or None.
      log: function that prints a line, on the first process only.
    """

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    mesh: Mesh
    spec: tokens.TokenSpec
    data: DataSet
    checkpoints: Checkpoints
    stops: StopRequests
    fork_from: str | None
    log: Log


def open_run(config, workdir: str | os.PathLike, fork_from: str | None, log: Log, stack: contextlib.ExitStack) -> Run:
    """Checks the config against data and devices, locks the workdir, and opens resources that `stack` closes.

    Raises:
      UserError: the config, the data or the workdir is invalid; at most an empty workdir was created.
    """
    config_lib.validate(config)
    best_checkpoint.check(config)
    workdir, log = pathlib.Path(workdir), coordination.only_first(log)
    mesh = sharding.make_mesh(config)
    with coordination.raise_on_all_processes(UserError), coordination.first_goes_first():
        data = sources.load(config)
        pipeline.steps_per_epoch(len(data.train.images), config.train.batch_size)
        seen = data.for_evaluation(config.eval.max_images)
        evaluators.check(seen, config)
        best_checkpoint.check_data(config, seen)
        metric_writers.check(config)
        with writable(workdir):
            (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        still_ours = stack.enter_context(lock.held(workdir, log))
    coordination.check_same(config=config_lib.to_json(config), fingerprint=data.fingerprint, fork_from=str(fork_from))
    stops = stack.enter_context(StopRequests(mesh))
    best_step = functools.partial(best_checkpoint.best_step, workdir, config.checkpoint.best_metric)
    checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir, config, still_ours, best_step)))
    spec = tokens.TokenSpec.from_config(config)
    return Run(config, workdir, mesh, spec, data, checkpoints, stops, fork_from, log)


def starting_state(run: Run) -> tuple[TrainState, int]:
    """Returns the initial state and its step, by the first case that applies.

    1. Resume: the newest intact checkpoint of the workdir.
    2. Fork (`fork_from`): step 0, with all parameters that match those of another run's checkpoint.
    3. Fresh parameters at step 0.

    Raises:
      UserError: the checkpoint contradicts the config or the data, or there is nothing to fork.
    """
    found = _resumed(run) or forked_state(run) or _fresh(run)
    with writable(run.workdir):
        write_whole(run.workdir / "config.json", config_lib.to_json(run.config))
    return found


def _resumed(run: Run) -> tuple[TrainState, int] | None:
    def accept(meta: dict) -> None:
        wrong = config_lib.contradictions(run.checkpoints.config(meta["step"]), run.config)
        if wrong:
            raise UserError("; ".join(wrong) + "; choose another --workdir")
        run.data.check(meta["fingerprint"], run.config.data.path)
        if meta["step"] > run.config.train.total_steps:
            raise reject("train.total_steps", run.config.train.total_steps, f"the workdir is at step {meta['step']}")

    abstract = train_state.abstract_state(run.config, run.mesh)
    restored = run.checkpoints.restore_latest(abstract, accept, run.log)
    if restored is None:
        return None
    state, meta = restored
    run.log(f"resuming from checkpoint {meta['step']}")
    if run.fork_from:
        before = _origin(run.workdir).get("fork_from")
        began = f"forked from {before}" if before else "not a fork"
        run.log(f"--fork_from={run.fork_from}: ignored, this run already has a checkpoint ({began})")
    return state, meta["step"]


def forked_state(run: Run) -> tuple[TrainState, int] | None:
    """Copies parameters with equal path and shape; those that depend on token indices only if both runs' tokens agree.

    They come from the moving average if the other run keeps one; the rest, and the optimizer state, are fresh.
    A fork stopped before its first checkpoint starts again from the step in `fork.json`.
    """
    if not run.fork_from:
        return None
    _say_that_steps_are_lost(run)
    step, part, parts, source = _read(run)
    palette, same_tokens = _forked_palette(run, source, parts.get("palette"))
    state = train_state.init_state(run.config, run.mesh, palette)
    old, new = _by_path(parts[part]), _by_path(state.params)
    fits = lambda name: same_tokens or not name.startswith(_OF_VOCABULARY)
    taken = {name for name, x in new.items() if name in old and old[name].shape == x.shape and fits(name)}
    if not taken:
        raise UserError(f"--fork_from={run.fork_from}: has no parameter in common with the model of this config")
    merged = jax.tree.unflatten(jax.tree.structure(state.params), [old[n] if n in taken else x for n, x in new.items()])
    average = None if state.ema_params is None else _copy(merged)
    run.log(_told(run.fork_from, step, part, taken, new, old))
    directory = str(pathlib.Path(split(run.fork_from)[0]).absolute())
    about = {"fork_from": run.fork_from, "directory": directory, "step": step, "from": part}
    about |= {"taken": sorted(taken), "new": sorted(set(new) - taken), "unused": sorted(set(old) - taken)}
    write_whole(origin_path(run.workdir), json.dumps(about, indent=1) + "\n")
    return state.replace(params=merged, ema_params=average), 0


def _fresh(run: Run) -> tuple[TrainState, int]:
    _say_that_steps_are_lost(run)
    before = _origin(run.workdir).get("fork_from")
    coordination.barrier()
    if before:
        run.log(f"starting from fresh parameters, not as a fork of {before} as before: --fork_from was not given")
        if coordination.is_first():
            origin_path(run.workdir).unlink(missing_ok=True)
    return train_state.init_state(run.config, run.mesh, _fit_palette(run)), 0


def _say_that_steps_are_lost(run: Run) -> None:
    if rows := metrics_lib.read(run.workdir):
        run.log(f"no checkpoint, although metrics.jsonl reaches step {rows[-1]['step']}: starting again from step 0")


def _fit_palette(run: Run) -> tokens.Palette | None:
    spec, images = run.spec, run.data.train.images
    if spec.kind != "palette":
        return None
    try:
        colours = tokens.fit_palette(images, spec.vocab_size)
    except UserError:  # a damaged record, with its own message
        raise
    except ValueError as error:
        raise reject("model.palette_size", spec.vocab_size, f"the data have {error}") from error
    # k-means may round differently on another processor.
    colours = np.array(coordination.broadcast_from_process_zero(colours.tolist()), np.float32)
    palette = tokens.Palette.from_colours(colours)
    psnr = tokens.palette_psnr(images[:1000], spec, palette)
    run.log(f"palette: {spec.vocab_size} colours, PSNR {psnr:.2f} dB on the first 1,000 training images")
    return palette


def origin_path(workdir: str | os.PathLike) -> pathlib.Path:
    """Returns the path of the file that records the origin of a fork."""
    return pathlib.Path(workdir) / "fork.json"


def split(fork_from: str) -> tuple[str, str]:
    """Returns the directory and the step of `DIR[@step]`; the step defaults to `latest`."""
    directory, at, step = fork_from.rpartition("@")
    # The name of a directory may contain @.
    if at and directory and (step in ("latest", "best") or step.isdecimal()):
        return directory, step
    return fork_from, "latest"


def _origin(workdir: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(origin_path(workdir).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _read(run: Run) -> tuple[int, str, dict[str, Any], Any]:
    """Returns the other run's step, the part with its parameters, all parts read, and its config."""
    assert run.fork_from is not None
    directory, asked = split(run.fork_from)
    told = f"--fork_from={run.fork_from}"
    if not checkpoint.directory(directory).is_dir():
        raise UserError(f"{told}: {directory} holds no checkpoint; must be the workdir of a run")
    before = _origin(run.workdir)
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        # The other run may have continued since; the same command must give the same result.
        again = before.get("fork_from") == run.fork_from and before.get("step") in checkpoints.steps()
        steps = coordination.broadcast_from_process_zero([before["step"]] if again else None)
        for step in steps or choose_steps(directory, asked, checkpoints, told):
            try:
                source = checkpoints.config(step)
                part = "ema_params" if source.train.ema_decay > 0 else "params"
                targets = train_state.abstract_state(source, run.mesh).saved()
                wanted = {name: targets[name] for name in (part, "palette") if name in targets}
                parts, _ = checkpoints.restore(step, wanted)
                return step, part, parts, source
            except DamagedError as error:
                run.log(f"{directory}: {error}")
    raise UserError(f"{told}: all matching checkpoints are damaged")


def _forked_palette(run: Run, source, colours: jax.Array | None) -> tuple[tokens.Palette | None, bool]:
    """Returns the new run's palette, and whether both runs' tokens have the same meaning."""
    new, old = run.spec, tokens.TokenSpec.from_config(source)
    same = (new.kind, new.vocab_size) == (old.kind, old.vocab_size)
    if new.kind != "palette":
        return None, same
    if same and new.channels == old.channels:
        run.log(f"palette: {new.vocab_size} colours, from the forked run")
        return tokens.Palette.from_colours(np.asarray(colours)), True
    run.log("palette: newly fitted, the forked run has none of this size")
    return _fit_palette(run), False


@jax.jit
def _copy(tree: Any) -> Any:
    # The train step donates both trees, so they must not share buffers.
    return jax.tree.map(jnp.copy, tree)


def _by_path(tree: Any) -> dict[str, jax.Array]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in found}


def _told(fork_from: str, step: int, part: str, taken: set[str], new: dict, old: dict) -> str:
    """Returns a line that lists copied and fresh parameters by module."""
    kind = "moving average" if part == "ema_params" else "parameters"
    fresh, unused = ({n: x for n, x in arrays.items() if n not in taken} for arrays in (new, old))
    line = f"fork of {split(fork_from)[0]} at step {step} ({kind}): took {_modules({n: new[n] for n in taken})}"
    line += f"; new: {_modules(fresh) or 'nothing'}"
    return line + (f"; unused there: {_modules(unused)}" if unused else "")


def _modules(arrays: dict[str, jax.Array]) -> str:
    grouped: dict[str, list[int]] = {}
    for name, x in sorted(arrays.items()):
        grouped.setdefault(name.partition("/")[0], []).append(int(np.prod(x.shape)))
    count = lambda n: f"{n} array{'s' if n > 1 else ''}"
    return ", ".join(f"{module} ({count(len(n))}, {sum(n):,} parameters)" for module, n in grouped.items())
