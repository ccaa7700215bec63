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

from benchmarks.gpu.cases import config_of
from benchmarks.gpu.record import Entry, Record, stage_flags
from benchmarks.gpu.torch_models import Hybrid

CASES = (
    "cifar10/hybrid@eager,cifar10/hybrid,fashion_mnist/hybrid@reduce-overhead,cifar10/generative,cifar10/contrastive,"
    "cifar10_256/hybrid,fashion_mnist/hybrid,imagenet32_igpt_s/hybrid"
)
_TINY_CASES = "fashion_mnist/hybrid@eager"
_BATCHES, _GROUPS, _WARM_UP, _AT_MOST = 3, 5, 4, 300


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
    model = Hybrid(config).to(device)
    step = make_step(model, config, device, mode or "default")
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


def make_step(model: Hybrid, config, device: str, mode: str) -> Callable[[], torch.Tensor]:
    """Returns a call of one train step on the next of a few batches; it returns the loss."""
    c, parameters = config.optimizer, list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=c.learning_rate, betas=(0.9, c.b2), weight_decay=c.weight_decay, fused=True
    )
    average = [p.detach().clone() for p in parameters] if config.train.ema_decay else []
    batches = [random_batch(config, model, device) for _ in range(_BATCHES)]
    options: dict[str, Any] = {} if mode == "default" else {"mode": mode}
    run = model if mode == "eager" else torch.compile(model, dynamic=False, **options)
    half, done = model.dtype == torch.bfloat16, 0

    def step() -> torch.Tensor:
        nonlocal done
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            loss = run(*batches[done % _BATCHES])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, c.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average:
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - config.train.ema_decay)
        done += 1
        return loss

    return step


def random_batch(config, model: Hybrid, device: str) -> tuple[torch.Tensor, ...]:
    """Returns random tokens (L, N, S), ready views (2B, Q, S) and the patches they keep (2B, Q)."""
    size = config.train.batch_size
    kept = max(1, round(model.n * config.augment.view_keep))
    keep = torch.rand(2 * size, model.n, device=device).argsort(1)[:, :kept].sort(1)[0]
    draw = lambda *shape: torch.randint(model.vocabulary, shape, device=device)
    return draw(round(size * config.train.likelihood_fraction), model.n, model.s), draw(2 * size, kept, model.s), keep


if __name__ == "__main__":
    main()
