"""A model, data and results that a report is made of in a moment."""

import base64
import io
import json
from types import SimpleNamespace

import numpy as np
from PIL import Image

from hybrid_jax import corruptions
from hybrid_jax.config import default_config
from hybrid_jax.evaluators.ood import MEAN, MEAN_AT_CHANCE
from hybrid_jax.models.tokens import TokenSpec

HOSTILE = "<script>alert('x')</script>"
GREY = TokenSpec("intensity", 256, 4, 8, 8, 1)


def make_model(generative=True, contrastive=True, spec=GREY, palette=None, samples=None):
    """A model whose features are pixels; it draws `samples` or noise, and completes with black. `calls` are kept."""
    config, calls, rng = default_config(), [], np.random.default_rng(0)
    config.data.path = HOSTILE
    config.eval.report_samples = 0
    flat = lambda images: images.reshape(len(images), -1)[:, ::9].astype(np.float32)

    def sample(seed, num, temperature=1.0):
        calls.append(("sample", seed, num, temperature))
        noise = rng.integers(0, 256, (num, *spec.image_shape), np.uint8)
        return noise if samples is None else np.concatenate([samples, noise])[:num]

    def complete(images, num_rows, seed):
        calls.append(("complete", seed, len(images), num_rows))
        return np.concatenate([images[:, :num_rows], np.zeros_like(images[:, num_rows:])], axis=1)

    return SimpleNamespace(
        config=config, spec=spec, palette=palette, has_likelihood=generative, has_contrastive=contrastive, step=1500,
        default_layer="encoder", features=lambda images: {"encoder": flat(images)},
        embed=lambda images, layer=None: flat(images), sample=sample, complete=complete, calls=calls,
    )  # fmt: skip


def make_data(labels=True, test=True, validation=True, classes=3, channels=1):
    rng = np.random.default_rng(0)

    def split(n):
        y = np.arange(n, dtype=np.int32) % classes
        images = rng.integers(0, 60, (n, 8, 8, channels)) + 60 * (y % 3)[:, None, None, None]
        return SimpleNamespace(images=images.astype(np.uint8), labels=y if labels else None)

    names = [HOSTILE, "_hidden", "$\\frac$", *map(str, range(3, classes))] if labels else None
    return SimpleNamespace(
        train=split(60), validation=split(12) if validation else None, test=split(20) if test else None,
        class_names=names, name=f"mine & {HOSTILE}", fingerprint="f",
    )  # fmt: skip


def row(metric, value, floor=0.8, protocol="p-v1", **more):
    """A result of the test split; `floor` is a number or {name: number}."""
    floor = {"raw pixels": floor} if isinstance(floor, float) else floor
    common = {"n": 2000, "split": "test", "standard_error": 0.009}
    return common | {"metric": metric, "value": value, "floor": floor, "protocol": protocol} | more


def make_results():
    probe = "linear_probe_accuracy"
    return [
        row(probe, 0.85, protocol="linear-probe-v1", variant="default", layer=HOSTILE),
        row(probe, 0.7, protocol="linear-probe-v1", variant="last_four", C=1.0, c_values=[0.1, 1.0]),
        row("knn_accuracy", 0.74, protocol="knn-v1"),
        row("bits_per_dim", 3.1, 4.6, "likelihood-v1", train_value=3.0, train_n=2000),
    ]


def make_sweep(best="encoder/2"):
    names = ("embedding", "encoder/1", "encoder/2", "encoder", "decoder/1", "decoder")
    scores = dict(zip(names, (0, 0.5, 1, 0.6, 0.5, 0.4), strict=True))
    return make_results()[0] | {
        "variant": "best_layer", "layer": best, "layer_choice_C": 0.1, "layer_choice_n_train": 5000,
        "layer_choice_n_validation": 1000, "layer_validation_accuracy": scores,
    }  # fmt: skip


def make_robustness():
    table, shared = {kind: {"1": 0.8, "5": 0.3} for kind in corruptions.MAIN}, {"floor": 0.1, "layer": HOSTILE}
    severities = {"severities": [1, 5], "floor_clean_value": 0.7, "corruption_seed": 0, "clean_value": 0.9}
    attack = {"steps": 10, "epsilon": 4, "fgsm_value": 0.3, "noise_value": 0.9, "clean_value": 0.9}
    shared["reliability"] = [{"low": 14 / 15, "high": 1.0, "count": 2000, "confidence": 0.97, "accuracy": 0.9}]
    return [
        row("corruption_accuracy", 0.55, accuracy=table, floor_accuracy=table, **severities, **shared),
        row("adversarial_accuracy", 0.2, variant="PGD, 4 of 255", **attack, **shared),
        row("calibration_error", 0.07, variant="as fitted", **shared),
        row("calibration_error", 0.07, variant="temperature scaled", temperature=1.5, **shared),
    ]


def samples_row(metric="frechet_distance", value=0.9, real=0.5, blind=10.0, **more):
    floor = {"real test images": real, "histogram samples": blind}
    return row(metric, value, floor, encoder="<e>", temperature=1.0, **({"standard_error": None} | more))


def make_outliers(score="joint score", value=0.9):
    """Rows of one score on two kinds of outliers, as the evaluator orders them."""
    pairs = {MEAN: ["rotated", "noisy"], MEAN_AT_CHANCE: ["rotated"], "rotated": ["rotated"], "noisy": ["noisy"]}
    metrics = [("ood_auroc", "ood"), ("ood_aupr", "ood"), ("ood_fpr95", "ood"), ("ood_fpr95", "id")]
    floor, shared = {"raw pixels": 0.6, "image mean": 0.8}, {"score": score, "n_id": 20}
    return [
        row(metric, value, floor, positive=side, pair=pair, pairs=kinds, variant=f"{score}, {pair}", **shared)
        for metric, side in metrics
        for pair, kinds in pairs.items()
    ]


def write_metrics(workdir, generative=True, contrastive=True):
    keys = {
        "generative_loss": generative, "contrastive_loss": contrastive, "contrastive_accuracy": contrastive,
        "encoder_gradient_cosine": generative and contrastive, "encoder_gradient_norm_generative": generative,
        "encoder_gradient_norm_contrastive": contrastive,
    }  # fmt: skip
    rows = [
        {"step": step, "loss": 5.0, "learning_rate": 1e-3, "grad_norm": 2.0, "images_per_second": 800.0}
        | {key: step / 300 if there else None for key, there in keys.items()}
        for step in range(1, 200, 20)
    ]
    # Killed while it wrote the last line.
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows) + '{"step": 201, "loss":')


def images_in(html):
    """The pixels of every image in some HTML."""
    parts = html.split("data:image/png;base64,")[1:]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(part.split('"')[0])))) for part in parts]
