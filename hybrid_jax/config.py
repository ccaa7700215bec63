"""The configuration schema: every field with its default, unit and meaning, and its validation."""

import dataclasses
import difflib
import json
import math
from collections.abc import Callable
from typing import Any

import ml_collections

from hybrid_jax.errors import UserError, reject

Check = Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Field:
    """One configuration field.

    Attributes:
      default: the default value; its type is the field's type.
      unit: unit of the number; empty for names and switches.
      meaning: one phrase, shown by `--mode=config` and in docs/configuration.md.
      allowed: the accepted values in words, as the error message states them.
      check: function of a value; true if the value is accepted.
    """

    default: Any
    unit: str
    meaning: str
    allowed: str = "any value of its type"
    check: Check = lambda value: True


def _at_least(low: float) -> dict[str, Any]:
    return {"allowed": f"must be at least {low}", "check": lambda v: v >= low}


def _one_of(*names: str) -> dict[str, Any]:
    return {"allowed": f"must be one of {', '.join(names)}", "check": lambda v: v in names}


def _share(low_open: bool = False, high_open: bool = False) -> dict[str, Any]:
    low, high = "(" if low_open else "[", ")" if high_open else "]"
    return {
        "allowed": f"must lie in {low}0, 1{high}",
        "check": lambda v: (v > 0 if low_open else v >= 0) and (v < 1 if high_open else v <= 1),
    }


def _sizes(count: int | None = None, high: int = 2**31) -> dict[str, Any]:
    what = "whole numbers of at least 1" if count is None else f"{count} whole numbers from 1 to {high}"

    def check(value):
        return len(value) > 0 and count in (None, len(value)) and all(type(v) is int and 1 <= v <= high for v in value)

    return {"allowed": f"must be {what}", "check": check}


def _depth(low: int) -> dict[str, Any]:
    return {"allowed": f"must lie in [{low}, 1000]", "check": lambda v: low <= v <= 1000}


_POSITIVE: dict[str, Any] = {
    "allowed": "must be numbers above 0",
    "check": lambda v: len(v) > 0 and all(c > 0 for c in v),
}
_STRENGTH = "; empty = the value of the recipe"
_RECIPES = ("none", "crop_flip", "grey_small", "simclr", "simclr_cifar", "moco_v2", "moco_v3")
DEFAULT_EVALUATORS = (
    "linear_probe",
    "few_label",
    "knn",
    "likelihood",
    "sample_quality",
    "calibration",
    "corruptions",
    "adversarial",
    "ood",
    "transfer",
)
# The others cost as much as training and run only if named in the config.
EVALUATORS = (*DEFAULT_EVALUATORS, "finetune")
# Metric: the evaluator that measures it, and whether higher is better.
BEST_METRICS = {
    "linear_probe_accuracy": ("linear_probe", True),
    "few_label_accuracy": ("few_label", True),
    "knn_accuracy": ("knn", True),
    "bits_per_dim": ("likelihood", False),
    "nats_per_token": ("likelihood", False),
}

