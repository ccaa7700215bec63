"""Contests over parts of the work: NT-Xent alone, two augmented views, sampling.

Held by `python -m benchmarks.peers --only=d,e,f`. Peers come with the extras `[oracle]` and `[peers]`.
"""

import functools
import resource
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.contest import Call, Contest, Factory

# The width of SimCLR's projection, and the temperature of its best results.
DIM, TEMPERATURE = 128, 0.1
LOSS_BATCHES, VIEW_BATCH = (256, 1024, 4096, 16384), 256
# A contender that needs more is not run: several wait in memory at a time.
MOST_GIB = 16
# kornia's kernel side of the blur, ours at both image sizes; sigma as hybrid_jax.data.augment.BLUR_SIGMA.
_BLUR_SIDE, _BLUR_SIGMA = 3, (0.1, 2.0)


def contests() -> list[Contest]:
    """Returns the contests d, e and f."""
    return [
        *[_loss_contest(batch) for batch in LOSS_BATCHES],
        _view_contest("grey_small", (28, 28, 1)),
        _view_contest("simclr_cifar", (32, 32, 3)),
        Contest(
            "f", "sampling 1,024 tokens (--quick: 256), 512 colours, width 128, 8 layers, batch 16", "batch", 3.0,
            {"hybrid_jax, cached, a device a core": _our_sampling, "Hugging Face generate, cached": _their_sampling},
        ),
    ]  # fmt: skip


def _loss_contest(batch: int) -> Contest:
    """NT-Xent of `batch` images, forward and backward."""
    contenders: dict[str, Factory] = {
        "hybrid_jax": lambda quick: our_loss(batch),
        "optax, jitted": lambda quick: optax_loss(batch),
        "pytorch-metric-learning": lambda quick: metric_learning_loss(batch, compiled=False),
        "pytorch-metric-learning, torch.compile": lambda quick: metric_learning_loss(batch, compiled=True),
        "torch, cross entropy written by hand": lambda quick: torch_loss(batch, compiled=False),
        "torch, the same with torch.compile": lambda quick: torch_loss(batch, compiled=True),
    }
    # The goal of 5 is for 4,096; elsewhere a peer shall not be faster.
    what = f"NT-Xent with gradient, B = {batch:,}, D = {DIM}"
    return Contest("d", what, "loss", 5.0 if batch == 4096 else 1.0, contenders, only_full=batch in (1024, 16384))


def _embeddings(batch: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(batch, DIM)).astype(np.float32) for _ in range(2)]


def our_loss(batch: int) -> Call:
    """Returns a call of our loss and its gradient, with the block size that the train step gets: the default."""
    import jax.numpy as jnp

    from hybrid_jax import losses

    return _jax_loss(batch, lambda z1, z2: jnp.mean(losses.nt_xent(z1, z2, TEMPERATURE)))


def optax_loss(batch: int) -> Call:
    """Returns a call of optax's loss and its gradient."""
    import jax.numpy as jnp
    import optax

    labels = jnp.tile(jnp.arange(batch), 2)
    return _jax_loss(batch, lambda z1, z2: optax.losses.ntxent(jnp.concatenate([z1, z2]), labels, TEMPERATURE))


def _jax_loss(batch: int, loss: Callable[..., Any]) -> Call:
    import jax

    z1, z2 = jax.device_put(_embeddings(batch))
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(z1, z2).compile()
    _refuse(compiled.memory_analysis().temp_size_in_bytes)
    return lambda: jax.block_until_ready(compiled(z1, z2))


def metric_learning_loss(batch: int, compiled: bool) -> Call:
    """Returns a call of pytorch-metric-learning's loss and its gradient."""
    _refuse(metric_learning_bytes(batch))
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return _torch_call(batch, SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE)), compiled)


def metric_learning_bytes(batch: int) -> int:
    """Returns the bytes of what NTXentLoss holds at once at the very least.

    It compares each positive pair, 2B of them, with each negative pair, 2B(2B - 2): as booleans, then as float32.
    """
    return (1 + 4) * 2 * batch * 2 * batch * (2 * batch - 2)


def torch_loss(batch: int, compiled: bool) -> Call:
    """Returns a call of the loss as most PyTorch code has it: the cross entropy of all similarities but the own."""
    import torch
    from torch.nn import functional

    own, positive = torch.arange(2 * batch), torch.arange(2 * batch).roll(batch)

    def loss(z1, z2):
        z = functional.normalize(torch.cat([z1, z2]))
        similarity = (z @ z.T / TEMPERATURE).masked_fill(own[:, None] == own, -torch.inf)
        return functional.cross_entropy(similarity, positive)

    return _torch_call(batch, loss, compiled)


