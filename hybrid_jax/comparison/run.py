"""Mode `compare`: trains the arms, seed by seed, measures each run and judges the claims.

Every run is written to its own JSON file as soon as it is measured: config, measurements, and results per image. The
same command continues an interrupted comparison; to judge runs of several machines together, put their files into one
folder.
"""

import base64
import dataclasses
import json
import os
import pathlib
import time
import zlib
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from hybrid_jax import config as config_lib
from hybrid_jax.comparison import arms as arms_lib
from hybrid_jax.comparison import claims, measures, report, table
from hybrid_jax.comparison.arms import Arm, Overrides
from hybrid_jax.comparison.claims import LIKELIHOODS
from hybrid_jax.comparison.measures import PROTOCOLS, Measured
from hybrid_jax.data import sources
from hybrid_jax.errors import Preempted, UserError, oom_advice
from hybrid_jax.inference.load import load
from hybrid_jax.models import flops
from hybrid_jax.models.tokens import TokenSpec
from hybrid_jax.storage.files import still_writable, writable, write_whole
from hybrid_jax.train import train_and_evaluate

_TYPES = ("uint8", "uint16", "uint32", "float32")
# What a result depends on besides the training.
_EVAL = ("eval.linear_probe.", "eval.corruptions.", "eval.ood.", "eval.likelihood.", "eval.max_images")
_TRAINING = ("seed", "data.", "model.", "objective.", "augment.", "train.", "optimizer.")
_LOCAL = ("data.path", "data.cache", "data.memory_gib", "data.device_gib")
FLOORS = "floors"


def write(path: pathlib.Path, record: dict[str, Any], config: ml_collections.ConfigDict, measured: Measured) -> None:
    """Writes a run's file atomically."""
    packed = {name: _pack(values) for name, values in measured.per_image.items()}
    whole = record | {"metrics": measured.metrics, "config": config.to_dict(), "per_image": packed}
    write_whole(path, json.dumps(whole, indent=1) + "\n")


def read(path: pathlib.Path, config: ml_collections.ConfigDict, fingerprint: str) -> dict[str, Any] | None:
    """Returns a run's record as passed to `write`, with its measurements as `measured`; None if there is no file.

    Args:
      path: of the file.
      config: the config that the run must have.
      fingerprint: that its data must have.

    Raises:
      UserError: the file is damaged, or was made with another config, other data or another protocol.
    """
    try:
        record = json.loads(path.read_text())
        before = config_lib.flatten(config_lib.from_dict(record.pop("config")))
        packed = record.pop("per_image")
        measured = Measured(record.pop("metrics"), {name: _unpack(values) for name, values in packed.items()})
        same_data = record["fingerprint"] == fingerprint
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise UserError(f"{path}: is damaged; delete it and the same command measures the run again") from error
    after = config_lib.flatten(config)
    for name in config_lib.FIELDS:
        if _matters(name) and before[name] != after[name]:
            what = f"config.{name}={after[name]!r}: {path} was made with {before[name]!r}"
            raise UserError(f"{what}; choose another --workdir")
    for row in measured.metrics:
        if row.get("protocol") not in (None, *PROTOCOLS):
            again = "delete it and the same command measures the run again"
            old = f"{row['metric']} was measured by protocol {row['protocol']}"
            raise UserError(f"{path}: {old}, must be one of {', '.join(PROTOCOLS)}; {again}")
    if not same_data:
        raise UserError(f"{path}: was made with other data named {config.data.name!r}; choose another --workdir")
    return record | {"measured": measured}


def _matters(name: str) -> bool:
    return name.startswith((*_TRAINING, *_EVAL)) and name not in _LOCAL


