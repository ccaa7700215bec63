"""What a user of PyTorch would write for the same model: Hugging Face's blocks, pytorch-metric-learning's loss.

Sizes, masks and heads are those of hybrid_jax's model; what the parts do not share is bias vectors and the
kind of norm. Nothing here imports jax.

Dimensions: B batch, L images with a likelihood, N patches, Q kept patches of a view, S tokens per patch, D width, M
hidden units per token.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

LEVELS, _FEATURES = 256, 8
_FACTOR = math.isqrt(LEVELS)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the PyTorch model is made of.

    Attributes:
      blocks: `imagegpt` as Hugging Face ships it, or `gpt2` or `vit` with `scaled_dot_product_attention`.
      library_loss: NT-Xent of pytorch-metric-learning; else as one cross-entropy over the similarities.
    """

    blocks: str
    library_loss: bool


def _imagegpt(width: int, heads: int, positions: int, depth: int) -> tuple[nn.ModuleList, nn.Module]:
    from transformers import ImageGPTConfig
    from transformers.models.imagegpt.modeling_imagegpt import ImageGPTBlock, ImageGPTLayerNorm

    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = ImageGPTConfig(
        n_embd=width, n_head=heads, n_positions=positions, activation_function="gelu_new", vocab_size=2, **none
    )
    blocks = nn.ModuleList([ImageGPTBlock(config, layer_idx=i) for i in range(depth)])
    final = ImageGPTLayerNorm(width)
    for norm in [final, *(part for block in blocks for part in (block.ln_1, block.ln_2))]:
        # Left as the memory was, outside of Hugging Face's whole model.
        nn.init.ones_(norm.weight)
    return blocks, final


def _gpt2(width: int, heads: int, positions: int, depth: int) -> tuple[nn.ModuleList, nn.Module]:
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(n_embd=width, n_head=heads, n_positions=positions, attn_implementation="sdpa", **none)
    return nn.ModuleList([GPT2Block(config, layer_idx=i) for i in range(depth)]), nn.LayerNorm(width)


def _vit(width: int, heads: int, positions: int, depth: int) -> tuple[nn.ModuleList, nn.Module]:
    from transformers import ViTConfig
    from transformers.models.vit.modeling_vit import ViTLayer

    config = ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_act="gelu_new",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    return nn.ModuleList([ViTLayer(config) for _ in range(depth)]), nn.LayerNorm(width)


_STACKS = {"imagegpt": _imagegpt, "gpt2": _gpt2, "vit": _vit}


