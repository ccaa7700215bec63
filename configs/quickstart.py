"""Quickstart."""

from hybrid_jax.config import default_config


def get_config():
    """Returns the config."""
    config = default_config()
    config.model.width = 64
    config.model.num_heads = 2
    config.model.encoder_layers = 3
    config.train.batch_size = 128
    config.train.likelihood_fraction = 0.5
    config.train.total_steps = 600
    config.train.ema_decay = 0.99
    return config
