"""A new run from the parameters of another: `--fork_from=DIR[@step]`."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hybrid_jax import train_state
from hybrid_jax.errors import UserError
from hybrid_jax.models import tokens
from hybrid_jax.multihost import coordination
from hybrid_jax.storage import checkpoint
from hybrid_jax.storage.checkpoint import Checkpoints, DamagedError, choose_steps
from hybrid_jax.storage.files import write_whole
from hybrid_jax.train_state import TrainState

Log = Callable[[str], None]
# What a token's number means is learnt here; elsewhere only what its colours are.
_OF_VOCABULARY = ("head/", "encoder/patch_embedding/table/")


def origin_path(workdir: str | os.PathLike) -> pathlib.Path:
    """Returns where a forked run keeps what it began from."""
    return pathlib.Path(workdir) / "fork.json"


def split(fork_from: str) -> tuple[str, str]:
    """Returns the directory and the step of `DIR[@step]`; without a step `latest`."""
    directory, at, step = fork_from.rpartition("@")
    # A directory's own name may hold the sign.
    if at and directory and (step in ("latest", "best") or step.isdecimal()):
        return directory, step
    return fork_from, "latest"


def forked_state(
    config,
    workdir: pathlib.Path,
    fork_from: str,
    mesh: Mesh,
    fit_palette: Callable[[], tokens.Palette | None],
    log: Log,
) -> TrainState:
    """Returns the state before the first step with every parameter that another run's checkpoint has too.

    Taken is what agrees in path and shape (and, where it depends on the tokens, in what they mean), from the moving
    average where the other run keeps one; anything else, and the optimizer, begins afresh. `fork.json` tells what was
    done; a run that saved nothing begins from the step named there again.

    Args:
      config: of the new run, validated.
      workdir: of the new run.
      fork_from: `DIR[@step]`; the step is a number, `latest` (assumed) or `best`.
      mesh: of the new run; arrays are restored to where they are needed.
      fit_palette: makes the palette of the new run's data.
      log: takes a line on what was taken and what is new.

    Raises:
      UserError: nothing to take.
    """
    step, part, parts, source = _read(workdir, fork_from, mesh, log)
    palette, same_tokens = _palette(config, source, parts.get("palette"), fit_palette, log)
    state = train_state.init_state(config, mesh, palette)
    old, new = _by_path(parts[part]), _by_path(state.params)
    fits = lambda name: same_tokens or not name.startswith(_OF_VOCABULARY)
    taken = {name for name, x in new.items() if name in old and old[name].shape == x.shape and fits(name)}
    if not taken:
        raise UserError(f"--fork_from={fork_from}: has no parameter in common with this config's model")
    merged = jax.tree.unflatten(jax.tree.structure(state.params), [old[n] if n in taken else x for n, x in new.items()])
    average = None if state.ema_params is None else _copy(merged)
    log(_told(fork_from, step, part, taken, new, old))
    directory = str(pathlib.Path(split(fork_from)[0]).absolute())
    about = {"fork_from": fork_from, "directory": directory, "step": step, "from": part}
    about |= {"taken": sorted(taken), "new": sorted(set(new) - taken), "unused": sorted(set(old) - taken)}
    write_whole(origin_path(workdir), json.dumps(about, indent=1) + "\n")
    return state.replace(params=merged, ema_params=average)


def ignored(workdir: pathlib.Path, fork_from: str) -> str:
    """Returns the line for a run that has checkpoints already and so goes on with them."""
    before = _origin(workdir).get("fork_from")
    began = f"began as a fork of {before}" if before else "did not begin as a fork"
    return f"--fork_from={fork_from}: ignored, this run has a checkpoint of its own ({began})"


def forget(workdir: pathlib.Path, log: Log) -> None:
    """Removes what an earlier start noted, for a run that saved nothing and now begins without a fork."""
    before = _origin(workdir).get("fork_from")
    coordination.barrier()
    if before:
        log(f"starting anew, not as the fork of {before} that saved nothing here: --fork_from was not given")
        if coordination.is_first():
            origin_path(workdir).unlink(missing_ok=True)


def _origin(workdir: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(origin_path(workdir).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _read(workdir: pathlib.Path, fork_from: str, mesh: Mesh, log: Log) -> tuple[int, str, dict[str, Any], Any]:
    """Returns the step that was read, the part its parameters are from, the parts, and the other run's config."""
    directory, asked = split(fork_from)
    if not checkpoint.directory(directory).is_dir():
        raise UserError(f"--fork_from={fork_from}: {directory} holds no checkpoint; must be the workdir of a run")
    before, told = _origin(workdir), f"--fork_from={fork_from}"
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        # The other run may have gone on since; the same command gives the same bits.
        again = before.get("fork_from") == fork_from and before.get("step") in checkpoints.steps()
        steps = coordination.broadcast_from_process_zero([before["step"]] if again else None)
        for step in steps or choose_steps(directory, asked, checkpoints, told):
            try:
                source = checkpoints.config(step)
                part = "ema_params" if source.train.ema_decay > 0 else "params"
                targets = train_state.abstract_state(source, mesh).saved()
                wanted = {name: targets[name] for name in (part, "palette") if name in targets}
                parts, _ = checkpoints.restore(step, wanted)
                return step, part, parts, source
            except DamagedError as error:
                log(f"{directory}: {error}")
    raise UserError(f"{told}: every checkpoint that it could mean is damaged")


def _palette(
    config, source, colours: jax.Array | None, fit: Callable[[], tokens.Palette | None], log: Log
) -> tuple[tokens.Palette | None, bool]:
    """Returns the new run's palette, and whether its tokens mean what the other run's did."""
    new, old = (tokens.TokenSpec.from_config(c) for c in (config, source))
    same = (new.kind, new.vocab_size) == (old.kind, old.vocab_size)
    if new.kind != "palette":
        return None, same
    if same and new.channels == old.channels:
        log(f"palette: {new.vocab_size} colours, those of the run that is forked")
        return tokens.Palette.from_colours(np.asarray(colours)), True
    log("palette: fitted anew, the run that is forked has none of this size")
    return fit(), False


@jax.jit
def _copy(tree: Any) -> Any:
    # The train step gives both buffers away, so they must not be one.
    return jax.tree.map(jnp.copy, tree)


def _by_path(tree: Any) -> dict[str, jax.Array]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in found}


def _told(fork_from: str, step: int, part: str, taken: set[str], new: dict, old: dict) -> str:
    """Returns the line on what was taken and what is new, module by module."""
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
