"""The same steps in PyTorch: torch.compile, bfloat16 autocast, scaled_dot_product_attention, fused AdamW.

python -m benchmarks.gpu.torch_peer [--tiny] [--cases=cifar10/hybrid,cifar10/hybrid@eager]

`@MODE` is torch.compile's mode, or `eager`. Kept patches, clipping and the moving average are those of the configs;
views come ready, where hybrid_jax's step draws and augments them. Nothing here imports jax.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.gpu.cases import config_of
from benchmarks.gpu.record import Entry, Record, stage_flags
from benchmarks.torch_model import ACTIVATIONS, Hybrid, make_step, random_batch

CASES = (
    "cifar10/hybrid@eager,cifar10/hybrid,fashion_mnist/hybrid@reduce-overhead,cifar10/generative,cifar10/contrastive,"
    "cifar10_256/hybrid,fashion_mnist/hybrid,imagenet32_igpt_s/hybrid"
)
_TINY_CASES = "fashion_mnist/hybrid@eager"
_BATCHES, _GROUPS, _WARM_UP, _AT_MOST = 3, 5, 4, 300


class Block(nn.Module):
    """Attention and an MLP, each after a norm and added to its input."""

    def __init__(self, width: int, heads: int, activation: str):
        super().__init__()
        self.heads, self.activation = heads, ACTIVATIONS[activation]
        self.norm1, self.norm2 = (nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5))
        self.qkv, self.out = (nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False))
        self.up, self.down = (nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False))

    def forward(self, x: torch.Tensor, causal: bool) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)."""
        b, n, d = x.shape
        qkv = self.qkv(self.norm1(x).to(x.dtype)).view(b, n, 3, self.heads, d // self.heads)
        mixed = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), is_causal=causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, n, d))
        return x + self.down(self.activation(self.up(self.norm2(x).to(x.dtype))))


class Stack(nn.Module):
    """Blocks with a final norm."""

    def __init__(self, config, depth: int):
        super().__init__()
        m = config.model
        self.blocks = nn.ModuleList([Block(m.width, m.num_heads, m.activation) for _ in range(depth)])
        self.norm = nn.RMSNorm(m.width, eps=1e-5)

    def forward(self, x: torch.Tensor, causal: bool) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)."""
        for block in self.blocks:
            x = block(x, causal)
        return self.norm(x).to(x.dtype)


def main() -> None:
    """Times the cases one after another."""
    given = stage_flags(__doc__ or "", "cases")
    device = "cpu" if given.tiny else "cuda"
    # TF32, as XLA's default for float32 products.
    torch.set_float32_matmul_precision("high")
    record = Record("torch_peer", given.tiny)
    for case in (given.cases or (_TINY_CASES if given.tiny else CASES)).split(","):
        record.add(case, functools.partial(measure, case, device, given.tiny))
        if not record.has(case):
            # The compiler may lack what the rest of PyTorch does not need, such as a C compiler.
            eager = case.partition("@")[0] + "@eager"
            record.add(eager, functools.partial(measure, eager, device, given.tiny))


def measure(case: str, device: str, tiny: bool) -> Entry:
    """Returns `ms`, `range_ms`, `batch`, `images_per_s`, `first_call_s`, `parameters`, `loss`, `peak_gib`, `mode`."""
    name, _, mode = case.partition("@")
    config = config_of(name, tiny)
    torch._dynamo.reset()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    model = Hybrid(config, Stack).to(device)
    batches = [random_batch(config, model, device) for _ in range(_BATCHES)]
    step = make_step(model, batches, config, device, mode or "default")
    wait: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else lambda: None

    def group(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        return (time.perf_counter() - begin) / count

    first = group(1)
    group(_WARM_UP)
    count = max(2, min(_AT_MOST, int((0.3 if tiny else 1.5) / _GROUPS / group(3))))
    spent = [group(count) for _ in range(_GROUPS)]
    median, batch = statistics.median(spent), config.train.batch_size
    return {
        "ms": 1e3 * median,
        "range_ms": [1e3 * min(spent), 1e3 * max(spent)],
        "batch": batch,
        "images_per_s": batch / median,
        "first_call_s": first,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": float(step().detach()),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0,
        "mode": mode or "default",
    }


if __name__ == "__main__":
    main()
