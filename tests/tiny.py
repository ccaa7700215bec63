"""The config that the command-line tests start from: 8x8 digits, a model that trains in seconds."""

from hybrid_jax.config import default_config


def get_config():
    """Returns the config."""
    config = default_config()
    config.data.name = "digits"
    config.data.image_size = (8, 8)
    config.model.patch_size = 2
    config.model.width = 16
    config.model.num_heads = 2
    config.model.encoder_layers = 1
    config.model.projection_dims = (16, 8)
    config.augment.recipe = "crop_flip"
    config.train.batch_size = 16
    config.train.total_steps = 10
    config.optimizer.warmup_steps = 2
    config.log.every_steps = 5
    config.log.gradients = False
    config.checkpoint.every_steps = 5
    config.eval.every_steps = -1
    # The sampler costs seconds to compile.
    config.eval.report_samples = 0
    # So does the anomaly score.
    config.eval.anomaly.num_images = 0
    return config
