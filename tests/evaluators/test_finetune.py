"""Fine-tuning: what is trained and how fast, that it is repeatable, its floors, and that it can be left."""

import jax
import numpy as np
import pytest
import tiny
from fakes import digits, untrained

from hybrid_jax import evaluators
from hybrid_jax.errors import Preempted
from hybrid_jax.evaluators import finetune
from hybrid_jax.models import hybrid, tokens


def config(**changes):
    c = tiny.get_config()
    c.eval.batch_size = 64
    c.eval.linear_probe.c_values = (0.1,)
    c.eval.evaluators = ("finetune",)
    settings = {"num_images": 300, "epochs": 6, "batch_size": 32, "learning_rates": (0.001, 0.01)}
    c.eval.finetune.update(settings | changes)
    return c


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Rows, the lines told, how often it might have been left, the model, its parameters before, and the floors."""
    model, directory, lines, left = untrained(config(), seed=1), tmp_path_factory.mktemp("floors"), [], []
    before = jax.device_get(model.params)
    rows = evaluators.evaluate(
        model, digits(), config(), directory, log=lines.append, between=lambda: left.append(1)
    )  # fmt: skip
    return rows, lines, len(left), model, before, directory


def of_trainings(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("  finetune")]


def test_the_row_tells_what_was_done_and_stands_beside_its_floors(found):
    (row, validation), lines, left, *_ = found
    assert row["metric"] == "finetune_accuracy" and row["protocol"] == "finetune-v1" and row["split"] == "test"
    assert row["n_train"] == 300 and row["n"] == 200 and row["learning_rate"] in row["learning_rates"] == [0.001, 0.01]
    assert set(row["floor"]) == {"from random values", "linear probe, same labels"} and row["standard_error"] > 0
    assert row["value"] > 0.15 and validation["value"] == row["validation_accuracy"] and validation["n"] == 200
    told = of_trainings(lines)
    assert len(told) == 4 and "from the checkpoint, learning rate 0.001: loss" in told[0]
    assert left == 1 + 4 * 6, "before it, and after every epoch"


def test_the_same_seed_gives_the_same_rows_and_the_checkpoint_stays(found):
    rows, _, _, model, before, directory = found
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, jax.device_get(model.params))))
    lines = []
    assert evaluators.evaluate(model, digits(), config(), directory, log=lines.append) == rows
    assert len(of_trainings(lines)) == 2, "the floor was kept"


def test_a_stop_request_ends_it_after_an_epoch(found):
    *_, model, _, directory = found
    calls = []

    def leave():
        calls.append(1)
        if len(calls) == 3:
            raise Preempted("stopped")

    with pytest.raises(Preempted):
        evaluators.evaluate(model, digits(), config(), directory, log=lambda line: None, between=leave)


def tuner(c, num_classes=10, palette=None):
    quiet = (lambda line: None, lambda: None)
    layer = hybrid.default_layer(c)
    return finetune.FineTuner(c, layer, palette, num_classes, c.eval.finetune, 0, *quiet)


def trained_weights(c, palette=None):
    model, data = untrained(c, palette, seed=1), digits()
    images = data.train.images[:32]
    tuning = tuner(c, palette=palette)
    args = (images, data.train.labels[:32], 0.01, 0.5, "")
    weights, loss = tuning.train(jax.device_get(model.params), model.embed(images), *args)
    assert tuning.predict(weights, images).shape == (32,)
    return model, weights, loss


def moved(model, weights):
    """{stack: {path: whether a parameter changed}}."""
    started = {name: model.params[name] for name in weights["trained"] if name != "head"}
    differs = lambda a, b: bool((np.asarray(a) != np.asarray(b)).any())
    kept = {name: weights["trained"][name] for name in started}
    return jax.tree.map(differs, started, kept)


def test_every_parameter_below_the_layer_is_trained():
    model, weights, _ = trained_weights(config(epochs=2))
    changed = moved(model, weights)
    assert set(changed) == {"encoder"} and all(jax.tree.leaves(changed))


ARMS = {
    "generative": {"objective.contrastive_weight": 0.0},
    "contrastive": {"objective.generative_weight": 0.0},
    "no encoder": {"objective.contrastive_weight": 0.0, "model.encoder_layers": 0, "model.decoder_layers": 2},
    "stacked blocks": {"model.scan_layers": True, "model.encoder_layers": 2},
    "palette": {"model.token_kind": "palette", "model.palette_size": 8, "model.patch_size": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_every_kind_of_checkpoint_can_be_fine_tuned(arm):
    c = config(epochs=30)
    c.update_from_flattened_dict(ARMS[arm])
    palette = None
    if arm == "palette":
        palette = tokens.Palette.from_colours(tokens.fit_palette(digits().train.images, 8))
    model, weights, loss = trained_weights(c, palette)
    assert loss < 0.9 * np.log(10)
    changed = moved(model, weights)
    assert all(jax.tree.leaves(changed["encoder"]))
    if arm == "no encoder":
        # The default layer is the first of two blocks.
        assert all(jax.tree.leaves(changed["decoder"]["transformer"]["block_1"]))


def test_lower_blocks_learn_slower_and_head_and_norm_at_full_rate():
    leaf = np.zeros(3)
    blocks = {f"block_{i}": {"kernel": leaf} for i in (1, 2, 3)}
    encoder = {"positions": leaf, "norm": {"scale": leaf}, "transformer": blocks}
    scales = finetune.rate_scales({"encoder": encoder, "head": {"bias": leaf}}, "encoder", 3, 0.5)
    assert scales["head"]["bias"] == scales["encoder"]["norm"]["scale"] == 1
    assert [scales["encoder"]["transformer"][f"block_{i}"]["kernel"] for i in (1, 2, 3)] == [0.125, 0.25, 0.5]
    assert scales["encoder"]["positions"] == 0.0625
    stacked = {"encoder": {"transformer": {"blocks": {"kernel": np.zeros((3, 2, 4))}}}}
    found = finetune.rate_scales(stacked, "encoder", 3, 0.5)["encoder"]["transformer"]["blocks"]["kernel"]
    assert found.shape == (3, 1, 1) and found.ravel().tolist() == [0.125, 0.25, 0.5]
    decoder = {"decoder": {"transformer": blocks, "start": leaf}, "encoder": {"patch_embedding": leaf}}
    scales = finetune.rate_scales(decoder, "decoder/2", 2, 0.5)
    assert [scales["decoder"]["transformer"][f"block_{i}"]["kernel"] for i in (1, 2, 3)] == [0.25, 0.5, 1]
    assert scales["encoder"]["patch_embedding"] == 0.125


def test_augmentation_is_the_runs_own_flips_and_mild_crops():
    c = config()
    assert finetune.light_recipe(c).crop_min_area == 0.6 and finetune.light_recipe(c).flip == 0.5
    c.augment.recipe, c.augment.flip = "grey_small", 0.0
    light = finetune.light_recipe(c)
    assert light.flip == 0 and light.contrast == light.brightness == light.blur == 0
    c.augment.recipe = "none"
    assert finetune.light_recipe(c).crop_min_area == 1
