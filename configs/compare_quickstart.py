"""Comparison of the hybrid with its two arms on the 12,000 images shipped with the package: five arms, five seeds.

python -m hybrid_jax.main --mode=compare --config=configs/compare_quickstart.py --workdir=runs/compare

Hardware: any laptop.
Result (seeds 0-4, 2 cores of a shared Xeon server, 2026-11-22, the 2,000 test images): 15 min 21 s. Equal
steps: C3 supported (+.47 % bits/dim); C2 not supported (outliers -8.5 points of AUROC); C1 and the rest of C2: premise
not reproduced. Equal FLOPs: the same, except that C3 is not supported (+6.2 %).
"""

from hybrid_jax.config import default_config


def get_config():
    """Returns the config of the hybrid: that of quickstart.py, a quarter as long."""
    config = default_config()
    config.model.patch_size = 7
    config.model.encoder_layers = 3
    config.objective.contrastive_weight = 0.3
    config.augment.crop_min_area = 0.8
    config.train.total_steps = 150
    config.train.batch_size = 128
    config.train.likelihood_fraction = 0.5
    config.train.ema_decay = 0.97
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 8e-3
    config.optimizer.warmup_steps = 20
    config.log.every_steps = 50
    config.eval.corruptions.num_images = 1000
    return config
