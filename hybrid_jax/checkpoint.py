"""Checkpoints: the only file that knows Orbax.

A checkpoint `checkpoints/<step>/` holds one item for each part of the train state, and `meta`: step, seed,
resolved config, data fingerprint, format version, and a checksum per array. Orbax writes it beside its
place and renames it, so it is whole or absent; what happens to the bytes later, the checksums notice.
"""

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from hybrid_jax import distributed, retention, sharding, trust
from hybrid_jax.errors import UserError

FORMAT_VERSION = 1


def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
    """Two position-weighted sums of each array's words modulo 2^32; one changed word changes both."""

    def one(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.uint8) if x.dtype == bool else x
        word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        words = jax.lax.bitcast_convert_type(x.reshape(-1), word).astype(jnp.uint32)
        place = jnp.arange(words.size, dtype=jnp.uint32)
        mixed = words + place * jnp.uint32(0x9E3779B9)
        mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
        mixed = mixed ^ (mixed >> 13)
        return jnp.stack([jnp.sum(words * (2 * place + 1)), jnp.sum(mixed)])

    return [one(x) for x in leaves]


@functools.lru_cache
def _compiled_checksums(mesh: Mesh | None):
    # Whole on every device, so that every process can read them.
    return jax.jit(_checksums, out_shardings=None if mesh is None else sharding.replicated(mesh))


