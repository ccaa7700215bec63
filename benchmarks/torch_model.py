"""The hybrid model and its train step in PyTorch as its users write them, around blocks of any make.

Sizes, masks, heads and losses are those of hybrid_jax's configs, patches of values or single palette pixels; absent
branches are left out. Made for `torch.compile` and bfloat16 autocast; nothing here imports jax.

Dimensions: B batch, L images with a likelihood, N patches, Q kept patches of a view, S tokens per patch, D width, M
hidden units per token, V vocabulary.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_FEATURES, _LEAST_UNITS, _MASKED = 8, 8, -1e30
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
}


class MaskedHead(nn.Module):
    """The pixel head: a masked MLP over a patch, each token in a high and a low part."""

    def __init__(self, width: int, s: int, vocabulary: int, activation: str):
        super().__init__()
        self.activation, units = ACTIVATIONS[activation], max(_LEAST_UNITS, 2 * width // s)
        self.low_size = 2 ** math.ceil(math.log2(vocabulary) / 2)
        high_size = math.ceil(vocabulary / self.low_size)
        normal = lambda *shape: nn.Parameter(torch.randn(shape) * (s * shape[1]) ** -0.5)
        zeros = lambda *shape: nn.Parameter(torch.zeros(shape))
        self.embed, self.from_state = nn.Embedding(vocabulary, _FEATURES - 1), nn.Linear(width, s * units)
        self.from_tokens, self.hidden = normal(s, _FEATURES, s, units), normal(s, units, s, units)
        self.bias, self.given = zeros(s, units), normal(s, high_size, units)
        self.high, self.low = zeros(s, units, high_size), zeros(s, units, self.low_size)
        self.register_buffer("earlier", torch.triu(torch.ones(s, s), 1)[:, None, :, None])
        self.register_buffer("up_to", torch.triu(torch.ones(s, s))[:, None, :, None])

    def forward(self, states: torch.Tensor, tokens: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """(L, N, D), (L, N, S) int64, (L, N, S) -> () mean nats per token."""
        s, units = self.bias.shape
        rows, dtype = tokens.shape[0] * tokens.shape[1], states.dtype
        tokens, values = tokens.reshape(rows, s), values.reshape(rows, s, 1)
        seen = torch.cat([self.embed(tokens).to(dtype), values], -1).reshape(rows, -1)
        matrix = lambda kernel, mask: (kernel * mask).reshape(-1, s * units).to(dtype)
        x = self.from_state(states.reshape(rows, -1)) + seen @ matrix(self.from_tokens, self.earlier)
        x = (self.activation(x) @ matrix(self.hidden, self.up_to)).reshape(rows, s, units) + self.bias
        high, low = tokens // self.low_size, tokens % self.low_size
        given = self.given[torch.arange(s, device=tokens.device), high]
        # Logits in float32, as hybrid_jax's.
        with torch.autocast(tokens.device.type, enabled=False):
            first = _nats(_per_token(self.activation(x), self.high), high)
            return first + _nats(_per_token(self.activation(x + given), self.low), low)


def _per_token(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """(R, S, M) and a matrix (M, features) for each token -> (R, S, features), float32."""
    return torch.bmm(x.float().transpose(0, 1), kernel).transpose(0, 1)


def _nats(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens.reshape(-1))


def nt_xent(one: torch.Tensor, two: torch.Tensor, temperature: float) -> torch.Tensor:
    """(B, E), (B, E) -> () NT-Xent as the cross-entropy of all similarities but the own."""
    z = functional.normalize(torch.cat([one, two]))
    numbers = torch.arange(len(z), device=z.device)
    similarity = (z @ z.T / temperature).masked_fill(numbers[:, None] == numbers, _MASKED)
    return functional.cross_entropy(similarity, numbers.roll(len(one)))


class Hybrid(nn.Module):
    """The hybrid encoder-decoder of a config."""

    def __init__(self, config, make_stack: Callable, contrast: Callable | None = None):
        """Makes its blocks, modules of (x, causal), by `make_stack(config, depth)`; `contrast` replaces `nt_xent`."""
        super().__init__()
        model, objective, d = config.model, config.objective, config.model.width
        self.pixels = model.token_kind == "palette" and model.patch_size == 1
        self.vocabulary = model.palette_size if self.pixels else model.levels
        self.s = 1 if self.pixels else model.patch_size**2 * config.data.channels
        self.n = math.prod(config.data.image_size) // model.patch_size**2
        self.contrastive = contrast or functools.partial(nt_xent, temperature=objective.temperature)
        self.weights = objective.generative_weight, objective.contrastive_weight
        self.dtype = torch.bfloat16 if model.dtype == "bfloat16" else torch.float32
        self.activation = ACTIVATIONS[model.activation]
        self.embedding = nn.Embedding(self.vocabulary, d) if self.pixels else nn.Linear(self.s, d)
        self.positions = nn.Parameter(0.02 * torch.randn(self.n, d))
        self.encoder = make_stack(config, model.encoder_layers)
        if self.weights[1]:
            pairs = itertools.pairwise([d, *model.projection_dims])
            self.projection = nn.ModuleList([nn.Linear(a, b) for a, b in pairs])
        if self.weights[0]:
            self.start, self.after = (nn.Parameter(0.02 * torch.randn(k, d)) for k in (1, self.n))
            self.skip, self.decoder = nn.Linear(d, d, bias=False), make_stack(config, model.decoder_layers)
            head = nn.Linear(d, self.vocabulary, bias=False)
            self.head = head if self.pixels else MaskedHead(d, self.s, self.vocabulary, model.activation)

    def _embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, Q, S) -> (B, Q, D)."""
        if self.pixels:
            return self.embedding(tokens[..., 0]).to(self.dtype)
        return self.embedding(self._values(tokens)).to(self.dtype)

    def _values(self, tokens: torch.Tensor) -> torch.Tensor:
        return (tokens * (2 / (self.vocabulary - 1)) - 1).to(self.dtype)

    def contrast(self, views: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """(2B, Q, S) tokens of both views, (2B, Q) which patches -> () NT-Xent."""
        x = self.encoder(self._embedded(views) + self.positions[keep].to(self.dtype), False)
        x = x.float().mean(1).to(self.dtype)
        for i, layer in enumerate(self.projection):
            x = layer(self.activation(x) if i else x)
        with torch.autocast(x.device.type, enabled=False):
            return self.contrastive(*x.float().chunk(2))

    def nll(self, tokens: torch.Tensor) -> torch.Tensor:
        """(L, N, S) tokens -> () mean nats per token."""
        embedded = self._embedded(tokens)
        encoded = self.encoder(embedded + self.positions.to(self.dtype), True)
        after = (encoded + self.skip(embedded))[:, :-1]
        inputs = torch.cat([self.start.to(after.dtype).expand(len(tokens), 1, -1), after], 1)
        states = self.decoder(inputs + self.after.to(self.dtype), True)
        if not self.pixels:
            return self.head(states, tokens, self._values(tokens))
        with torch.autocast(states.device.type, enabled=False):
            return _nats(functional.linear(states.float(), self.head.weight), tokens)

    def forward(self, tokens: torch.Tensor, views: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """The weighted sum of both losses."""
        loss = torch.zeros((), device=tokens.device)
        if self.weights[0]:
            loss = loss + self.weights[0] * self.nll(tokens)
        if self.weights[1]:
            loss = loss + self.weights[1] * self.contrast(views, keep)
        return loss


def random_batch(config, model: Hybrid, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """Returns random tokens (L, N, S), ready views (2B, Q, S) and the patches they keep (2B, Q)."""
    size = config.train.batch_size
    kept = max(1, round(model.n * config.augment.view_keep))
    keep = torch.rand(2 * size, model.n, device=device).argsort(1)[:, :kept].sort(1)[0]
    draw = lambda *shape: torch.randint(model.vocabulary, shape, device=device)
    return draw(round(size * config.train.likelihood_fraction), model.n, model.s), draw(2 * size, kept, model.s), keep


def make_step(
    model: nn.Module, batches: Sequence[tuple[torch.Tensor, ...]], config, device: str = "cpu", mode: str = "default"
) -> Callable[[], torch.Tensor]:
    """Returns a call of one train step on the next of the batches, which returns the loss.

    The step: loss, gradient, clipping, fused AdamW and, where the config has one, the average of the parameters. `mode`
    is torch.compile's, or `eager`.
    """
    c, parameters = config.optimizer, list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=c.learning_rate, betas=(0.9, c.b2), weight_decay=c.weight_decay, fused=True
    )
    average = [p.detach().clone() for p in parameters] if config.train.ema_decay else []
    options: dict[str, Any] = {} if mode == "default" else {"mode": mode}
    run = model if mode == "eager" else torch.compile(model, dynamic=False, **options)
    half, turns = config.model.dtype == "bfloat16", itertools.cycle(batches)

    def step() -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            loss = run(*next(turns))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, c.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average:
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - config.train.ema_decay)
        return loss.detach()

    return step
