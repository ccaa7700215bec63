"""The contests of whole train steps: hybrid, contrastive only, generative only."""

import math
from collections.abc import Callable

from benchmarks.contest import Call, Contest, Described, Factory, cores
from benchmarks.peer_start import start_contest

_GOAL = 2.0


def contests() -> list[Contest]:
    """Returns the contests (a), (b), (c) and (g)."""
    return [
        Contest("a", "hybrid step, configs/fashion_mnist.py", "step of 128 images", _GOAL, _hybrid(_fashion_mnist)),
        Contest("a", "the same at width 256", "step of 128 images", _GOAL, _hybrid(_wide), only_full=True),
        Contest("b", "contrastive step, all patches kept", "step of 128 images", _GOAL, _contrastive()),
        Contest("c", "generative step, Image GPT, 256 tokens", "step of 16 images", _GOAL, _generative()),
        start_contest(),
    ]


def _fashion_mnist(optimizer: str = "adamw"):
    from configs import fashion_mnist

    config = fashion_mnist.get_config()
    # The peers have no Muon.
    config.optimizer.name = optimizer
    return config


def _wide(optimizer: str = "adamw"):
    config = _fashion_mnist(optimizer)
    config.model.width, config.model.num_heads = 256, 8
    return config


def _all_patches():
    config = _fashion_mnist()
    config.objective.generative_weight, config.augment.view_keep = 0.0, 1.0
    return config


def _palette():
    config = _fashion_mnist()
    config.data.image_size, config.data.channels = (16, 16), 3
    config.model.update({
        "patch_size": 1, "token_kind": "palette", "palette_size": 512, "encoder_layers": 0, "decoder_layers": 8,
        "width": 128, "num_heads": 4, "activation": "quick_gelu",
    })  # fmt: skip
    config.objective.contrastive_weight, config.train.likelihood_fraction = 0.0, 1.0
    config.train.batch_size, config.augment.recipe = 16, "none"
    return config


def _hybrid(make: Callable) -> dict[str, Factory]:
    return {
        "hybrid_jax, AdamW": lambda quick: ours(make()),
        "hybrid_jax, its own Muon": lambda quick: ours(make("muon")),
        **_both_losses(make, ("HF ImageGPT blocks", "imagegpt"), ("HF GPT-2 blocks (sdpa)", "gpt2")),
    }


def _contrastive() -> dict[str, Factory]:
    vit = ("HF ViT (sdpa)", "vit")
    return {"hybrid_jax": lambda quick: ours(_all_patches()), **_both_losses(_all_patches, vit, vit)}


def _both_losses(make: Callable, library: tuple[str, str], written: tuple[str, str]) -> dict[str, Factory]:
    """Returns blocks (label, kind) with the library's loss and blocks with a cross-entropy, each compiled too."""
    return {
        f"{library[0]}, NTXentLoss": lambda quick: _torch_hybrid(make(), library[1], True, False),
        "the same, torch.compile": lambda quick: _torch_hybrid(make(), library[1], True, True),
        f"{written[0]}, NT-Xent as cross-entropy": lambda quick: _torch_hybrid(make(), written[1], False, False),
        "the last, torch.compile": lambda quick: _torch_hybrid(make(), written[1], False, True),
    }


def _generative() -> dict[str, Factory]:
    make = _palette
    return {
        "hybrid_jax": lambda quick: ours(make()),
        "HF ImageGPT": lambda quick: _torch_image_gpt(make(), "imagegpt", False),
        "the same, torch.compile": lambda quick: _torch_image_gpt(make(), "imagegpt", True),
        "HF GPT-2 (sdpa)": lambda quick: _torch_image_gpt(make(), "gpt2", False),
        "the last, torch.compile": lambda quick: _torch_image_gpt(make(), "gpt2", True),
    }


def ours(config) -> Call:
    """Returns a call of hybrid_jax's jitted train step, augmentation included."""
    from hybrid_jax.utils import runtime
    from hybrid_jax.utils.runtime import keep_compiled_programs

    keep_compiled_programs()
    runtime.reuse_memory()
    import jax

    from benchmarks import step
    from hybrid_jax import config as config_lib
    from hybrid_jax.models import flops

    config_lib.validate(config)
    run = step.whole_step(config).call
    state, _ = run()
    count = sum(x.size for x in jax.tree.leaves(state.params))
    facts = {"parameters": count, "gflop": flops.total(config) / 1e9}
    return Described(lambda: jax.block_until_ready(run()), facts)


def _torch_hybrid(config, blocks: str, library_loss: bool, compiled: bool) -> Call:
    import torch

    from benchmarks import torch_models, torch_steps

    torch.set_num_threads(cores())
    module = torch_models.Hybrid(config, torch_models.Kind(blocks, library_loss))
    return _torch_step(module, torch_steps.batch(config), config, compiled)


def _torch_image_gpt(config, blocks: str, compiled: bool) -> Call:
    import torch

    from benchmarks import torch_models

    torch.set_num_threads(cores())
    shape = (config.train.batch_size, math.prod(config.data.image_size))
    data = (torch.randint(config.model.palette_size, shape),)
    return _torch_step(torch_models.NextColour(config, blocks), data, config, compiled)


def _torch_step(module, data, config, compiled: bool) -> Call:
    from benchmarks import torch_steps

    facts = torch_steps.facts(module, data)
    return Described(torch_steps.step(module, data, config, compiled), facts)
