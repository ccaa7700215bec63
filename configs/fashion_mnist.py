"""The hybrid on the full Fashion-MNIST (60,000 images).

python -m hybrid_jax.main --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

Data: `apt-get install dataset-fashion-mnist` on Debian, or the tfds set of that name.
Arms: --config.objective.contrastive_weight=0 (generative), --config.objective.generative_weight=0 (contrastive).
Hardware: any; made for 2 CPU cores.
Result: not run.
"""

from hybrid_jax.config import default_config


def get_config():
    """Returns the config."""
    config = default_config()
    config.data.name = "fashion_mnist"
    config.train.total_steps = 3000
    config.train.likelihood_fraction = 0.5
    config.train.ema_decay = 0.998
    config.optimizer.warmup_steps = 150
    return config
