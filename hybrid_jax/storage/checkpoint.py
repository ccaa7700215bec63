"""Checkpoints, saved and restored by Orbax; no other module imports it.

A checkpoint `checkpoints/<step>/` holds one item per part of the train state, and `meta`: step, seed, resolved
config, data fingerprint, format version, and a checksum per array. Orbax writes it under a temporary name and renames
it, so it is complete or absent; checksums detect later damage.
"""

import contextlib
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from hybrid_jax import sharding
from hybrid_jax.errors import StorageError, UserError
from hybrid_jax.multihost import coordination
from hybrid_jax.storage import integrity
from hybrid_jax.storage.integrity import check_sealed, checksums, sealed

FORMAT_VERSION = 1


def directory(workdir: str | os.PathLike) -> pathlib.Path:
    """Returns the folder of a workdir's checkpoints."""
    return pathlib.Path(workdir).absolute() / "checkpoints"


class Checkpoints:
    """Saves and restores the train state of one workdir."""

    def __init__(
        self,
        workdir: str | os.PathLike,
        config=None,
        still_ours: Callable[[], None] = lambda: None,
        best_step: Callable[[list[int]], int | None] = lambda steps: None,
    ):
        """Opens the workdir's checkpoints, read-only without `config`.

        Args:
          workdir: folder of the run.
          config: resolved config; its `checkpoint` section says which checkpoints to keep.
          still_ours: raises if another run holds the workdir; called by `check`.
          best_step: function that returns the best of some steps, which is kept, or None; called at each save.
        """
        self._still_ours, self._best_step = still_ours, best_step
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
            self._remove_unfinished()
            _silence_writes_after_the_first_that_fails()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, create=not self._read_only, read_only=self._read_only
        )
        self._manager = ocp.CheckpointManager(self._path, options=options)
        self._saving: int | None = None

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, in ascending order."""
        return sorted(self._manager.all_steps())

    def save(self, state, config, fingerprint: str | None) -> None:
        """Starts writing the state; returns as soon as its arrays may be overwritten.

        Converted weights have no optimizer state and no fingerprint; they can be loaded but not resumed.

        Raises:
          StorageError: this save cannot start, the previous one failed, or its checkpoint was removed.
        """
        step = int(state.step)
        self.wait()
        if step in self._manager.all_steps():
            return
        removed = self._saving is not None and coordination.is_first() and not (self._path / str(self._saving)).is_dir()
        # All processes must delete the same checkpoints.
        self._best.step = coordination.broadcast_from_process_zero(self._best_step(self.steps()))
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
        self._saving = step
        with self._explained():
            args = ocp.args.Composite(meta=ocp.args.JsonSave(sealed(meta)), **items)
            self._manager.save(step, args=args, force=True)
        if removed:
            # This state is saved, but the run ends: someone has removed its files.
            self.wait()
            raise StorageError(
                f"{self._path} was removed during the run; step {step} is saved there, the run ends here"
            )

    def meta(self, step: int) -> dict[str, Any]:
        """Returns the `meta` item of a checkpoint; raises DamagedError if it cannot be read."""
        with coordination.raise_on_all_processes(DamagedError), _as_damaged(step):
            if integrity.size_on_disk(self._path / str(step) / "meta") > integrity.LARGEST_META:
                raise ValueError("meta is too large")
            meta = ocp.JsonCheckpointHandler().restore(self._path / str(step) / "meta")
            check_sealed(meta)
            if meta["step"] != step:
                raise ValueError(f"it belongs to step {meta['step']}")
            if meta["format_version"] != FORMAT_VERSION:
                raise UserError(f"checkpoint {step}: format {meta['format_version']}; must be {FORMAT_VERSION}")
            return meta

    def config(self, step: int) -> ml_collections.ConfigDict:
        """Returns the config of a checkpoint, after checking its model against the size of the files.

        Raises:
          DamagedError: the config cannot be read or is not plausible.
          UserError: the config has an unknown field or an invalid value.
        """
        meta = self.meta(step)
        with coordination.raise_on_all_processes(DamagedError, UserError), _as_damaged(step):
            try:
                return integrity.config_of(meta["config"], integrity.size_on_disk(self._path / str(step)))
            except UserError as error:
                raise UserError(f"checkpoint {step}: {error}") from error

    def restore(self, step: int, targets: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Restores parts of a checkpoint and verifies the checksum of every array.

        Args:
          step: step of the checkpoint.
          targets: {part: tree of jax.ShapeDtypeStruct, optionally with shardings}.

        Returns:
          ({part: tree}, meta).

        Raises:
          DamagedError: a part cannot be read, or a checksum differs.
        """
        meta = self.meta(step)
        with coordination.raise_on_all_processes(DamagedError), _as_damaged(step):
            wanted = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(targets))
            integrity.check_bytes(wanted, integrity.size_on_disk(self._path / str(step)))
            parts = {name: self._read(step, name, target) for name, target in targets.items()}
        with _as_damaged(step):
            for path, value in checksums(parts).items():
                if meta["checksums"][path] != value:
                    raise ValueError(f"checksum of {path} differs")
        return parts, meta

    def _read(self, step: int, name: str, target: Any) -> Any:
        # Not through the manager: its processes would wait for one that cannot read.
        handler, where = ocp.StandardCheckpointHandler(), self._path / str(step) / name
        return handler.restore(where, args=ocp.args.StandardRestore({"tree": target}))["tree"]

    def restore_latest(self, state, accept: Callable[[dict[str, Any]], None], log: Callable[[str], None] = print):
        """Restores the newest intact checkpoint, with the shapes and shardings of `state`.

        Damaged ones are logged, and renamed to `damaged-<step>-<n>` once an older one is restored.

        Args:
          state: TrainState of jax.ShapeDtypeStruct with shardings.
          accept: function of a checkpoint's meta, called before arrays are read; raises UserError to refuse it.
          log: function that prints a line.

        Returns:
          (state, meta), or None if the workdir never had a checkpoint.

        Raises:
          UserError: all checkpoints are damaged, or `accept` refuses one.
        """
        targets = state.saved()
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                meta = self.meta(step)
                if "opt_state" not in meta["parts"]:
                    how = f"start another run with --fork_from={self._workdir}"
                    raise UserError(f"--workdir={self._workdir}: holds converted weights without an optimizer; {how}")
                accept(meta)
                parts, meta = self.restore(step, targets)
            except DamagedError as error:
                log(str(error))
                damaged.append(step)
                continue
            self._set_aside(damaged)
            # The step is not saved as an array; place it like the others.
            at = sharding.place(np.int32(step), state.step.sharding)
            return state.restored(at, parts, meta["seed"]), meta
        if damaged or any(self._path.glob("damaged-*")):
            raise UserError(f"every checkpoint in {self._path} is damaged; choose another --workdir")
        return None

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        for step in steps if coordination.is_first() else ():
            number = len(list(self._path.glob(f"damaged-{step}-*")))
            (self._path / str(step)).rename(self._path / f"damaged-{step}-{number}")
        coordination.barrier()
        self._manager.reload()

    def check(self) -> None:
        """Raises StorageError if a save failed or another run holds the workdir; does not wait."""
        self._still_ours()
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until all saves are on disk; raises StorageError if one failed."""
        with self._explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves and frees the manager's threads; raises StorageError if one failed."""
        with self._explained():
            self._manager.close()

    def _remove_unfinished(self) -> None:
        """Removes files of killed or failed saves, which Orbax leaves on disk."""
        if coordination.is_first():
            for left in self._path.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        # As for damage, write failures raise many exception types.
        try:
            yield
        except (StorageError, MemoryError):
            raise
        except Exception as error:
            told = re.search(r"(?:.*: )?(.+) \[os_error_code=", str(error))
            # RESOURCE_EXHAUSTED without an os_error_code is device memory, not a full disk.
            if told is None and "RESOURCE_EXHAUSTED" in str(error):
                raise
            reason = (told and told[1]) or getattr(error, "strerror", None) or _first_line(error)
            whole = [int(p.name) for p in self._path.glob("*") if p.name.isdigit() and int(p.name) != self._saving]
            kept = f"checkpoint {max(whole)} is kept" if whole else "there is no other"
            raise StorageError(
                f"{self._path}: checkpoint {self._saving} could not be saved ({reason}); {kept}"
            ) from error


class _Chosen:
    """A preservation policy that keeps one checkpoint, the best so far, if any."""

    def __init__(self) -> None:
        self.step: int | None = None

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Returns which of the checkpoints to keep."""
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class DamagedError(Exception):
    """A checkpoint is damaged; the message contains the word "damaged" and the step."""


@contextlib.contextmanager
def _as_damaged(step: int) -> Iterator[None]:
    # Orbax and TensorStore report damage by many exception types.
    try:
        yield
    except (UserError, MemoryError):
        raise
    except PermissionError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise DamagedError(f"checkpoint {step} is damaged ({_first_line(error)})") from error


def _silence_writes_after_the_first_that_fails() -> None:
    """Suppresses a traceback per write after a failure, when TensorStore's event loop is closed."""
    before = sys.unraisablehook
    if getattr(before, "silences", False):
        return

    def hook(args):
        if not (args.exc_type is RuntimeError and str(args.exc_value) == "Event loop is closed"):
            before(args)

    setattr(hook, "silences", True)  # noqa: B010 - unknown attribute to the type checker
    sys.unraisablehook = hook


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
