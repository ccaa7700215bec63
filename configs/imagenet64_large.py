"""The hybrid on ImageNet at 64x64 with 1.4 billion parameters, for a TPU v5e pod.

python -m hybrid_jax.main --config=configs/imagenet64_large.py --workdir=runs/imagenet64_large

Data: as configs/imagenet64.py.
Hardware: a TPU v5e pod (16x16).
Compiled ahead of time (--mode=compile --topology=v5e:16x16; jax 0.10.2, libtpu 0.0.42.1): 1,400,630,752 parameters,
1.47e16 analytical FLOPs a step, 5.9 of 15.75 GiB a device; model estimate .387 to .658 s a step. No all-to-all. With
mesh.fsdp=4 9.1 GiB and .666 s at most, with 16 4.0 GiB and .655 s.
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
    config.model.width = 2048
    config.model.num_heads = 16
    config.model.encoder_layers = 18
    config.model.decoder_layers = 9
    config.model.projection_dims = (4096, 256)
    config.model.dtype = "bfloat16"
    config.model.scan_layers = True
    config.model.remat = True
    config.augment.recipe = "simclr"
    config.train.total_steps = 300_000
    config.train.batch_size = 4096
    config.train.ema_decay = 0.9999
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 10_000
    config.mesh.fsdp = 8
    config.checkpoint.every_steps = 2_000
    config.log.every_steps = 100
    config.eval.every_steps = 50_000
    config.eval.evaluators = ("likelihood",)
    return config
