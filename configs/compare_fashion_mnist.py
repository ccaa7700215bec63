"""Comparison of the hybrid with its two arms on the full Fashion-MNIST: three arms, five seeds, two CPU cores.

python -m hybrid_jax.main --mode=compare --config=configs/compare_fashion_mnist.py --workdir=runs/compare \
    --arms=generative,contrastive,hybrid

Data: `apt-get install dataset-fashion-mnist` on Debian, or the tfds set of that name.
Hardware: any; made for 2 CPU cores.
Result (five seeds, 2 cores of a shared Xeon server, 2026-11-22, 10,000 test images; docs/results/fashion_mnist):
C1 supported (-.10 points, its premise holds), C3 supported (+.46 % bits/dim), C2: premise not reproduced, since the
contrastive arm is more robust to corruptions than the generative one; outliers undecided. Equal FLOPs: not run.
"""

from hybrid_jax.config import default_config


def get_config():
    """Returns the config of the hybrid: that of fashion_mnist.py, a ninth as long."""
    config = default_config()
    config.data.name = "fashion_mnist"
    config.model.patch_size = 7
    config.objective.contrastive_weight = 0.3
    config.augment.crop_min_area = 0.8
    config.augment.view_keep = 0.5
    config.train.total_steps = 800
    config.train.batch_size = 128
    config.train.likelihood_fraction = 0.5
    config.train.ema_decay = 0.99
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 8e-3
    config.optimizer.warmup_steps = 40
    config.log.every_steps = 200
    return config
