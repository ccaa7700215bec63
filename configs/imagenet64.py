"""The hybrid on ImageNet at 64x64, for a TPU pod slice.

python -m hybrid_jax.main --config=configs/imagenet64.py --workdir=runs/imagenet64

Data: the tfds set `downsampled_imagenet/64x64`, prepared once by
`python -m hybrid_jax.data.prepare downsampled_imagenet/64x64`; its 13 GiB stay on disk. It has no labels, so the
evaluators that need them are skipped.
Hardware: a TPU v5e pod (16x16), or two as slices.
Compiled ahead of time (--mode=compile --topology=v5e:16x16; jax 0.10.2, libtpu 0.0.42.1): 315,917,760 parameters,
3.32e15 analytical FLOPs a step, 1.7 of 15.75 GiB a device; model estimate .09 to .15 s a step. v5e:16x16x2: 1.5 GiB,
5.0 MiB a device between the slices, .04 to .08 s. v5p:8x8x16: 1.1 GiB, .01 to .03 s. No all-to-all in any. With
mesh.fsdp=1 7.2 GiB and .09 to .14 s on one slice, but 6.7 GiB and .04 to .10 s on two.
Result: not run; speed: not run.
"""

from hybrid_jax.config import default_config


def get_config():
    """Returns the config."""
    config = default_config()
    config.data.name = "downsampled_imagenet/64x64"
    config.data.image_size = (64, 64)
    config.data.channels = 3
    config.data.test_split = "validation"
    config.model.patch_size = 4
    config.model.width = 1024
    config.model.num_heads = 16
    config.model.encoder_layers = 16
    config.model.decoder_layers = 8
    config.model.projection_dims = (4096, 256)
    config.model.dtype = "bfloat16"
    config.model.scan_layers = True
    config.model.remat = True
    config.augment.recipe = "simclr"
    config.train.total_steps = 300_000
    config.train.batch_size = 4096
    config.train.ema_decay = 0.9999
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup_steps = 10_000
    config.mesh.fsdp = 8
    config.checkpoint.every_steps = 2_000
    config.log.every_steps = 100
    config.eval.every_steps = 50_000
    config.eval.evaluators = ("likelihood",)
    return config
