"""Reference curves: the logs of good runs, so that a user can tell whether a loss is normal.

`python -m hybrid_jax.report.reference WORKDIR NAME` records one from a finished run.
"""

import dataclasses
import json
import pathlib
import re
import sys

import ml_collections
import numpy as np

from hybrid_jax import config as config_lib
from hybrid_jax import metrics as metrics_lib
from hybrid_jax.data import augment
from hybrid_jax.errors import UserError

SHIPPED = pathlib.Path(__file__).parent / "reference_curves"
POINTS = 60
GENERATIVE, CONTRASTIVE = ("generative_loss",), ("contrastive_loss", "contrastive_accuracy")

# These fields set the scale of a loss: curves are compared only where they are equal. Folders are never compared, since
# the fields do not say which images they hold.
_SAME_TOKENS = ("data.name", "data.image_size", "data.channels", "data.train_split", "model.token_kind")
_VOCABULARY = {"intensity": "model.levels", "palette": "model.palette_size"}
_SAME_TASK = ("train.batch_size", "objective.contrastive", "objective.temperature")
# These fields shape a curve on that scale, except those without effect on the loss.
_SHAPING = ("model.", "objective.", "train.", "optimizer.")
_WITHOUT_EFFECT = {
    "model.attention",
    "model.remat",
    "model.scan_layers",
    "train.microbatches",
    "train.ema_decay",
    "train.skip_nonfinite",
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """A recorded run.

    Attributes:
      name: of its config file.
      config: resolved.
      result: {metric: value} of its final evaluation.
      curve: about 60 of its logged rows, {step, generative_loss, contrastive_loss, contrastive_accuracy}; the
        values of an absent branch are None.
    """

    name: str
    config: ml_collections.ConfigDict
    result: dict[str, float]
    curve: list[dict]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A reference that a run may be compared with.

    Attributes:
      reference: the recorded run.
      curves: keys of the comparable metrics.
      differences: ("model.width", the run's value, the reference's), ... of all fields that shape a curve.
    """

    reference: Reference
    curves: tuple[str, ...]
    differences: tuple[tuple[str, object, object], ...]

    def points(self, key: str, last_step: int) -> list[tuple[int, float]]:
        """Returns the reference's (step, value) of a metric up to a step; none where it is not comparable."""
        if key not in self.curves:
            return []
        rows = [row for row in self.reference.curve if row["step"] <= last_step and row[key] is not None]
        return [(row["step"], row[key]) for row in rows]


def load(directory: pathlib.Path = SHIPPED) -> list[Reference]:
    """Returns the references of a directory by name; none where there is no such directory."""
    found = []
    for path in sorted(directory.glob("*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        config = config_lib.from_dict(stored["config"])
        found.append(Reference(path.stem, config, stored["result"], stored["curve"]))
    return found


def comparable(config: ml_collections.ConfigDict, references: list[Reference]) -> Comparison | None:
    """Finds the reference for a run.

    The generative loss is comparable where images and tokens are equal; the contrastive loss and accuracy where batch
    size, temperature, loss and views are equal too.

    Args:
      config: of the run.
      references: the candidates.

    Returns:
      The one with the most comparable curves and, among those, the fewest differences; None where no curve is.
    """
    fits = [Comparison(r, _shared_curves(config, r.config), _differences(config, r.config)) for r in references]
    fits = [fit for fit in fits if fit.curves]
    return max(fits, key=lambda fit: (len(fit.curves), -len(fit.differences)), default=None)


def _shared_curves(one: ml_collections.ConfigDict, two: ml_collections.ConfigDict) -> tuple[str, ...]:
    first, second = config_lib.flatten(one), config_lib.flatten(two)

    def same(fields: tuple[str, ...]) -> bool:
        return all(first[name] == second[name] for name in fields)

    def both_train(branch: str) -> bool:
        return first[f"objective.{branch}_weight"] > 0 and second[f"objective.{branch}_weight"] > 0

    if one.data.name == "folder" or not same((*_SAME_TOKENS, _VOCABULARY[one.model.token_kind])):
        return ()
    same_views = one.augment.view_keep == two.augment.view_keep and (
        augment.recipes_from_config(one.augment) == augment.recipes_from_config(two.augment)
    )
    contrastive = both_train("contrastive") and same_views and same(_SAME_TASK)
    return (GENERATIVE if both_train("generative") else ()) + (CONTRASTIVE if contrastive else ())


def _differences(
    own: ml_collections.ConfigDict, reference: ml_collections.ConfigDict
) -> tuple[tuple[str, object, object], ...]:
    before, after = config_lib.flatten(reference), config_lib.flatten(own)
    ignored = _WITHOUT_EFFECT | set(_VOCABULARY.values())
    names = [name for name in config_lib.FIELDS if name.startswith(_SHAPING) and name not in ignored]
    return tuple((name, after[name], before[name]) for name in names if after[name] != before[name])


def record(workdir: str | pathlib.Path, name: str, directory: pathlib.Path = SHIPPED) -> pathlib.Path:
    """Records a finished run as a reference.

    Args:
      workdir: of a run that has trained and evaluated its last step.
      name: of its config file, without `.py`.
      directory: of `name`.json; an older file is replaced.

    Returns:
      The file's path.

    Raises:
      UserError: there is no such run, it is not finished, or it was trained on a folder.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise UserError(f"NAME={name!r}: must be made of a-z, 0-9 and _")
    workdir = pathlib.Path(workdir)
    config = _finished_config(workdir)
    rows = metrics_lib.read(workdir)
    chosen = np.unique(np.linspace(0, len(rows) - 1, POINTS).round().astype(int))
    keys = ("step", *GENERATIVE, *CONTRASTIVE)
    results = json.loads(metrics_lib.results_path(workdir, config.train.total_steps).read_text(encoding="utf-8"))
    # The path belongs to one machine.
    nested = {**config.to_dict(), "data": {**config.data.to_dict(), "path": ""}}
    curve = [{key: _short(rows[i].get(key)) for key in keys} for i in chosen]
    result = {key: _short(value) for key, value in metrics_lib.headline(results).items()}
    path = directory / f"{name}.json"
    text = json.dumps({"config": nested, "result": result, "curve": curve}, indent=1)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def _finished_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    try:
        nested = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"WORKDIR={workdir}: must be the folder of a run, with a readable config.json") from error
    config, rows = config_lib.from_dict(nested), metrics_lib.read(workdir)
    total, last = config.train.total_steps, rows[-1]["step"] if rows else 0
    if last != total:
        raise UserError(f"WORKDIR={workdir}: its log ends at step {last} of {total}; must be a finished run")
    if not metrics_lib.results_path(workdir, total).exists():
        raise UserError(f"WORKDIR={workdir}: step {total} was not evaluated; must be evaluated, with --mode=eval")
    if config.data.name == "folder":
        raise UserError(f"WORKDIR={workdir}: was trained on a folder; must be a run on a public data set")
    return config


def _short(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.5g}")


def main() -> None:
    """Entry point of `python -m hybrid_jax.report.reference WORKDIR NAME`."""
    try:
        if len(sys.argv) != 3:
            raise UserError("usage: python -m hybrid_jax.report.reference WORKDIR NAME")
        _, workdir, name = sys.argv
        print(f"recorded {record(workdir, name)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