FIELDS: dict[str, Field] = {
    "seed": Field(
        0,
        "",
        "seed of initialisation, data order and augmentation",
        allowed="must lie in [0, 2^32)",
        check=lambda v: 0 <= v < 2**32,
    ),
    "data.name": Field("embedded", "", "`embedded`, `fashion_mnist`, `digits`, `folder`, or a prepared tfds set"),
    "data.path": Field("", "", "the image folder, or the folder of prepared data sets (empty = the default)"),
    "data.image_size": Field((28, 28), "pixels", "height and width; images are resized to them", **_sizes(2, 2**14)),
    "data.channels": Field(1, "", "1 = grey, 3 = colour", allowed="must be 1 or 3", check=lambda v: v in (1, 3)),
    "data.train_split": Field("train", "", "the split used for training"),
    "data.validation_split": Field(
        "10%", "", "a split, or a share of the training split to hold out (never trained on)"
    ),
    "data.test_split": Field("test", "", "the split used for final results"),
    "data.labelled_split": Field(
        "", "", "the split that probes are fitted on (a share may be held out); empty = the training split"
    ),
    "data.exclude_classes": Field(
        (),
        "",
        "labels excluded from training; their test images are outliers for the evaluator `ood`",
        allowed="must be distinct labels, whole numbers of at least 0",
        check=lambda v: all(type(c) is int and c >= 0 for c in v) and len(set(v)) == len(v),
    ),
    "data.memory_gib": Field(
        8.0,
        "GiB",
        "splits up to this size are loaded into memory; a larger one is read from disk batch by batch",
        **_at_least(0),
    ),
    "data.device_gib": Field(
        1.0,
        "GiB",
        "a training split up to this size is kept on every GPU or TPU; larger ones are fed from the host; 0 = always",
        **_at_least(0),
    ),
    "data.cache": Field("", "", "folder for decoded images; empty = the user's cache folder"),
    "data.on_error": Field(
        "stop", "", "on an unreadable image file, `stop`, or `skip` and count it", **_one_of("stop", "skip")
    ),
    "model.patch_size": Field(4, "pixels", "side of a patch; must divide height and width", **_at_least(1)),
    "model.token_kind": Field(
        "intensity",
        "",
        "a token is a channel's `intensity` or a pixel's colour in the `palette`",
        **_one_of("intensity", "palette"),
    ),
    "model.levels": Field(
        256,
        "",
        "intensity levels; 256 = exact 8-bit likelihood",
        allowed="must lie in [2, 256]",
        check=lambda v: 2 <= v <= 256,
    ),
    "model.palette_size": Field(
        512,
        "colours",
        "size of the palette (k-means on the data)",
        allowed="must lie in [2, 65536]",
        check=lambda v: 2 <= v <= 65536,
    ),
    "model.width": Field(96, "features", "width of encoder and decoder", **_at_least(1)),
    "model.num_heads": Field(3, "", "attention heads; must divide the width", **_at_least(1)),
    "model.encoder_layers": Field(4, "blocks", "depth of the encoder; 0 = patch embedding only", **_depth(0)),
    "model.decoder_layers": Field(1, "blocks", "depth of the decoder", **_depth(1)),
    "model.decoder_skip": Field(
        True, "", "add the shifted patch embedding to the decoder's input (ignored when encoder_layers = 0)"
    ),
    "model.pixel_head": Field(
        "masked_mlp",
        "",
        "autoregressive network within a patch (ignored if a patch is one token)",
        **_one_of("masked_mlp"),
    ),
    "model.view_attention": Field("full", "", "attention mask of the contrastive views", **_one_of("full", "causal")),
    "model.projection_dims": Field((256, 64), "features", "layer widths of the contrastive head", **_sizes()),
    "model.activation": Field("gelu", "", "activation function of every MLP", **_one_of("gelu", "quick_gelu", "relu")),
    "model.dtype": Field(
        "float32",
        "",
        "dtype of matrix products; parameters, norms, softmax and losses stay float32",
        **_one_of("float32", "bfloat16"),
    ),
    "model.attention": Field(
        "auto",
        "",
        "`auto`: the fastest implementation for platform, length and mask; `plain`: always two matrix products",
        **_one_of("auto", "plain"),
    ),
    "model.remat": Field(False, "", "recompute blocks in the backward pass: less memory, more time"),
    "model.scan_layers": Field(False, "", "compile one block and loop over it: deep models compile faster"),
    "objective.generative_weight": Field(1.0, "per nat/token", "weight of the likelihood", **_at_least(0)),
    "objective.contrastive_weight": Field(0.1, "per nat", "weight of the contrastive loss", **_at_least(0)),
    "objective.contrastive": Field("nt_xent", "", "the contrastive loss", **_one_of("nt_xent")),
    "objective.temperature": Field(
        0.2, "", "temperature of the contrastive loss", allowed="must be above 0", check=lambda v: v > 0
    ),
    "augment.recipe": Field(
        "grey_small", "", f"augmentation of the views: {', '.join(_RECIPES)}", **_one_of(*_RECIPES)
    ),
    "augment.view_keep": Field(
        0.5, "share of patches", "patches kept in each view, drawn at random", **_share(low_open=True)
    ),
    "augment.crop_min_area": Field(
        None, "share of area", f"area of the smallest crop{_STRENGTH}", **_share(low_open=True)
    ),
    "augment.flip": Field(None, "probability", f"horizontal flip{_STRENGTH}", **_share()),
    "augment.brightness": Field(None, "", f"factor drawn from [1 - this, 1 + this]{_STRENGTH}", **_share()),
    "augment.contrast": Field(None, "", f"factor drawn from [1 - this, 1 + this]{_STRENGTH}", **_share()),
    "augment.saturation": Field(
        None, "", f"factor drawn from [1 - this, 1 + this] (colour only){_STRENGTH}", **_share()
    ),
    "augment.hue": Field(None, "turns", f"hue shift drawn from [-this, this] (colour only){_STRENGTH}", **_share()),
    "augment.grayscale": Field(None, "probability", f"conversion to greyscale{_STRENGTH}", **_share()),
    "augment.blur": Field(None, "probability", f"Gaussian blur{_STRENGTH}", **_share()),
    "augment.solarize": Field(None, "probability", f"inversion of values from 128 up{_STRENGTH}", **_share()),
    "train.total_steps": Field(1000, "steps", "length of the run", **_at_least(1)),
    "train.batch_size": Field(256, "images", "global batch size", **_at_least(1)),
    "train.microbatches": Field(
        1,
        "",
        "number of passes that a batch is split into; the contrastive loss still sees the whole batch",
        **_at_least(1),
    ),
    "train.likelihood_fraction": Field(
        1.0, "share of the batch", "images whose likelihood is computed", **_share(low_open=True)
    ),
    "train.ema_decay": Field(
        0.0, "", "decay of the parameters' moving average; 0 = no average", **_share(high_open=True)
    ),
    "train.skip_nonfinite": Field(
        0, "updates", "consecutive non-finite updates to skip before the run fails", **_at_least(0)
    ),
    "optimizer.name": Field("adamw", "", "`adamw`, or `muon` (for the blocks' matrices)", **_one_of("adamw", "muon")),
    "optimizer.learning_rate": Field(2e-3, "", "peak learning rate", **_at_least(0)),
    "optimizer.warmup_steps": Field(50, "steps", "linear warm-up, at most half of total_steps", **_at_least(0)),
    "optimizer.weight_decay": Field(0.05, "", "decoupled weight decay of matrices", **_at_least(0)),
    "optimizer.b2": Field(0.95, "", "decay of the second-moment estimate", **_share(high_open=True)),
    "optimizer.clip_norm": Field(1.0, "", "maximum global gradient norm; 0 = no clipping", **_at_least(0)),
    "mesh.data": Field(
        -1,
        "devices",
        "devices that the batch is sharded over; -1 = all remaining",
        allowed="must be -1 or at least 1",
        check=lambda v: v == -1 or v >= 1,
    ),
    "mesh.fsdp": Field(
        1, "devices", "devices that batch, parameters and optimizer state are sharded over", **_at_least(1)
    ),
    "checkpoint.every_steps": Field(
        500, "steps", "interval between checkpoints; the last step is always saved", **_at_least(1)
    ),
    "checkpoint.keep_last": Field(2, "checkpoints", "number of newest checkpoints to keep", **_at_least(2)),
    "checkpoint.keep_every": Field(0, "steps", "also keep checkpoints at multiples of this; 0 = none", **_at_least(0)),
    "checkpoint.best_metric": Field(
        "",
        "",
        "also keep the best checkpoint by this metric on the validation split; empty = none",
        allowed=f"must be empty or one of {', '.join(BEST_METRICS)}",
        check=lambda v: v == "" or v in BEST_METRICS,
    ),
    "log.every_steps": Field(50, "steps", "interval between progress lines", **_at_least(1)),
    "log.gradients": Field(True, "", "at each progress line, compare the gradients of the two losses in the encoder"),
    "log.profile_steps": Field(
        (),
        "steps",
        "first and last step to profile (jax.profiler), written to `profile/` in the workdir; () = none",
        allowed="must be () or two steps (first, last), 1 <= first <= last",
        check=lambda v: (
            len(v) in (0, 2) and all(type(s) is int for s in v) and min((*v, 1)) >= 1 and v == tuple(sorted(v))
        ),
    ),
    "log.wandb_project": Field("", "", "Weights & Biases project to log to; empty = none"),
    "eval.every_steps": Field(
        0, "steps", "interval between evaluations; 0 = after the last step only, -1 = never", **_at_least(-1)
    ),
    "eval.evaluators": Field(
        DEFAULT_EVALUATORS,
        "",
        "evaluators to run; `finetune`, which trains, runs only if named",
        allowed=f"must be a subset of {', '.join(EVALUATORS)}",
        check=lambda v: set(v) <= set(EVALUATORS),
    ),
    "eval.max_images": Field(
        100_000,
        "images",
        "maximum images of a split that evaluators use; drawn at random from a larger split",
        **_at_least(1),
    ),
    "eval.batch_size": Field(500, "images", "evaluation batch size", **_at_least(1)),
    "eval.report_samples": Field(16, "images", "samples shown in the report; 0 = none", **_at_least(0)),
    "eval.linear_probe.c_values": Field(
        (0.01, 0.1, 1.0, 10.0), "", "inverse L2 strengths tried on validation", **_POSITIVE
    ),
    "eval.linear_probe.max_iterations": Field(300, "iterations", "maximum L-BFGS iterations", **_at_least(1)),
    "eval.linear_probe.normed": Field(
        False, "", "probe each layer after the norm that follows it, as Image GPT's probes do"
    ),
    "eval.few_label.shares": Field(
        (0.01, 0.1),
        "share of labels",
        "shares of each class's training labels to use",
        allowed="must be numbers in (0, 1]",
        check=lambda v: all(0 < share <= 1 for share in v),
    ),
    "eval.few_label.per_class": Field(
        (10,),
        "images",
        "numbers of training labels per class to use (smaller classes use all)",
        allowed="must be whole numbers of at least 1",
        check=lambda v: all(isinstance(count, int) and count >= 1 for count in v),
    ),
    "eval.few_label.num_seeds": Field(3, "draws", "random draws of each set of labels", **_at_least(1)),
    "eval.few_label.c_values": Field(
        (0.001, 0.01, 0.1, 1.0), "", "inverse L2 strengths tried on validation", **_POSITIVE
    ),
    "eval.few_label.max_iterations": Field(300, "iterations", "maximum L-BFGS iterations", **_at_least(1)),
    "eval.knn.k": Field(20, "neighbours", "number of neighbours that vote", **_at_least(1)),
    "eval.knn.temperature": Field(
        0.07, "", "votes are weighted by exp(cosine / temperature)", allowed="must be above 0", check=lambda v: v > 0
    ),
    "eval.likelihood.num_images": Field(0, "images", "first images of the split; 0 = all", **_at_least(0)),
    "eval.anomaly.num_images": Field(
        2000,
        "images",
        "validation images that `anomaly_score` is fitted on; 0 = no score",
        allowed="must be 0 or at least 50",
        check=lambda v: v == 0 or v >= 50,
    ),
    "eval.ood.num_images": Field(
        1000, "images", "first test images, and as many outliers of each kind; 0 = all", **_at_least(0)
    ),
    "eval.sample_quality.num_images": Field(
        1000, "images", "number of samples; at most the test images and half the training images", **_at_least(1)
    ),
    "eval.sample_quality.temperature": Field(1.0, "", "sampling temperature; 0 = arg-max", **_at_least(0)),
    "eval.sample_quality.encoder": Field(
        "random-conv-v1",
        "",
        "network that compares samples with images: `random-conv-v1`, or the workdir of another run",
    ),
    "eval.corruptions.num_images": Field(
        2000, "images", "first test images, which are corrupted; 0 = all", **_at_least(0)
    ),
    "eval.corruptions.severities": Field(
        (1, 3, 5),
        "",
        "severities of the corruptions",
        allowed="must be whole numbers from 1 to 5",
        check=lambda v: len(v) > 0 and all(type(s) is int and 1 <= s <= 5 for s in v),
    ),
    "eval.adversarial.num_images": Field(
        500, "images", "first test images, which are attacked; 0 = all", **_at_least(0)
    ),
    "eval.adversarial.epsilons": Field(
        (1, 2, 4, 8),
        "grey levels",
        "largest change of a pixel value by an attack",
        allowed="must be whole numbers from 0 to 255",
        check=lambda v: all(type(e) is int and 0 <= e <= 255 for e in v),
    ),
    "eval.adversarial.steps": Field(10, "steps", "steps of projected gradient descent", **_at_least(1)),
    "eval.transfer.name": Field(
        "", "", "another labelled data set to evaluate frozen features on, as `data.name`; empty = none"
    ),
    "eval.transfer.path": Field("", "", "its location, as `data.path`"),
    "eval.transfer.test_split": Field("test", "", "its split used for results"),
    "eval.finetune.num_images": Field(
        2000, "images", "first labelled training images, used for fine-tuning; 0 = all", **_at_least(0)
    ),
    "eval.finetune.epochs": Field(20, "epochs", "passes over these images", **_at_least(1)),
    "eval.finetune.batch_size": Field(64, "images", "batch size", **_at_least(1)),
    "eval.finetune.learning_rates": Field(
        (3e-4, 1e-3, 3e-3), "", "peak learning rates tried on validation, one training each", **_POSITIVE
    ),
    "eval.finetune.layer_decay": Field(
        0.75, "", "ratio of a block's learning rate to that of the next block; 1 = all equal", **_share(low_open=True)
    ),
    "eval.finetune.weight_decay": Field(0.05, "", "decoupled weight decay of matrices", **_at_least(0)),
    "compare.trials": Field(
        3,
        "runs",
        "settings tried per arm before the final runs; 1 = the config as it is, without trials",
        allowed="must lie in [1, 5]",
        check=lambda v: 1 <= v <= 5,
    ),
    "compare.trial_share": Field(0.25, "share of total_steps", "length of each trial", **_share(low_open=True)),
}