def _torch_call(batch: int, loss: Callable[..., Any], compiled: bool) -> Call:
    """Returns a call of `loss` and its gradient, under the limit of memory."""
    import torch

    limit = MOST_GIB * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pair = [torch.from_numpy(z).requires_grad_() for z in _embeddings(batch)]
    function = torch.compile(loss) if compiled else loss

    def call() -> object:
        try:
            return torch.autograd.grad(function(*pair), pair)
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            raise MemoryError(f"needs more than {MOST_GIB} GiB") from None

    return call


def _refuse(needed: int) -> None:
    """Raises MemoryError if `needed` bytes are beyond the limit."""
    if needed > MOST_GIB * 2**30:
        raise MemoryError(f"needs more than {MOST_GIB} GiB: at least {needed / 2**30:,.0f}")


def _view_contest(recipe: str, shape: tuple[int, int, int]) -> Contest:
    """Two views of each image of a batch."""
    sides = "x".join(map(str, shape))
    return Contest(
        "e", f"two views `{recipe}` of {VIEW_BATCH} images, {sides}", "batch", 3.0,
        {
            "hybrid_jax": lambda quick: our_views(recipe, shape),
            "kornia": lambda quick: kornia_views(recipe, shape),
        },
    )  # fmt: skip


def _images(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (VIEW_BATCH, *shape), dtype=np.uint8)


def our_views(recipe: str, shape: tuple[int, int, int]) -> Call:
    """Returns a call that makes two views on the 0..255 scale, jitted, with a key of its own each time."""
    import jax

    from hybrid_jax.data import augment

    recipes, images, count = augment.RECIPES[recipe], jax.device_put(_images(shape)), iter(range(2**31))

    @jax.jit
    def views(number, images):
        key = jax.random.fold_in(jax.random.key(0), number)
        return [augment.augment(jax.random.fold_in(key, i), images, r) for i, r in enumerate(recipes)]

    return lambda: jax.block_until_ready(views(next(count), images))


def kornia_views(recipe: str, shape: tuple[int, int, int]) -> Call:
    """Returns a call that makes two views on the 0..1 scale, in one pass over a batch that holds each image twice."""
    import torch

    steps = kornia_steps(recipe, shape)
    images = torch.from_numpy(_images(shape)).permute(0, 3, 1, 2).contiguous()

    def call() -> object:
        with torch.no_grad():
            whole = images.float() / 255
            return steps(torch.cat([whole, whole]))

    return call


def kornia_steps(recipe: str, shape: tuple[int, int, int]) -> Callable[..., Any]:
    """Returns kornia's form of one of our recipes, its strengths read from ours."""
    import kornia.augmentation as kornia

    from hybrid_jax.data.augment import RECIPES

    ours, colour = RECIPES[recipe][0], shape[2] == 3
    jitter = functools.partial(kornia.ColorJitter, ours.brightness, ours.contrast, p=ours.jitter_probability)
    steps = [
        kornia.RandomResizedCrop(
            shape[:2], scale=(ours.crop_min_area, 1.0), align_corners=False, cropping_mode="resample"
        ),
        kornia.RandomHorizontalFlip(p=ours.flip),
        # Without an order of its own kornia takes all four steps, as ours one order for the whole batch.
        jitter(ours.saturation, ours.hue) if ours.random_order else jitter(order=(0, 1)),
    ]
    if colour and ours.grayscale:
        steps.append(kornia.RandomGrayscale(p=ours.grayscale))
    if ours.blur:
        steps.append(kornia.RandomGaussianBlur((_BLUR_SIDE, _BLUR_SIDE), _BLUR_SIGMA, p=ours.blur))
    return kornia.AugmentationSequential(*steps, data_keys=["input"], same_on_batch=False)


def _sampling_sizes(quick: bool):
    """Sets the sizes of benchmarks/sampling.py and returns the module."""
    from absl import flags

    from benchmarks import sampling

    flags.FLAGS(["sampling", f"--side={16 if quick else 32}"])
    return sampling


def _our_sampling(quick: bool) -> Call:
    from hybrid_jax.utils.runtime import use_all_cores

    use_all_cores()
    return _sampling_sizes(quick).cached()


def _their_sampling(quick: bool) -> Call:
    return _sampling_sizes(quick).hugging_face()
