"""What a user of PyTorch would write for the same model: Hugging Face's blocks, pytorch-metric-learning's loss.

What these parts do not share with hybrid_jax's model is bias vectors and the kind of norm. Nothing here imports jax.

Dimensions: B batch, N patches or colours, D width.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import torch_model

_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


class Stack(nn.Module):
    """Hugging Face's blocks with a final norm, under either mask: `imagegpt` as it ships, `gpt2` or `vit` with sdpa."""

    def __init__(self, kind: str, config, depth: int):
        super().__init__()
        width, heads = config.model.width, config.model.num_heads
        positions = math.prod(config.data.image_size) // config.model.patch_size**2
        self.kind, self.norm = kind, nn.LayerNorm(width)
        sizes = {"n_embd": width, "n_head": heads, "n_positions": positions} | _NO_DROPOUT
        if kind == "imagegpt":
            from transformers import ImageGPTConfig
            from transformers.models.imagegpt.modeling_imagegpt import ImageGPTBlock, ImageGPTLayerNorm

            settings = ImageGPTConfig(activation_function="gelu_new", vocab_size=2, **sizes)
            make, self.norm = functools.partial(ImageGPTBlock, settings), ImageGPTLayerNorm(width)
        elif kind == "gpt2":
            from transformers import GPT2Config
            from transformers.models.gpt2.modeling_gpt2 import GPT2Block

            make = functools.partial(GPT2Block, GPT2Config(attn_implementation="sdpa", **sizes))
        else:
            from transformers import ViTConfig
            from transformers.models.vit.modeling_vit import ViTLayer

            settings = ViTConfig(
                hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, hidden_act="gelu_new",
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
            )  # fmt: skip
            make = lambda layer_idx: ViTLayer(settings)
        self.blocks = nn.ModuleList([make(layer_idx=i) for i in range(depth)])
        for part in self.modules():
            if type(part).__name__ == "ImageGPTLayerNorm":
                # Left as the memory was, outside of Hugging Face's whole model.
                nn.init.ones_(part.weight)

    def forward(self, x: torch.Tensor, causal: bool) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)."""
        for block in self.blocks:
            if self.kind == "imagegpt":
                # All that this switches after construction is the causal mask.
                block.attn.is_cross_attention = not causal
                x = block(x)[0]
            else:
                x = block(x, is_causal=causal) if self.kind == "gpt2" else block(x)
        return self.norm(x)


def library_nt_xent(temperature: float) -> Callable:
    """Returns pytorch-metric-learning's NT-Xent of two (B, E) embeddings."""
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(temperature=temperature))


def hybrid(config, blocks: str, library_loss: bool) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Returns the hybrid model of these blocks, and its inputs."""
    contrast = None
    if library_loss:
        loss = library_nt_xent(config.objective.temperature)
        # Its indices depend on the data: the compiler would only warn and stop there by itself.
        contrast = torch.compiler.disable(lambda one, two: loss(one, two))
    model = torch_model.Hybrid(config, functools.partial(Stack, blocks), contrast)
    return model, torch_model.random_batch(config, model)


def image_gpt(config, blocks: str) -> nn.Module:
    """Returns Hugging Face's whole model of an Image GPT config; its first colour after the last is the start."""
    from transformers import GPT2Config, GPT2LMHeadModel, ImageGPTConfig, ImageGPTForCausalImageModeling

    model = config.model
    sizes = {
        "n_embd": model.width, "n_layer": model.decoder_layers, "n_head": model.num_heads,
        "n_positions": math.prod(config.data.image_size), "vocab_size": model.palette_size + 1, "use_cache": False,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, **_NO_DROPOUT,
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
        return functional.cross_entropy(self.model(input_ids=inputs).logits.flatten(0, 1), tokens.flatten())


def next_colour(config, blocks: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Returns the model, and its inputs."""
    shape = (config.train.batch_size, math.prod(config.data.image_size))
    return NextColour(config, blocks), (torch.randint(config.model.palette_size, shape),)


def facts(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Returns the count of parameters and the operations of a gradient, as PyTorch counts them."""
    # The counter knows products, but not the kernel that fuses attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs).backward()
    return {"parameters": sum(p.numel() for p in module.parameters()), "gflop": counter.get_total_flops() / 1e9}
