"""The hybrid on ImageNet at 32x32 with one token per pixel and the size of Image GPT-S: 24 blocks of width 512.

python -m hybrid_jax.main --config=configs/imagenet32_igpt_s.py --workdir=runs/imagenet32_igpt_s

Data: the tfds set `downsampled_imagenet/32x32`, prepared once by
`python -m hybrid_jax.data.prepare downsampled_imagenet/32x32`. It has no labels, so the evaluators that need them are
skipped. The palette of 512 colours is k-means on these images, not Image GPT's (Chen et al. 2020), whose 24 blocks are
split here into an encoder and a decoder.
Hardware: a TPU v5e pod (16x16).
Compiled ahead of time (--mode=compile --topology=v5e:16x16; jax 0.10.2, libtpu 0.0.42.1): 78,671,488 parameters,
4.57e14 analytical FLOPs a step, 1.6 of 15.75 GiB a device; model estimate .012 to .022 s a step. v5e:8x8: 2.3 GiB,
.048 to .080 s, bound by compute (with model.attention='plain' 2.6 GiB, .064 to .115 s, bound by memory: the attention
scores of 1,024 positions are written out). No all-to-all in either.
Result: not run; speed: not run.
"""

from hybrid_jax.config import default_config


def get_config():
    """Returns the config."""
    config = default_config()
    config.data.name = "downsampled_imagenet/32x32"
    config.data.image_size = (32, 32)
    config.data.channels = 3
    config.data.test_split = "validation"
    config.model.patch_size = 1
    config.model.token_kind = "palette"
    config.model.palette_size = 512
    config.model.width = 512
    config.model.num_heads = 8
    config.model.encoder_layers = 12
    config.model.decoder_layers = 12
    config.model.activation = "quick_gelu"
    config.model.projection_dims = (2048, 128)
    config.model.dtype = "bfloat16"
    config.model.scan_layers = True
    config.model.remat = True
    config.augment.recipe = "simclr_cifar"
    config.train.total_steps = 500_000
    config.train.batch_size = 512
    config.train.ema_decay = 0.9999
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 10_000
    config.checkpoint.every_steps = 2_000
    config.log.every_steps = 100
    config.eval.every_steps = 50_000
    config.eval.evaluators = ("likelihood",)
    return config
