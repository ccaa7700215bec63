"""The hybrid on CIFAR-10: 80 epochs, intended to take eight minutes on one H100 with its evaluation.

python -m hybrid_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

Data: the tfds set `cifar10`, prepared once by `python -m hybrid_jax.data.prepare cifar10`.
Hardware: one GPU of 24 GiB or more. On a TPU host add --config.model.remat=True --config.model.scan_layers=True.
Compiled ahead of time: 40,743,264 parameters, 1.30e13 analytical FLOPs a step. --mode=compile --topology=h100:1 (jax
0.11.2): 11.6 of 79.11 GiB, model estimate .028 to .041 s a step. --topology=v5e:2x2 with the flags above (jax 0.10.2,
libtpu 0.0.42.1): 1.5 of 15.75 GiB a device, model estimate .022 to .037 s a step, bound by compute, no all-to-all.
Result: not run; speed: not run.
"""

from hybrid_jax.config import default_config


def get_config():
    """Returns the config."""
    config = default_config()
    config.data.name = "cifar10"
    config.data.image_size = (32, 32)
    config.data.channels = 3
    config.model.patch_size = 4
    config.model.width = 512
    config.model.num_heads = 8
    config.model.encoder_layers = 8
    config.model.decoder_layers = 4
    config.model.projection_dims = (1024, 128)
    config.model.dtype = "bfloat16"
    config.augment.recipe = "simclr_cifar"
    config.train.total_steps = 7_000
    config.train.batch_size = 512
    config.train.ema_decay = 0.999
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 350
    config.checkpoint.every_steps = 1_000
    config.log.every_steps = 100
    return config
