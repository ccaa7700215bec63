"""The contests: train steps (a, b, c), NT-Xent (d), two views (e), sampling (f), the start (g).

Peers come with the extras `[oracle]` and `[peers]`. PyTorch's side of (g) is `python -m benchmarks.peers.contests
[--compiled]`: it imports, builds the model of configs/quickstart.py, does one step and prints `step`.
"""

import importlib
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.peers.contest import Contest, Work

DIM, TEMPERATURE = (128, 0.1)  # SimCLR's projection, and the temperature of its best results
LOSS_BATCHES, VIEW_BATCH = (256, 1024, 4096, 16384), 256
# A contender that needs more is not run: several wait in memory at a time.
MOST_GIB = 16

# Changes of configs/fashion_mnist.py. The peers have no Muon.
ADAMW = {"optimizer.name": "adamw"}
WIDE = ADAMW | {"model.width": 256, "model.num_heads": 8}
ALL_PATCHES = ADAMW | {"objective.generative_weight": 0.0, "augment.view_keep": 1.0}
COLOURS = ADAMW | {
    "data.image_size": (16, 16), "data.channels": 3, "model.patch_size": 1, "model.token_kind": "palette",
    "model.palette_size": 512, "model.encoder_layers": 0, "model.decoder_layers": 8, "model.width": 128,
    "model.num_heads": 4, "model.activation": "quick_gelu", "objective.contrastive_weight": 0.0,
    "train.likelihood_fraction": 1.0, "train.batch_size": 16, "augment.recipe": "none",
}  # fmt: skip


def contests() -> list[Contest]:
    """Returns all contests, by letter."""
    images, vit = "step of 128 images", ("HF ViT (sdpa)", "vit")
    imagegpt, gpt2 = ("HF ImageGPT blocks", "imagegpt"), ("HF GPT-2 blocks (sdpa)", "gpt2")
    hybrid = lambda changes: {
        "hybrid_jax, AdamW": partial(our_step, changes),
        "hybrid_jax, its own Muon": partial(our_step, changes | {"optimizer.name": "muon"}),
        **_both_losses(changes, imagegpt, gpt2),
    }
    contrastive = {"hybrid_jax": partial(our_step, ALL_PATCHES), **_both_losses(ALL_PATCHES, vit, vit)}
    generative = {
        "hybrid_jax": partial(our_step, COLOURS),
        "HF ImageGPT": partial(torch_step, COLOURS, ("next_colour", "imagegpt"), False),
        "the same, torch.compile": partial(torch_step, COLOURS, ("next_colour", "imagegpt"), True),
        "HF GPT-2 (sdpa)": partial(torch_step, COLOURS, ("next_colour", "gpt2"), False),
        "the last, torch.compile": partial(torch_step, COLOURS, ("next_colour", "gpt2"), True),
    }
    sampling = {
        "hybrid_jax, cached, a device a core": partial(sampler, "cached"),
        "Hugging Face generate, cached": partial(sampler, "hugging_face"),
    }
    start = {
        "hybrid_jax, its programs kept": partial(start_kept, OURS),
        "hybrid_jax, nothing kept": partial(start_fresh, OURS),
        "PyTorch": partial(start_kept, THEIRS),
        "PyTorch, torch.compile, its programs kept": partial(start_kept, (*THEIRS, "--compiled")),
        "PyTorch, torch.compile, nothing kept": partial(start_fresh, (*THEIRS, "--compiled")),
    }
    tokens = "sampling 1,024 tokens (--quick: 256), 512 colours, width 128, 8 layers, batch 16"
    first = "from the command to its first step, configs/quickstart.py"
    return [
        Contest("a", "hybrid step, configs/fashion_mnist.py", images, 2.0, hybrid(ADAMW)),
        Contest("a", "the same at width 256", images, 2.0, hybrid(WIDE), only_full=True),
        Contest("b", "contrastive step, all patches kept", images, 2.0, contrastive),
        Contest("c", "generative step, Image GPT, 256 tokens", "step of 16 images", 2.0, generative),
        *[_loss_contest(batch) for batch in LOSS_BATCHES],
        _view_contest("grey_small", (28, 28, 1)),
        _view_contest("simclr_cifar", (32, 32, 3)),
        Contest("f", tokens, "batch", 3.0, sampling),
        Contest("g", first, "start", 1.0, start, same_parameters=False, rounds=(3, 1)),
    ]


