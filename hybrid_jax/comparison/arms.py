"""The arms of a comparison: their configs and the settings tried in tuning.

All arms start from the config of the hybrid, so that for each seed data, order, augmentation and the initial values of
shared modules are the same. `name@flops` trains the arm `name` for the total FLOPs of the hybrid.
"""

import ast
import dataclasses
import re

import ml_collections

from hybrid_jax import config as config_lib
from hybrid_jax.errors import UserError, reject
from hybrid_jax.models import flops

GENERATIVE, CONTRASTIVE, HYBRID = "generative", "contrastive", "hybrid"
AT_FLOPS = "@flops"
TUNING_SEED = 1_000
_PURE = {GENERATIVE: "objective.contrastive_weight", CONTRASTIVE: "objective.generative_weight"}
# Factors of (learning rate, weight decay); the first trial is the config as it is.
_RATES = ((1.0, 1.0), (2.0, 1.0), (0.5, 1.0), (1.0, 4.0), (1.0, 0.25))
# Factors of the contrastive weight.
_WEIGHTS = (1.0, 1 / 3, 3.0, 0.1, 10.0)

Overrides = dict[str, object]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
      name: as in `--arms`, without overrides.
      base: `generative`, `contrastive` or `hybrid`, the arm whose tuning it uses.
      overrides: {field: value}, applied to the config of the base.
      at_flops: whether it trains for the total FLOPs of the hybrid instead of its number of steps.
    """

    name: str
    base: str
    overrides: Overrides = dataclasses.field(default_factory=dict)
    at_flops: bool = False


def parse(text: str) -> list[Arm]:
    """Reads `--arms`: names separated by commas, `name:field=value;field=value` for further hybrids.

    Raises:
      UserError: an empty or repeated name, an unknown one without overrides, an override that cannot be read.
    """
    # A comma inside brackets belongs to a value.
    arms = [_parse_one(part.strip()) for part in re.split(r",(?![^()\[\]]*[)\]])", text)]
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--arms={text}: {name!r} is given {names.count(name)} times, must be given once")
    return arms


def _parse_one(part: str) -> Arm:
    name, colon, rest = part.partition(":")
    base = name.removesuffix(AT_FLOPS)
    if not colon and base in (GENERATIVE, CONTRASTIVE, HYBRID) and name != HYBRID + AT_FLOPS:
        return Arm(name, base, {}, name.endswith(AT_FLOPS))
    if not colon or not re.fullmatch(r"[A-Za-z0-9_.+-]+", name) or name in (GENERATIVE, CONTRASTIVE, HYBRID):
        pure = f"{GENERATIVE}, {CONTRASTIVE}, {HYBRID}, {GENERATIVE}{AT_FLOPS}, {CONTRASTIVE}{AT_FLOPS}"
        allowed = f"{pure}, or NAME:FIELD=VALUE;FIELD=VALUE for another hybrid"
        raise UserError(f"--arms={part}: must be one of {allowed}")
    return Arm(name, HYBRID, dict(_override(each, part) for each in rest.split(";")))


def _override(text: str, part: str) -> tuple[str, object]:
    field, equals, value = text.partition("=")
    if not equals or field not in config_lib.FIELDS:
        near = config_lib.nearest(field, config_lib.FIELDS)
        raise UserError(f"--arms={part}: {text!r} must be FIELD=VALUE with a field of the config{near}")
    return field, _value(field, value)


def _value(name: str, text: str) -> object:
    field = config_lib.FIELDS[name]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if type(value) is int and (field.default is None or type(field.default) is float):
        value = float(value)
    if not config_lib.is_allowed(field, value):
        raise reject(name, value, field.allowed)
    return value


def parse_seeds(text: str) -> tuple[int, ...]:
    """Reads `--seeds`: whole numbers separated by commas.

    Raises:
      UserError: anything else, a repeated seed, or the seed used by tuning.
    """
    parts = [part.strip() for part in text.split(",")]
    seeds = tuple(int(part) for part in parts if re.fullmatch(r"[0-9]{1,9}", part))
    if len(seeds) != len(parts) or len(set(seeds)) != len(seeds) or TUNING_SEED in seeds:
        raise UserError(f"--seeds={text}: must be different whole numbers such as 0,1,2, and not {TUNING_SEED}")
    return seeds


def config_of(arm: Arm, base: ml_collections.ConfigDict, tuned: Overrides, seed: int) -> ml_collections.ConfigDict:
    """Returns the resolved config an arm trains with.

    Args:
      arm: the arm.
      base: the config of the hybrid.
      tuned: {field: value} that tuning chose for the arm's base.
      seed: the seed of the run.
    """
    config = base.copy_and_resolve_references()
    with config.unlocked():
        # The comparison evaluates by itself, and logging gradients costs as much as steps.
        config.eval.every_steps, config.log.gradients, config.seed = -1, False, seed
        config.eval.anomaly.num_images = 0
    set_fields(config, tuned | ({_PURE[arm.base]: 0.0} if arm.base in _PURE else {}) | arm.overrides)
    if arm.at_flops:
        steps = base.train.total_steps * flops.total(base) / flops.total(config)
        set_fields(config, {"train.total_steps": max(1, round(steps))})
    config_lib.validate(config)
    return config


def trials(arm: Arm, base: ml_collections.ConfigDict, of_generative: Overrides) -> list[Overrides]:
    """Returns the settings that tuning tries for an arm, the config's own first.

    The pure arms try learning rate and weight decay. The hybrid takes these from the generative arm, whose loss it has
    at full weight, and tries contrastive weights.

    Args:
      arm: the arm to tune.
      base: the config of the hybrid.
      of_generative: {field: value} chosen for the generative arm; empty if that is not compared.
    """
    count = base.compare.trials
    if arm.base == HYBRID:
        weight = base.objective.contrastive_weight
        return [{**of_generative, "objective.contrastive_weight": _rounded(weight * f)} for f in _WEIGHTS[:count]]
    rate, decay = base.optimizer.learning_rate, base.optimizer.weight_decay
    return [
        {"optimizer.learning_rate": _rounded(rate * one), "optimizer.weight_decay": _rounded(decay * two)}
        for one, two in _RATES[:count]
    ]


def trial_config(arm: Arm, base: ml_collections.ConfigDict, settings: Overrides) -> ml_collections.ConfigDict:
    """Returns the config of one trial: `config_of` at a share of the steps, with the tuning seed."""
    config = config_of(arm, base, settings, TUNING_SEED)
    set_fields(config, {"train.total_steps": max(1, round(base.train.total_steps * base.compare.trial_share))})
    return config


def check(base: ml_collections.ConfigDict, arms: list[Arm]) -> None:
    """Raises UserError if the config is not a hybrid's or the config of an arm is invalid."""
    for field in _PURE.values():
        if base.objective[field.removeprefix("objective.")] == 0:
            raise UserError(f"config.{field}=0: must be above 0, since a comparison starts from the hybrid's config")
    for arm in arms:
        config_of(arm, base, {}, 0)


def set_fields(config: ml_collections.ConfigDict, values: Overrides) -> None:
    """Sets {dotted field: value}."""
    with config.unlocked():
        for name, value in values.items():
            *sections, leaf = name.split(".")
            node = config
            for section in sections:
                node = node[section]
            node[leaf] = value


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