# Fields of earlier versions, ignored in saved configs.
IGNORED = ("eval.cache_gib",)

# A resumed run may change these fields only.
_WHERE = ("data.path", "data.cache", "data.memory_gib", "data.device_gib")
MAY_CHANGE = ("train.total_steps", "model.attention", "mesh.", "log.", "eval.", "checkpoint.", "compare.", *_WHERE)


def default_config() -> ml_collections.ConfigDict:
    """Returns a locked config with the default of every field; files in `configs/` start from it."""
    config = ml_collections.ConfigDict()
    for name, field in FIELDS.items():
        *sections, leaf = name.split(".")
        node = config
        for section in sections:
            if section not in node:
                node[section] = ml_collections.ConfigDict()
            node = node[section]
        optional = field.default is None
        node[leaf] = ml_collections.config_dict.placeholder(float) if optional else field.default
    return config.lock()


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns {dotted field name: value}; lists become tuples."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat.update({f"{name}.{k}": v for k, v in flatten(value).items()})
        else:
            flat[name] = tuple(value) if isinstance(value, list | tuple) else value
    return flat


def from_dict(nested: dict[str, Any]) -> ml_collections.ConfigDict:
    """Returns the locked config of a nested dict, as in `config.json`.

    Raises:
      UserError: an unknown field, or a value of the wrong type.
    """
    config = default_config()
    flat = flatten(ml_collections.ConfigDict(nested))
    for name, value in flat.items():
        if name in IGNORED:
            continue
        if name not in FIELDS:
            raise UserError(f"config.{name}: no such field{nearest(name, FIELDS)}")
        *sections, leaf = name.split(".")
        node = config
        for section in sections:
            node = node[section]
        try:
            node[leaf] = value
        except (TypeError, ValueError) as error:
            kind = type(FIELDS[name].default).__name__
            raise reject(name, value, f"must be of type {kind}") from error
    return config