def _both_losses(changes: dict[str, Any], library: tuple[str, str], written: tuple[str, str]) -> dict[str, Callable]:
    """Returns blocks (label, kind) with the library's loss and blocks with a cross-entropy, each compiled too."""
    step = lambda blocks, loss, compiled: partial(torch_step, changes, ("hybrid", blocks, loss), compiled)
    return {
        f"{library[0]}, NTXentLoss": step(library[1], True, False),
        "the same, torch.compile": step(library[1], True, True),
        f"{written[0]}, NT-Xent as cross-entropy": step(written[1], False, False),
        "the last, torch.compile": step(written[1], False, True),
    }


def _config(changes: dict[str, Any], name: str = "fashion_mnist"):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict(changes)
    return config


def our_step(changes: dict[str, Any], quick: bool) -> Work:
    """Returns hybrid_jax's jitted train step, augmentation included."""
    from hybrid_jax.utils import runtime

    runtime.keep_compiled_programs()
    runtime.reuse_memory()
    import jax

    from benchmarks import step
    from hybrid_jax import config as config_lib
    from hybrid_jax.models import flops

    config = _config(changes)
    config_lib.validate(config)
    run = step.whole_step(config).call
    count = sum(x.size for x in jax.tree.leaves(run()[0].params))
    return Work(lambda: jax.block_until_ready(run()), {"parameters": count, "gflop": flops.total(config) / 1e9})


def torch_step(changes: dict[str, Any], how: tuple, compiled: bool, quick: bool) -> Work:
    """Returns the train step of a model that `hugging_face` makes: by the function how[0] with the other arguments."""
    from benchmarks.peers import hugging_face

    step, module, inputs = _torch_step(_config(changes), how, compiled)
    return Work(step, hugging_face.facts(module, inputs))


def _torch_step(config, how: tuple, compiled: bool) -> tuple[Callable, Any, tuple]:
    import torch

    from benchmarks import torch_model
    from benchmarks.peers import hugging_face

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    module, inputs = getattr(hugging_face, how[0])(config, *how[1:])
    return torch_model.make_step(module, [inputs], config, mode="default" if compiled else "eager"), module, inputs


def _loss_contest(batch: int) -> Contest:
    contenders = {
        "hybrid_jax": partial(jax_loss, batch, False),
        "optax, jitted": partial(jax_loss, batch, True),
        "pytorch-metric-learning": partial(torch_loss, batch, True, False),
        "pytorch-metric-learning, torch.compile": partial(torch_loss, batch, True, True),
        "torch, cross entropy written by hand": partial(torch_loss, batch, False, False),
        "torch, the same with torch.compile": partial(torch_loss, batch, False, True),
    }
    # The goal of 5 is for 4,096; elsewhere a peer shall not be faster.
    what = f"NT-Xent with gradient, B = {batch:,}, D = {DIM}"
    return Contest("d", what, "loss", 5.0 if batch == 4096 else 1.0, contenders, only_full=batch in (1024, 16384))


def _embeddings(batch: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(batch, DIM)).astype(np.float32) for _ in range(2)]


def _refuse(needed: int) -> None:
    if needed > MOST_GIB * common.GIB:
        raise MemoryError(f"needs more than {MOST_GIB} GiB: at least {needed / common.GIB:,.0f}")


def jax_loss(batch: int, library: bool, quick: bool) -> Work:
    """Returns our loss and its gradient, with the block size that the train step gets, or optax's."""
    import jax
    import jax.numpy as jnp
    import optax

    from hybrid_jax import losses

    labels, pair = jnp.tile(jnp.arange(batch), 2), jax.device_put(_embeddings(batch))
    ours = lambda z1, z2: jnp.mean(losses.nt_xent(z1, z2, TEMPERATURE))
    theirs = lambda z1, z2: optax.losses.ntxent(jnp.concatenate([z1, z2]), labels, TEMPERATURE)
    compiled = jax.jit(jax.value_and_grad(theirs if library else ours, (0, 1))).lower(*pair).compile()
    _refuse(compiled.memory_analysis().temp_size_in_bytes)
    return Work(lambda: jax.block_until_ready(compiled(*pair)))


def torch_loss(batch: int, library: bool, compiled: bool, quick: bool) -> Work:
    """Returns pytorch-metric-learning's loss and its gradient, or the loss as most PyTorch code has it."""
    if library:
        # It compares each positive pair, 2B, with each negative pair, 2B (2B - 2): as booleans, then as float32.
        _refuse((1 + 4) * 2 * batch * 2 * batch * (2 * batch - 2))
    import torch

    from benchmarks.peers.hugging_face import library_nt_xent
    from benchmarks.torch_model import nt_xent

    resource.setrlimit(resource.RLIMIT_AS, (MOST_GIB * common.GIB,) * 2)
    loss = library_nt_xent(TEMPERATURE) if library else partial(nt_xent, temperature=TEMPERATURE)
    pair = [torch.from_numpy(z).requires_grad_() for z in _embeddings(batch)]
    function = torch.compile(loss) if compiled else loss

    def call() -> object:
        try:
            return torch.autograd.grad(function(*pair), pair)
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            raise MemoryError(f"needs more than {MOST_GIB} GiB") from None

    return Work(call)