class Stack(nn.Module):
    """Blocks of Hugging Face with a final norm, under either mask."""

    def __init__(self, kind: str, width: int, heads: int, positions: int, depth: int):
        super().__init__()
        self.kind = kind
        self.blocks, self.norm = _STACKS[kind](width, heads, positions, depth)

    def forward(self, x: torch.Tensor, causal: bool) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)."""
        for block in self.blocks:
            if self.kind == "imagegpt":
                # All that this switches after construction is the causal mask.
                block.attn.is_cross_attention = not causal
                x = block(x)[0]
            elif self.kind == "gpt2":
                x = block(x, is_causal=causal)
            else:
                x = block(x)
        return self.norm(x)


class MaskedHead(nn.Module):
    """The pixel head: a masked MLP over the patch, its tokens in a high and a low part of 4 bits each."""

    def __init__(self, width: int, s: int):
        super().__init__()
        units = max(8, 2 * width // s)
        normal = lambda *shape: nn.Parameter(torch.randn(shape) * (s * shape[1]) ** -0.5)
        zeros = lambda *shape: nn.Parameter(torch.zeros(shape))
        self.embed = nn.Embedding(LEVELS, _FEATURES - 1)
        self.from_state = nn.Linear(width, s * units)
        self.from_tokens, self.hidden = normal(s, _FEATURES, s, units), normal(s, units, s, units)
        self.bias, self.given = zeros(s, units), normal(s, _FACTOR, units)
        self.high, self.low = zeros(s, units, _FACTOR), zeros(s, units, _FACTOR)
        self.register_buffer("earlier", torch.triu(torch.ones(s, s), 1)[:, None, :, None])
        self.register_buffer("up_to", torch.triu(torch.ones(s, s))[:, None, :, None])

    def forward(self, states: torch.Tensor, tokens: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """(L, N, D), (L, N, S) int64, (L, N, S) -> () mean nats per token."""
        s, units = self.bias.shape
        rows, act = tokens.shape[0] * tokens.shape[1], lambda x: functional.gelu(x, approximate="tanh")
        tokens, values = tokens.reshape(rows, s), values.reshape(rows, s, 1)
        seen = torch.cat([self.embed(tokens), values], -1).reshape(rows, -1)
        x = self.from_state(states.reshape(rows, -1)) + seen @ (self.from_tokens * self.earlier).reshape(-1, s * units)
        x = (act(x) @ (self.hidden * self.up_to).reshape(-1, s * units)).reshape(rows, s, units) + self.bias
        high, low = tokens // _FACTOR, tokens % _FACTOR
        given = self.given[torch.arange(s), high]
        logits = _per_token(act(x), self.high), _per_token(act(x + given), self.low)
        nll = lambda scores, parts: functional.cross_entropy(scores.reshape(-1, _FACTOR), parts.reshape(-1))
        return nll(logits[0], high) + nll(logits[1], low)


def _per_token(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """(R, S, M) and a matrix (M, features) for each token -> (R, S, features)."""
    return torch.bmm(x.transpose(0, 1), kernel).transpose(0, 1)


class Hybrid(nn.Module):
    """The hybrid encoder-decoder of a config of patches of grey pixels; absent branches are left out."""

    def __init__(self, config, kind: Kind):
        super().__init__()
        model, objective = config.model, config.objective
        assert model.patch_size > 1 and config.data.channels == 1 and model.levels == LEVELS
        s, d = model.patch_size**2, model.width
        n = math.prod(config.data.image_size) // s
        self.temperature = objective.temperature
        self.weights = objective.generative_weight, objective.contrastive_weight
        self.embedding, self.positions = nn.Linear(s, d), nn.Parameter(0.02 * torch.randn(n, d))
        self.encoder = Stack(kind.blocks, d, model.num_heads, n, model.encoder_layers)
        if self.weights[1]:
            dims = [d, *model.projection_dims]
            layers = [nn.Linear(a, b) for a, b in itertools.pairwise(dims)]
            self.projection = nn.Sequential(layers[0], nn.GELU(approximate="tanh"), layers[1])
            self.contrast = _library_nt_xent(self.temperature) if kind.library_loss else self._nt_xent
        if self.weights[0]:
            self.start, self.after = (nn.Parameter(0.02 * torch.randn(k, d)) for k in (1, n))
            self.skip = nn.Linear(d, d, bias=False)
            self.decoder = Stack(kind.blocks, d, model.num_heads, n, model.decoder_layers)
            self.head = MaskedHead(d, s)

    def _nt_xent(self, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        z = functional.normalize(torch.cat([one, two]))
        similarity = (z @ z.T / self.temperature).fill_diagonal_(-math.inf)
        return functional.cross_entropy(similarity, torch.arange(len(z)).roll(len(one)))

    def embed(self, views: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """(2B, Q, S) tokens of both views, (2B, Q) which patches -> (2B, E)."""
        x = self.embedding(_values(views)) + self.positions[keep]
        return self.projection(self.encoder(x, causal=False).mean(1))

    def nll(self, tokens: torch.Tensor) -> torch.Tensor:
        """(L, N, S) tokens -> () mean nats per token."""
        values = _values(tokens)
        embedded = self.embedding(values)
        encoded = self.encoder(embedded + self.positions, causal=True)
        after = (encoded + self.skip(embedded))[:, :-1]
        inputs = torch.cat([self.start.expand(len(tokens), 1, -1), after], 1)
        return self.head(self.decoder(inputs + self.after, causal=True), tokens, values)

    def forward(self, tokens: torch.Tensor, views: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """The weighted sum of both losses."""
        loss = torch.zeros(())
        if self.weights[0]:
            loss = loss + self.weights[0] * self.nll(tokens)
        if self.weights[1]:
            loss = loss + self.weights[1] * self.contrast(*self.embed(views, keep).chunk(2))
        return loss


def _values(tokens: torch.Tensor) -> torch.Tensor:
    return tokens * (2 / (LEVELS - 1)) - 1


def _library_nt_xent(temperature: float) -> Callable:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    # Its indices depend on the data: the compiler would only warn and stop there by itself.
    loss = SelfSupervisedLoss(NTXentLoss(temperature))
    return torch.compiler.disable(lambda one, two: loss(one, two))


def image_gpt(config, blocks: str) -> nn.Module:
    """Returns Hugging Face's whole model of an Image GPT config; its first colour after the last is the start."""
    from transformers import GPT2Config, GPT2LMHeadModel, ImageGPTConfig, ImageGPTForCausalImageModeling

    model = config.model
    sizes = {
        "n_embd": model.width, "n_layer": model.decoder_layers, "n_head": model.num_heads,
        "n_positions": math.prod(config.data.image_size), "vocab_size": model.palette_size + 1, "use_cache": False,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "tie_word_embeddings": False,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if blocks == "gpt2":
        return GPT2LMHeadModel(GPT2Config(activation_function="quick_gelu", attn_implementation="sdpa", **sizes))
    return ImageGPTForCausalImageModeling(ImageGPTConfig(**sizes))


class NextColour(nn.Module):
    """The likelihood of an Image GPT of Hugging Face's."""

    def __init__(self, config, blocks: str):
        super().__init__()
        self.model, self.start = image_gpt(config, blocks), config.model.palette_size

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N) colours -> () mean nats per token."""
        inputs = functional.pad(tokens[:, :-1], (1, 0), value=self.start)
        logits = self.model(input_ids=inputs).logits
        return functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