def nearest(name: str, known) -> str:
    """Returns ", did you mean X?" with the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns the config as the text of `config.json`, nested by section."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every field, then constraints between fields.

    Raises:
      UserError: names the first invalid field, its value and what is allowed.
    """
    flat = flatten(config)
    for name in flat:
        if name not in FIELDS:
            raise UserError(f"config.{name}: no such field{nearest(name, FIELDS)}")
    for name, field in FIELDS.items():
        if name not in flat:
            raise UserError(f"config.{name}: missing; start the config from default_config()")
        if not is_allowed(field, flat[name]):
            raise reject(name, flat[name], field.allowed)
    _validate_model(config)
    _validate_training(config)


def is_allowed(field: Field, value: Any) -> bool:
    """Returns whether a value has the field's type and passes its check."""
    if value is None:
        return field.default is None
    if isinstance(value, float) and not math.isfinite(value):
        return False
    try:
        return (field.default is None or type(value) is type(field.default)) and field.check(value)
    except TypeError:
        return False


def _validate_model(config: ml_collections.ConfigDict) -> None:
    model, objective = config.model, config.objective
    height, width = config.data.image_size
    if height % model.patch_size or width % model.patch_size:
        fits = [p for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
        allowed = f"must divide data.image_size={(height, width)}: one of {fits}"
        raise reject("model.patch_size", model.patch_size, allowed)
    if model.width % model.num_heads:
        raise reject("model.num_heads", model.num_heads, f"must divide model.width={model.width}")
    if objective.generative_weight == objective.contrastive_weight == 0:
        raise reject("objective.generative_weight", 0, "one of the two weights must be above 0")
    if objective.contrastive_weight > 0 and model.encoder_layers == 0:
        allowed = "must be at least 1 where objective.contrastive_weight is above 0"
        raise reject("model.encoder_layers", 0, allowed)
    causal_views = objective.contrastive_weight > 0 and model.view_attention == "causal"
    if causal_views and config.augment.view_keep < 1:
        allowed = "must be 1 where model.view_attention is 'causal'"
        raise reject("augment.view_keep", config.augment.view_keep, allowed)


def _validate_training(config: ml_collections.ConfigDict) -> None:
    batch, pieces = config.train.batch_size, config.train.microbatches
    if batch % pieces:
        raise reject("train.microbatches", pieces, f"must divide train.batch_size={batch}")
    if config.objective.contrastive_weight > 0 and batch < 2:
        raise reject("train.batch_size", batch, "a contrastive batch needs at least 2 images")
    likelihood = likelihood_batch(config)
    if config.objective.generative_weight > 0 and (likelihood < 1 or likelihood % pieces):
        allowed = f"gives {likelihood} images; must be a positive multiple of train.microbatches={pieces}"
        raise reject("train.likelihood_fraction", config.train.likelihood_fraction, allowed)


def likelihood_batch(config: ml_collections.ConfigDict) -> int:
    """Returns the number of images of a global batch whose likelihood is computed."""
    return round(config.train.batch_size * config.train.likelihood_fraction)


def contradictions(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> list[str]:
    """Returns one line for each field that `new` changes and a resumed run may not change."""
    before, after = flatten(old), flatten(new)
    return [
        f"config.{name}={after[name]!r}: the workdir was trained with {before[name]!r}"
        for name in FIELDS
        if before[name] != after[name] and not name.startswith(MAY_CHANGE)
    ]


def describe() -> str:
    """Returns a table of all fields: name, default, unit, meaning."""
    rows = [("field", "default", "unit", "meaning")]
    rows += [(n, repr(f.default), f.unit, f.meaning) for n, f in FIELDS.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows)
