"""The flag `--config` of the benchmarks that measure an experiment."""

from ml_collections import config_flags

from hybrid_jax import config as config_lib
from hybrid_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)


def given_config():
    """Returns the config, which is valid; in a task of `cli.run_cli`."""
    if CONFIG.value is None:
        raise UserError("--config is missing: a file of configs/")
    config_lib.validate(CONFIG.value)
    return CONFIG.value