def checksums(tree: Any) -> dict[str, str]:
    """Returns {path of each array: 16 hexadecimal digits}, computed where the array lies."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    sums = jax.device_get(_compiled_checksums(getattr(leaves[0].sharding, "mesh", None))(list(leaves)))
    return {jax.tree_util.keystr(p): f"{int(a):08x}{int(b):08x}" for p, (a, b) in zip(paths, sums, strict=True)}


def directory(workdir: str | os.PathLike) -> pathlib.Path:
    """Returns where a workdir keeps its checkpoints."""
    return pathlib.Path(workdir).absolute() / "checkpoints"


class Checkpoints:
    """Saves and restores the train state of one workdir."""

    def __init__(self, workdir: str | os.PathLike, config=None):
        """Opens the workdir's checkpoints: for training with its `config`, read-only without."""
        self._read_only = config is None
        self._workdir, self._path = workdir, directory(workdir)
        self._best = _Chosen()
        if self._read_only and not self._path.is_dir():
            raise UserError(f"--workdir={workdir}: holds no checkpoints; train first, with --mode=train")
        policy = None
        if config is not None:
            policies: list[Any] = [ocp.checkpoint_managers.LatestN(config.checkpoint.keep_last), self._best]
            if config.checkpoint.keep_every:
                policies.append(ocp.checkpoint_managers.EveryNSteps(config.checkpoint.keep_every))
            policy = ocp.checkpoint_managers.AnyPreservationPolicy(policies)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, create=not self._read_only, read_only=self._read_only
        )
        self._manager = ocp.CheckpointManager(self._path, options=options)

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, in ascending order."""
        return sorted(self._manager.all_steps())

    def save(self, state, config, fingerprint: str) -> None:
        """Starts writing the state; returns as soon as its arrays may be overwritten."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        metric = config.checkpoint.best_metric
        # Whoever reads the results' files first: all processes must delete the same checkpoints.
        best = retention.best_step(self._workdir, metric, self.steps()) if metric else None
        self._best.step = distributed.from_first(best)
        parts = state.saved()
        meta = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "seed": config.seed,
            "config": config.to_dict(),
            "fingerprint": fingerprint,
            "parts": sorted(parts),
            "checksums": checksums(parts),
        }
        items = {name: ocp.args.StandardSave({"tree": part}) for name, part in parts.items()}
        self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items), force=True)

    def meta(self, step: int) -> dict[str, Any]:
        """Returns the `meta` item of one checkpoint; raises DamagedError where it cannot be read."""
        with distributed.together(DamagedError), _as_damaged(step):
            if trust.size_on_disk(self._path / str(step) / "meta") > trust.LARGEST_META:
                raise ValueError("meta is too large")
            meta = ocp.JsonCheckpointHandler().restore(self._path / str(step) / "meta")
            if meta["format_version"] != FORMAT_VERSION:
                raise UserError(f"checkpoint {step}: format {meta['format_version']}, not {FORMAT_VERSION}")
            return meta

    def config(self, step: int) -> ml_collections.ConfigDict:
        """Returns the config of one checkpoint, a model of which its files can hold.

        Raises:
          DamagedError: it cannot be read, or is none.
          UserError: a field that does not exist, or a value that is not allowed.
        """
        meta = self.meta(step)
        with distributed.together(DamagedError, UserError), _as_damaged(step):
            try:
                return trust.config_of(meta["config"], trust.size_on_disk(self._path / str(step)))
            except UserError as error:
                raise UserError(f"checkpoint {step}: {error}") from error

    def restore(self, step: int, targets: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Restores parts of one checkpoint and verifies every array of them.

        Args:
          step: which checkpoint.
          targets: {part: tree of jax.ShapeDtypeStruct, with shardings if they matter}.

        Returns:
          ({part: tree}, meta).

        Raises:
          DamagedError: a part cannot be read, or an array differs from what was saved.
        """
        meta = self.meta(step)
        with distributed.together(DamagedError), _as_damaged(step):
            wanted = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(targets))
            trust.check_bytes(wanted, trust.size_on_disk(self._path / str(step)))
            parts = {name: self._read(step, name, target) for name, target in targets.items()}
        with _as_damaged(step):
            for path, value in checksums(parts).items():
                if meta["checksums"][path] != value:
                    raise ValueError(f"checksum of {path} differs")
        return parts, meta

    def _read(self, step: int, name: str, target: Any) -> Any:
        # Not through the manager, whose processes wait for one another even where one cannot read.
        handler, where = ocp.StandardCheckpointHandler(), self._path / str(step) / name
        return handler.restore(where, args=ocp.args.StandardRestore({"tree": target}))["tree"]

    def restore_latest(self, state, accept: Callable[[dict[str, Any]], None], log: Callable[[str], None] = print):
        """Restores the newest undamaged checkpoint into the shape and place of `state`.

        Damaged ones are named; once an older one is restored, they are set aside as `damaged-<step>-<n>`.

        Args:
          state: TrainState of jax.ShapeDtypeStruct with shardings.
          accept: sees a checkpoint's meta before its arrays are read; raises UserError to refuse it.
          log: takes the line about a damaged checkpoint.

        Returns:
          (state, meta), or None where the workdir never had a checkpoint.

        Raises:
          UserError: there are checkpoints and all of them are damaged, or `accept` refuses.
        """
        targets = state.saved()
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                accept(self.meta(step))
                parts, meta = self.restore(step, targets)
            except DamagedError as error:
                log(str(error))
                damaged.append(step)
                continue
            self._set_aside(damaged)
            # The step is part of the directory's name and of meta; it needs the others' placement.
            at = sharding.place(np.int32(step), state.step.sharding)
            return state.restored(at, parts), meta
        if damaged or any(self._path.glob("damaged-*")):
            raise UserError(f"every checkpoint in {self._path} is damaged: start in another --workdir")
        return None

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        for step in steps if distributed.is_first() else ():
            number = len(list(self._path.glob(f"damaged-{step}-*")))
            (self._path / str(step)).rename(self._path / f"damaged-{step}-{number}")
        distributed.meet()
        self._manager.reload()

    def wait(self) -> None:
        """Returns when all saves are on disk; raises what went wrong in them."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves and frees the manager's threads."""
        self._manager.close()


class _Chosen:
    """A preservation policy that keeps one checkpoint, the best so far where there is one."""

    def __init__(self) -> None:
        self.step: int | None = None

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Returns which of the checkpoints to keep."""
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class DamagedError(Exception):
    """A checkpoint that cannot be trusted; the message has the word "damaged" and the step."""


@contextlib.contextmanager
def _as_damaged(step: int) -> Iterator[None]:
    # Orbax and TensorStore report damage by many exception types; all of them mean the same here.
    try:
        yield
    except (UserError, MemoryError, PermissionError):
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise DamagedError(f"checkpoint {step} is damaged ({reason})") from error
