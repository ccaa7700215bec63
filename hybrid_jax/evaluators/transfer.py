"""Transfer of frozen features to another labelled data set (protocol transfer-v1).

`linear-probe-v1` and `knn-v1` run on the data set `eval.transfer.name`, whose images are converted to the model's size
and channels as in `--mode=embed`. C and the best layer are chosen on its validation split, a tenth of its training
images; its test split (a tenth or a fifth if it has none) is read once. Floors: the same protocol on raw pixels, and on
an untrained network of the same architecture. If `name` is empty, nothing runs.

Dimensions: n images, D features.
"""

import functools
import pathlib
import re

from hybrid_jax import config as config_lib
from hybrid_jax.data import sources
from hybrid_jax.data.dataset import DataSet
from hybrid_jax.errors import UserError, reject
from hybrid_jax.evaluators import knn, linear_probe
from hybrid_jax.evaluators.features import FeatureStore, FloorCache
from hybrid_jax.utils.cli import printable

PROTOCOL = "transfer-v1"
RANDOM = "random encoder"
_VARIANTS = {"default": "default layer", "best_layer": "best layer by validation", "last_four": "last four layers"}
_EVALUATORS = (linear_probe.evaluate, knn.evaluate)


def load(config) -> DataSet:
    """Reads the other data set for evaluation, at the model's size and channels.

    Args:
      config: resolved; `eval.transfer` names the data set, `data` sets how images are read, `eval.max_images` how many.

    Returns:
      Its splits, in memory.

    Raises:
      UserError: it is unknown, missing, damaged, or has too few images.
    """
    asked, other = config.eval.transfer, config_lib.default_config()
    for field in ("image_size", "channels", "memory_gib", "cache", "on_error"):
        other.data[field] = config.data[field]
    for field in ("name", "path", "test_split"):
        other.data[field] = asked[field]
    try:
        return sources.load(other).for_evaluation(config.eval.max_images).in_memory()
    except UserError as error:
        # The user wrote fields of `eval.transfer`, not of `data`; and an empty test split is not allowed here.
        told = re.sub(r"\bdata\.(name|path|test_split)\b", r"eval.transfer.\1", str(error))
        raise UserError(told.removesuffix(", empty")) from error


def check(config) -> None:
    """Raises UserError if the data set named cannot be used: missing, without labels, or too small."""
    asked = config.eval.transfer
    if not asked.name:
        if asked.path:
            raise reject("eval.transfer.path", asked.path, "needs eval.transfer.name, for example 'folder'")
        return
    if not asked.test_split:
        raise reject("eval.transfer.test_split", asked.test_split, "must name a split")
    data = load(config)
    for split in ("train", "test"):
        if getattr(data, split).labels is None:
            raise reject("eval.transfer.name", asked.name, f"its {split} images have no labels")
    knn.check(data, config)


def evaluate(features: FeatureStore, config, floors: FloorCache) -> list[dict]:
    """Runs the protocol.

    Args:
      features: store of the model; its own data is not read.
      config: resolved; `eval.transfer`, `eval.linear_probe`, `eval.knn`, `data` and `seed` are read.
      floors: cache of the floors' accuracies.

    Returns:
      The results of both evaluators, as metrics `transfer_linear_probe_accuracy` and `transfer_knn_accuracy`, with
      `data_name`, `data_fingerprint`, `data_notes` and `inner_protocol`; validation results are included.

    Raises:
      Skipped: one class only.
      UserError: the data set is missing or can no longer be used.
    """
    name = config.eval.transfer.name
    if not name:
        return []
    data, shown = load(config), name
    if name == "folder":
        shown = printable(f"folder {pathlib.Path(config.eval.transfer.path).name}")
    normed = config.eval.linear_probe.normed
    found = _measured(FeatureStore(features.model, data, normed), config, floors)

    @functools.cache
    def untrained() -> dict[tuple, float]:
        store = FeatureStore(features.model.untrained(config.seed), data, normed)
        return {_key(row): row["value"] for row in _measured(store, config, floors)}

    def random_floor(row: dict) -> float:
        # The untrained network chooses its own best layer.
        compute = lambda: untrained()[_key(row)]
        told = {"protocol": PROTOCOL, "floor": RANDOM, "row": _key(row), "data": data.fingerprint, "seed": config.seed}
        settings = [config.eval.linear_probe.to_dict(), config.eval.knn.to_dict()]
        return floors.get(compute, **told, settings=settings, network=_network(config))

    told = {"protocol": PROTOCOL, "data_name": name, "data_fingerprint": data.fingerprint}
    return [_row(row, shown, random_floor, told | {"data_notes": list(data.notes)}) for row in found]


def _measured(store: FeatureStore, config, floors: FloorCache) -> list[dict]:
    return [row for measure in _EVALUATORS for row in measure(store, config, floors)]


def _key(row: dict) -> tuple[str, str, str]:
    return row["metric"], row.get("variant", ""), row["split"]


def _network(config) -> list:
    """What the features of an untrained network depend on besides its seed."""
    return [config.model.to_dict(), config.objective.generative_weight > 0, config.objective.contrastive_weight > 0]


def _row(row: dict, name: str, random_floor, told: dict) -> dict:
    variant = _VARIANTS[row.get("variant", "default")]
    changed = {"metric": f"transfer_{row['metric']}", "variant": f"{name}, {variant}"}
    changed |= {"inner_protocol": row["protocol"], **told}
    if "floor" in row:
        changed["floor"] = row["floor"] | {RANDOM: random_floor(row)}
    return row | changed