def _view_contest(recipe: str, shape: tuple[int, int, int]) -> Contest:
    contenders = {"hybrid_jax": partial(our_views, recipe, shape), "kornia": partial(kornia_views, recipe, shape)}
    what = f"two views `{recipe}` of {VIEW_BATCH} images, {'x'.join(map(str, shape))}"
    return Contest("e", what, "batch", 3.0, contenders)


def _images(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (VIEW_BATCH, *shape), dtype=np.uint8)


def our_views(recipe: str, shape: tuple[int, int, int], quick: bool) -> Work:
    """Returns a call that makes two views on the 0..255 scale, jitted, with a key of its own each time."""
    import jax

    from hybrid_jax.data import augment

    recipes, images, count = augment.RECIPES[recipe], jax.device_put(_images(shape)), iter(range(2**31))

    @jax.jit
    def views(number, images):
        key = jax.random.fold_in(jax.random.key(0), number)
        return [augment.augment(jax.random.fold_in(key, i), images, r) for i, r in enumerate(recipes)]

    return Work(lambda: jax.block_until_ready(views(next(count), images)))


def kornia_views(recipe: str, shape: tuple[int, int, int], quick: bool) -> Work:
    """Returns a call that makes two views on the 0..1 scale, in one pass over a batch that holds each image twice."""
    import kornia.augmentation as kornia
    import torch

    from hybrid_jax.data.augment import RECIPES

    ours = RECIPES[recipe][0]  # whose strengths these are
    jitter = partial(kornia.ColorJitter, ours.brightness, ours.contrast, p=ours.jitter_probability)
    area = (ours.crop_min_area, 1.0)
    steps: list[Any] = [
        kornia.RandomResizedCrop(shape[:2], scale=area, align_corners=False, cropping_mode="resample"),
        kornia.RandomHorizontalFlip(p=ours.flip),
        # Without an order of its own kornia takes all four steps, as ours one order for the whole batch.
        jitter(ours.saturation, ours.hue) if ours.random_order else jitter(order=(0, 1)),
    ]
    if shape[2] == 3 and ours.grayscale:
        steps.append(kornia.RandomGrayscale(p=ours.grayscale))
    if ours.blur:
        # Its kernel's side is ours at both image sizes; sigma as hybrid_jax.data.augment.BLUR_SIGMA.
        steps.append(kornia.RandomGaussianBlur((3, 3), (0.1, 2.0), p=ours.blur))
    make = kornia.AugmentationSequential(*steps, data_keys=["input"], same_on_batch=False)
    images = torch.from_numpy(_images(shape)).permute(0, 3, 1, 2).contiguous()

    def call() -> object:
        with torch.no_grad():
            whole = images.float() / 255
            return make(torch.cat([whole, whole]))

    return Work(call)


def sampler(name: str, quick: bool) -> Work:
    """Returns a call of one of benchmarks/sampling.py's samplers."""
    from benchmarks import sampling
    from hybrid_jax.utils.runtime import use_all_cores

    if name == "cached":
        use_all_cores()
    return Work(getattr(sampling, name)(sampling.Sizes(side=16 if quick else 32)))


# What starts, after `python -m`.
OURS = ("hybrid_jax.main", "--config=configs/quickstart.py")
THEIRS = ("benchmarks.peers.contests",)


def start_kept(command: tuple[str, ...], quick: bool) -> Work:
    """Returns a start with the cache of compiled programs that the first call fills."""
    folder = tempfile.TemporaryDirectory()
    return Work(lambda: _start(command, folder.name))


def start_fresh(command: tuple[str, ...], quick: bool) -> Work:
    """Returns a start with an empty cache."""

    def call() -> None:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            _start(command, folder)

    return Work(call, warm_up=False)


def _start(command: tuple[str, ...], cache: str) -> None:
    """Runs a command until it says `step`; its cache is in a folder."""
    caches = {"JAX_COMPILATION_CACHE_DIR": None, "HYBRID_JAX_CACHE": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as workdir:
        more = [f"--workdir={workdir}"] if command == OURS else []
        common.run(*more, program=("-m", *command), environment=caches, until="step")


if __name__ == "__main__":
    _torch_step(_config({}, "quickstart"), ("hybrid", "gpt2", False), "--compiled" in sys.argv)[0]()
    print("step 1", flush=True)
