"""What the mathematics of a train step requires: operations, and bytes that must be held at once.

The exponents that `benchmarks.growth` fits are compared with those of these counts at the same sizes. Dimensions: B
images, L of them in the likelihood, N patches, Q kept by a view, S tokens per patch, D width, H heads.
"""

import dataclasses
import math

import jax

from hybrid_jax import train_state
from hybrid_jax.config import likelihood_batch
from hybrid_jax.models import flops
from hybrid_jax.models.heads import factor_sizes, hidden_units
from hybrid_jax.models.tokens import TokenSpec

FLOAT = 4  # bytes
NEWTON_SCHULZ_STEPS = 5
NT_XENT_DIM = 64
# Forward, again in the backward pass, and the gradients of both factors.
NT_XENT_PRODUCTS = 4


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one step.

    Attributes:
      operations: a multiply-add is two.
      arguments: bytes of state and images on one device.
      temporaries: bytes of gradients and of what the backward pass reads again, on one device.
    """

    operations: float
    arguments: float
    temporaries: float


def step(config, devices: int) -> Counts:
    """Counts a train step of a resolved config whose batch is cut over `devices`, each with the whole state."""
    state = train_state.abstract_state(config)
    pixels = math.prod(config.data.image_size) * config.data.channels
    return Counts(
        flops.total(config) + orthogonalisation(config),
        _bytes(state) + config.train.batch_size * pixels / devices,
        _bytes(state.params) + kept(config) / devices,
    )


def orthogonalisation(config) -> float:
    """Returns the operations of Muon's Newton-Schulz iterations, which flops.py leaves out.

    Each of them takes an m x n matrix, m <= n, through two products of 2 m^2 n operations and one of 2 m^3. A block
    has matrices of D x 3D, D x D and twice D x 4D.
    """
    if config.optimizer.name != "muon":
        return 0.0
    model = config.model
    iteration = sum(4 * ratio + 2 for ratio in (3, 1, 4, 4)) * model.width**3
    return float(NEWTON_SCHULZ_STEPS * iteration * (model.encoder_layers + model.decoder_layers))


def kept(config) -> float:
    """Returns the bytes that the forward pass of a whole batch leaves for the backward pass.

    A block keeps 14 D + H N numbers a position: the inputs of its two norms, query, key and value, what attention
    gives, and 4 D twice around the activation; and a row of attention's weights for each head, whole under the causal
    mask too, which leaves half of it.
    """
    model, spec, batch = config.model, TokenSpec.from_config(config), config.train.batch_size
    n, s = spec.num_patches, spec.tokens_per_patch
    views = max(1, round(config.augment.view_keep * n))
    numbers = 2 * batch * views * model.encoder_layers * _block(model, views)
    images = likelihood_batch(config)
    numbers += images * n * (model.encoder_layers + model.decoder_layers) * _block(model, n)
    head = (
        spec.vocab_size if s == 1 else s * (3 * hidden_units(model.width, s) + 2 * sum(factor_sizes(spec.vocab_size)))
    )
    return float(FLOAT * (numbers + images * n * head)) + nt_xent(batch, None).temporaries


def _block(model, positions: int) -> int:
    return 14 * model.width + model.num_heads * positions


def nt_xent(batch: int, block_size: int | None) -> Counts:
    """Counts NT-Xent and its gradient; one block's similarities are held, as `losses.nt_xent` chooses its size."""
    rows = 2 * batch
    block = min(block_size or max(1, 2**23 // rows), rows)
    embeddings = float(FLOAT * rows * NT_XENT_DIM)
    operations = float(NT_XENT_PRODUCTS * 2 * rows**2 * NT_XENT_DIM)
    return Counts(operations, embeddings, 2 * embeddings + FLOAT * block * rows)


def _bytes(tree) -> float:
    return float(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)))
