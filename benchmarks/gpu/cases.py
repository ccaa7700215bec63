"""Which steps are measured: the configs of this project, cut to one card. No jax here.

A case is `NAME/ARM`, such as `cifar10/hybrid`.
"""

import importlib
from typing import Any

_UNROLLED = {"model.remat": False, "model.scan_layers": False}
# name: (file of configs/, what one card or the name asks to change).
_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    # PyTorch has no Muon to be compared with.
    "fashion_mnist": ("fashion_mnist", {"optimizer.name": "adamw"}),
    "fashion_mnist_muon": ("fashion_mnist", {}),
    "fashion_mnist_bf16": ("fashion_mnist", {"optimizer.name": "adamw", "model.dtype": "bfloat16"}),
    "cifar10": ("cifar10", {}),
    "cifar10_256": (
        "cifar10",
        {"model.width": 256, "model.num_heads": 4, "model.encoder_layers": 6, "model.decoder_layers": 3},
    ),
    # As pods train: less memory and a smaller program, for more work.
    "cifar10_looped": ("cifar10", {"model.remat": True, "model.scan_layers": True}),
    "cifar10_plain": ("cifar10", {"model.attention": "plain"}),
    "imagenet32_igpt_s": ("imagenet32_igpt_s", {"train.batch_size": 64} | _UNROLLED),
    "imagenet64": ("imagenet64", {"train.batch_size": 256, "mesh.fsdp": 1}),
}
_ARMS: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "generative": {"objective.contrastive_weight": 0.0},
    "contrastive": {"objective.generative_weight": 0.0},
}
_TINY = {
    "model.width": 32, "model.num_heads": 2, "model.encoder_layers": 2, "model.decoder_layers": 1,
    "model.projection_dims": (32, 16), "train.batch_size": 8,
}  # fmt: skip
_TINY_PALETTE = {"data.image_size": (8, 8), "model.palette_size": 32}

# Programs of a wave are compiled together and then timed: nothing compiles beside a timing.
WAVES = (
    ("cifar10/hybrid", "fashion_mnist/hybrid", "imagenet32_igpt_s/hybrid"),
    (
        "cifar10/generative", "cifar10/contrastive", "cifar10_256/hybrid",
        "fashion_mnist/generative", "fashion_mnist/contrastive",
    ),
    (
        "imagenet64/hybrid", "imagenet32_igpt_s/generative", "imagenet32_igpt_s/contrastive",
        "fashion_mnist_bf16/hybrid", "fashion_mnist_muon/hybrid", "cifar10_256/generative",
    ),
    (
        "cifar10_looped/hybrid", "cifar10_plain/hybrid", "cifar10_256/contrastive", "imagenet64/generative",
        "imagenet64/contrastive",
    ),
)  # fmt: skip
TINY_WAVES = (("cifar10/hybrid", "imagenet32_igpt_s/generative"), ("fashion_mnist/contrastive",))


def config_of(case: str, tiny: bool = False):
    """Returns a case's config; with `tiny`, of sizes for a CPU."""
    name, arm = case.split("/")
    file, settings = _SETTINGS[name]
    config = importlib.import_module(f"configs.{file}").get_config()
    settings = settings | _ARMS[arm] | (_TINY if tiny else {})
    if tiny and config.model.token_kind == "palette":
        settings |= _TINY_PALETTE
    config.update_from_flattened_dict(settings)
    return config


def every_case() -> tuple[str, ...]:
    """Returns all names that `config_of` knows."""
    return tuple(f"{name}/{arm}" for name in _SETTINGS for arm in _ARMS)


def chosen(text: str, waves: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """Returns the cases of a flag's text, separated by commas, as one wave; without a text those given."""
    return (tuple(text.split(",")),) if text else waves
