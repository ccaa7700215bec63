"""A train step in PyTorch as its users write it: fused AdamW, a moving average of the parameters, torch.compile.

Nothing here imports jax.

Dimensions: B batch, L images with a likelihood, N patches, Q kept patches of a view, S tokens per patch.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import swa_utils
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.torch_models import LEVELS


def batch(config) -> tuple[torch.Tensor, ...]:
    """Returns random tokens (L, N, S), ready views (2B, Q, S) and the patches they keep (2B, Q)."""
    s, size = config.model.patch_size**2, config.train.batch_size
    n = math.prod(config.data.image_size) // s
    kept = max(1, round(n * config.augment.view_keep))
    keep = torch.rand(2 * size, n).argsort(1)[:, :kept]
    tokens = torch.randint(LEVELS, (round(size * config.train.likelihood_fraction), n, s))
    return tokens, torch.randint(LEVELS, (2 * size, kept, s)), keep


def step(module: nn.Module, data: tuple[torch.Tensor, ...], config, compiled: bool) -> Callable[[], object]:
    """Returns a call of one train step: loss, gradient, clipping, AdamW and, where the config has one, the average."""
    c = config.optimizer
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=c.learning_rate, betas=(0.9, c.b2), weight_decay=c.weight_decay, fused=True
    )
    average = None
    if config.train.ema_decay:
        ema = swa_utils.get_ema_multi_avg_fn(config.train.ema_decay)
        average = swa_utils.AveragedModel(module, multi_avg_fn=ema)
    run = torch.compile(module, dynamic=False) if compiled else module

    def call() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = run(*data)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, c.clip_norm, foreach=True)
        optimizer.step()
        if average is not None:
            average.update_parameters(module)
        return loss.item()

    return call


def facts(module: nn.Module, data: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Returns the count of parameters and the operations of a gradient, as PyTorch counts them."""
    # The counter knows products, but not the kernel that fuses attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*data).backward()
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "gflop": counter.get_total_flops() / 1e9,
        "threads": torch.get_num_threads(),
    }