def _pack(values: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()
    return {"dtype": str(values.dtype), "shape": list(values.shape), "zlib_base64": data}


def _unpack(packed: dict[str, Any]) -> np.ndarray:
    if packed["dtype"] not in _TYPES:
        raise ValueError(f"dtype {packed['dtype']!r}")
    values = np.frombuffer(zlib.decompress(base64.b64decode(packed["zlib_base64"])), packed["dtype"])
    return values.reshape(packed["shape"])


Log = Callable[[str], None]


def compare(config, workdir: str | os.PathLike, seeds: str, arms: str, log: Log = print) -> dict[str, Any]:
    """Trains and measures all missing runs and judges the claims; writes `compare.json` and `report.html`.

    Under `workdir`, `runs/<arm>-<seed>.json` holds the measurements of a run, `tries/<arm>-<k>.json` those of a tuning
    run, and `training/<name>/` is the workdir of each.

    Args:
      config: the config of the hybrid; `config.compare` sets the tuning.
      workdir: of the comparison.
      seeds: whole numbers separated by commas.
      arms: as read by `comparison.arms.parse`.
      log: takes progress lines.

    Returns:
      The content of `compare.json`.

    Raises:
      UserError: a mistake in the flags, the config, the data or the workdir.
      Preempted: SIGTERM or SIGINT was received; finished runs are kept.
    """
    config_lib.validate(config)
    chosen, numbers, workdir = arms_lib.parse(arms), arms_lib.parse_seeds(seeds), pathlib.Path(workdir)
    arms_lib.check(config, chosen)
    data = sources.load(config).for_evaluation(config.eval.max_images).in_memory()
    measures.check(data)
    with writable(workdir):
        for name in ("runs", "tries", "training"):
            (workdir / name).mkdir(parents=True, exist_ok=True)
    comparison = Comparison(config, workdir, data, log)
    try:
        with still_writable(workdir), oom_advice(f"lower config.eval.batch_size={config.eval.batch_size}"):
            tuned = comparison.tune(chosen)
            runs = comparison.run(chosen, numbers, tuned)
            floors = comparison.floors(chosen[0], numbers[0])
            return _publish(config, workdir, chosen, numbers, tuned, runs, floors, data, log)
    except KeyboardInterrupt:
        raise Preempted("stopped; finished runs are kept, the same command continues") from None


@dataclasses.dataclass(frozen=True)
class Task:
    """One run: its file, its config, and the measurement of the trained model."""

    name: str
    folder: str
    arm: Arm
    config: Any
    about: dict[str, Any]
    measure: Callable[..., Measured]


class Comparison:
    """The runs of a comparison, which share the hybrid's config, the folder and the data in memory."""

    def __init__(self, config, workdir: pathlib.Path, data, log: Log):
        """Takes the resolved config of the hybrid, the folder, the data and a function for progress lines."""
        self._config, self._workdir, self._data, self._log = config, workdir, data, log
        self._told: set[str] = set()

    def tune(self, arms: list[Arm]) -> dict[str, Overrides]:
        """Returns {base arm: settings} chosen on the validation split, with one seed that no judged run has.

        If `compare.trials` is 1, nothing is tried. The generative arm takes the best likelihood and the contrastive arm
        the best probe; the hybrid takes the best probe among tries whose likelihood is at most 2 % above the best
        generative one, or the best likelihood if there is no such try.
        """
        wanted = {arm.base for arm in arms}
        order = [b for b in (arms_lib.GENERATIVE, arms_lib.CONTRASTIVE, arms_lib.HYBRID) if b in wanted]
        if self._config.compare.trials == 1:
            return {base: {} for base in order}
        tuned: dict[str, Overrides] = {}
        best = None
        for base in order:
            settings = arms_lib.trials(Arm(base, base), self._config, tuned.get(arms_lib.GENERATIVE, {}))
            tries = self._do([self._try(base, k, each) for k, each in enumerate(settings)], f"{base}, try")
            chosen = _choose(base, tries, best)
            best = _likelihood(chosen) if base == arms_lib.GENERATIVE else best
            tuned[base] = chosen["settings"]
            self._log(f"{base}: chose {table.settings(chosen['settings'])}")
        return tuned

    def run(self, arms: list[Arm], seeds: tuple[int, ...], tuned: dict[str, Overrides]) -> dict[str, list[Measured]]:
        """Returns {arm: measurements of each seed}."""
        # Seed by seed, so that an interrupted comparison has complete seeds.
        tasks = [self._run(arm, seed, tuned) for seed in seeds for arm in arms]
        found = self._do(tasks, "run")
        return {arm.name: [r["measured"] for r in found if r["arm"] == arm.name] for arm in arms}

    def floors(self, arm: Arm, seed: int) -> Measured:
        """Returns the measurements of raw pixels and histograms on the same images."""
        path, config = self._workdir / "runs" / f"{FLOORS}.json", arms_lib.config_of(arm, self._config, {}, 0)
        known = read(path, config, self._data.fingerprint)
        if known is None:
            self._log("measuring raw pixels and histograms")
            spec, palette = TokenSpec.from_config(config), None
            if spec.kind == "palette":
                palette = load(self._training(f"{arm.name}-{seed}"), log=self._log).palette
            measured = measures.floors(spec, palette, self._data, config)
            write(path, {"fingerprint": self._data.fingerprint}, config, measured)
            return measured
        return known["measured"]

    def _try(self, base: str, k: int, settings: Overrides) -> Task:
        arm = Arm(base, base)
        config = arms_lib.trial_config(arm, self._config, settings)

        def measure(model, data, config) -> Measured:
            found = measures.validated(model, data, config)
            return Measured(
                [{"metric": name, "value": value, "split": "validation"} for name, value in found.items()], {}
            )

        return Task(f"{base}-{k}", "tries", arm, config, {"settings": settings}, measure)

    def _run(self, arm: Arm, seed: int, tuned: dict[str, Overrides]) -> Task:
        config = arms_lib.config_of(arm, self._config, tuned[arm.base], seed)
        return Task(f"{arm.name}-{seed}", "runs", arm, config, {}, measures.measure)

    def _do(self, tasks: list[Task], word: str) -> list[dict[str, Any]]:
        paths = [self._workdir / task.folder / f"{task.name}.json" for task in tasks]
        # All files are read first, so that a folder of another comparison is refused before hours of work.
        known = [read(path, t.config, self._data.fingerprint) for path, t in zip(paths, tasks, strict=True)]
        left, spent, done = known.count(None), 0.0, 0
        for i, (task, path) in enumerate(zip(tasks, paths, strict=True)):
            if known[i] is not None:
                continue
            wait = f", about {spent / done * (left - done) / 60:.0f} min left" if done else ""
            self._log(f"{word} {i + 1} of {len(tasks)}: {task.name}, {task.config.train.total_steps:,} steps{wait}")
            start = time.perf_counter()
            self._do_one(task, path)
            spent, done = spent + time.perf_counter() - start, done + 1
            known[i] = read(path, task.config, self._data.fingerprint)
        return [record for record in known if record is not None]

    def _do_one(self, task: Task, path: pathlib.Path) -> None:
        start, folder = time.perf_counter(), self._training(task.name, task.folder)
        train_and_evaluate(task.config, folder, self._tell_once)
        trained = time.perf_counter()
        measured = task.measure(load(folder, log=self._log), self._data, task.config)
        record = {
            "arm": task.arm.name,
            "seed": task.config.seed,
            "steps": task.config.train.total_steps,
            "flops": flops.total(task.config) * task.config.train.total_steps,
            "training_seconds": round(trained - start, 1),
            "measuring_seconds": round(time.perf_counter() - trained, 1),
            "fingerprint": self._data.fingerprint,
            **task.about,
        }
        write(path, record, task.config, measured)
        self._log("  " + ", ".join(f"{row['metric']} {row['value']:.4f}" for row in measured.metrics))

    def _tell_once(self, line: str) -> None:
        """Logs a line of a training, lines that repeat only once."""
        if line not in self._told:
            self._told.add(line)
            self._log(f"  {line}")

    def _training(self, name: str, folder: str = "runs") -> pathlib.Path:
        return self._workdir / "training" / (name if folder == "runs" else f"{folder}-{name}")


def _choose(base: str, tries: list[dict[str, Any]], best: float | None) -> dict[str, Any]:
    accuracy = lambda record: record["measured"].value("linear_probe_accuracy")
    if base == arms_lib.GENERATIVE:
        return min(tries, key=_likelihood)
    if base == arms_lib.CONTRASTIVE or best is None:
        return max(tries, key=accuracy)
    affordable = [record for record in tries if _likelihood(record) <= claims.LIKELIHOOD_MARGIN * best]
    return max(affordable, key=accuracy) if affordable else min(tries, key=_likelihood)


def _likelihood(record: dict[str, Any]) -> float:
    return next(row["value"] for row in record["measured"].metrics if row["metric"] in LIKELIHOODS)


def _publish(config, workdir, arms, seeds, tuned, runs, floors, data, log: Log) -> dict[str, Any]:
    """Judges the claims, writes `compare.json` and `report.html`, and logs the table."""
    hybrids = [arm.name for arm in arms if arm.base == arms_lib.HYBRID]
    rows = [
        {"arm": arm, "seed": seed, **row}
        for arm, of_seeds in runs.items()
        for seed, measured in zip(seeds, of_seeds, strict=True)
        for row in measured.metrics
    ]
    result = {
        "data": data.name,
        "seeds": list(seeds),
        "arms": [dataclasses.asdict(arm) for arm in arms],
        "tuned": tuned,
        "runs": rows,
        "floors": floors.metrics,
        "claims": claims.judge(runs, hybrids),
        "config": config.to_dict(),
    }
    write_whole(workdir / "compare.json", json.dumps(result, indent=1) + "\n")
    write_whole(workdir / "report.html", report.page(result, data))
    log(table.text(result))
    log(f"report: {workdir / 'report.html'}")
    return result
