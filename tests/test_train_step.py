"""The train step: one trace, any mesh, exact accumulation, learning, averages, skipped updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets

from hybrid_jax import sharding, train_state, train_step
from hybrid_jax.aot import hlo
from hybrid_jax.models import hybrid

DIGITS = (sklearn.datasets.load_digits().images * 255 / 16).round().astype(np.uint8)[..., None]
ARMS = {
    "hybrid": {},
    "looped": {"model__scan_layers": True, "model__remat": True, "model__encoder_layers": 2},
    "generative": {"objective__contrastive_weight": 0.0},
    "contrastive": {"objective__generative_weight": 0.0},
}


def run(config, mesh, steps=3, rows=None):
    """Returns (state, list of metrics) after some steps; step i sees digits i, i+1, ... of the batch."""
    state = train_state.init_state(config, mesh, None)
    step = train_step.make_train_step(config, mesh)
    history = []
    for i in range(steps):
        indices = np.arange(config.train.batch_size) + i * config.train.batch_size if rows is None else rows
        state, metrics = step(state, sharding.global_batch(DIGITS[indices], mesh, len(indices)))
        history.append({k: float(v) for k, v in metrics.items()})
    assert step._cache_size() == 1
    return state, history


def relative_difference(one, two):
    """Largest |a - b| over the norm of each array."""
    differences = jax.tree.map(
        lambda a, b: np.linalg.norm(np.asarray(a, np.float64) - b) / max(np.linalg.norm(b), 1e-12), one, two
    )
    return max(jax.tree.leaves(differences))


def gradients(config, mesh, perturb=0.05):
    """Gradient of both losses on one batch, at parameters where no layer is zero."""
    model = hybrid.build_model(config, sharding.constrain_batch(mesh))
    objective = train_step.Objective.from_config(config, model, mesh.size)
    state = train_state.init_state(config, mesh, None)
    images = sharding.global_batch(DIGITS[: config.train.batch_size], mesh, config.train.batch_size)

    @jax.jit
    def compute(params, images):
        key = train_step.step_key(config.seed, jnp.zeros((), jnp.int32))
        batch = train_step.make_batch(objective, key, images, None)
        whole = config.train.microbatches == 1
        compute = jax.grad(train_step.loss_fn, has_aux=True) if whole else train_step.accumulated_gradients
        return compute(params, objective, batch, None)

    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + perturb * noise.normal(size=x.shape).astype(np.float32), state.params)
    found, metrics = compute(params, images)
    return jax.device_get(found), {k: float(v) for k, v in metrics.items()}


@pytest.fixture(scope="module")
def on_one_device():
    """{arm: gradients and metrics}, filled by the first test that needs them."""
    return {}


@pytest.mark.parametrize(
    ("arm", "devices", "fsdp"),
    [
        ("hybrid", 2, 1),
        ("hybrid", 4, 4),
        pytest.param("hybrid", 8, 1, marks=pytest.mark.slow),  # with microbatches it is below
        ("hybrid", 8, 4),
        pytest.param("looped", 8, 4, marks=pytest.mark.slow),
        pytest.param("generative", 8, 4, marks=pytest.mark.slow),
        ("contrastive", 8, 4),
    ],
)
def test_any_mesh_gives_the_same_loss_and_gradients(tiny_config, mesh_of, on_one_device, arm, devices, fsdp):
    config = tiny_config(**ARMS[arm])
    if arm not in on_one_device:
        on_one_device[arm] = gradients(config, mesh_of(1))
    want, want_metrics = on_one_device[arm]
    got, got_metrics = gradients(config, mesh_of(devices, fsdp))
    assert relative_difference(got, want) < 1e-5
    for name, value in want_metrics.items():
        assert got_metrics[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize(("devices", "fsdp"), [(2, 2), pytest.param(8, 1, marks=pytest.mark.slow)])
def test_any_mesh_trains_to_the_same_losses(tiny_config, mesh_of, devices, fsdp):
    # A small rate: Adam makes full-size steps of gradients that are rounding noise around zero.
    config = tiny_config(train__ema_decay=0.9, optimizer__learning_rate=2e-4)
    _, want = run(config, mesh_of(1))
    state, got = run(config, mesh_of(devices, fsdp))
    for one, two in zip(got, want, strict=True):
        for name in ("loss", "generative_loss", "contrastive_loss", "param_norm"):
            assert one[name] == pytest.approx(two[name], rel=1e-5), name
    if fsdp > 1:
        kernel = state.params["encoder"]["transformer"]["block_1"]["mlp_in"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (16 // fsdp, 64)


# Of the arms the hybrid has both branches.
@pytest.mark.parametrize("arm", [arm if arm == "hybrid" else pytest.param(arm, marks=pytest.mark.slow) for arm in ARMS])
def test_accumulation_is_exact(tiny_config, mesh_of, arm):
    settings = ARMS[arm] | {"train__batch_size": 64} | ({"train__likelihood_fraction": 0.5} if arm == "hybrid" else {})
    want, want_metrics = gradients(tiny_config(**settings), mesh_of(1))
    for devices in (1, 8):
        got, got_metrics = gradients(tiny_config(train__microbatches=4, **settings), mesh_of(devices))
        assert relative_difference(got, want) < 1e-5, devices
        assert got_metrics == pytest.approx(want_metrics, rel=1e-5), devices


@pytest.mark.slow
def test_two_identical_runs_are_equal_to_the_bit(tiny_config, mesh_of):
    one, two = (run(tiny_config(), mesh_of(2)) for _ in range(2))
    assert one[1] == two[1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one[0].params), jax.device_get(two[0].params))


@pytest.mark.slow
def test_another_seed_is_another_run(tiny_config, mesh_of):
    assert run(tiny_config(), mesh_of(1))[1] != run(tiny_config(seed=1), mesh_of(1))[1]


def test_the_state_is_donated(tiny_config, mesh_of):
    config, mesh = tiny_config(), mesh_of(1)
    state = train_state.init_state(config, mesh, None)
    train_step.make_train_step(config, mesh)(state, sharding.global_batch(DIGITS[:16], mesh, 16))
    assert state.params["encoder"]["positions"].is_deleted()


@pytest.mark.slow
def test_overfits_32_images_to_near_zero_nll(tiny_config, mesh_of):
    config = tiny_config(
        objective__contrastive_weight=0.0, model__levels=17, model__width=64, train__batch_size=32,
        train__total_steps=400, optimizer__learning_rate=5e-3, optimizer__weight_decay=0.0,
    )  # fmt: skip
    _, history = run(config, mesh_of(1), steps=400, rows=np.arange(32))
    assert history[0]["loss"] == pytest.approx(np.log(17), abs=1e-4)
    # 64 tokens that tell 32 images apart need at least ln(32) / 64 = 0.054 nats each.
    assert history[-1]["loss"] < 0.06


def test_contrastive_accuracy_on_one_batch_reaches_one(tiny_config, mesh_of):
    config = tiny_config(
        objective__generative_weight=0.0, model__width=64, train__batch_size=32, train__total_steps=300,
        augment__recipe="grey_small", augment__crop_min_area=1.0, augment__flip=0.0, augment__blur=0.0,
        augment__brightness=0.0,
        augment__view_keep=1.0, optimizer__learning_rate=1e-3, optimizer__warmup_steps=30,
    )  # fmt: skip
    _, history = run(config, mesh_of(1), steps=300, rows=np.arange(32))
    assert history[0]["contrastive_accuracy"] < 0.9
    assert min(row["contrastive_accuracy"] for row in history[-10:]) == 1.0


def test_the_moving_average_follows_its_formula(tiny_config, mesh_of):
    config, mesh = tiny_config(train__ema_decay=0.9), mesh_of(1)
    state = train_state.init_state(config, mesh, None)
    step = train_step.make_train_step(config, mesh)
    expected = np.asarray(state.params["encoder"]["positions"], np.float64)
    for i in range(4):
        state, _ = step(state, sharding.global_batch(DIGITS[:16], mesh, 16))
        decay = min(0.9, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["encoder"]["positions"], np.float64)
    np.testing.assert_allclose(state.ema_params["encoder"]["positions"], expected, rtol=1e-5, atol=1e-7)


def test_the_likelihood_reads_evenly_spaced_images_as_they_are(tiny_config):
    quarter, full = (tiny_config(train__likelihood_fraction=share) for share in (0.25, 1.0))
    batch, whole = (
        train_step.make_batch(train_step.Objective.from_config(config), jax.random.key(0), DIGITS[:16], None)
        for config in (quarter, full)
    )
    np.testing.assert_array_equal(batch.likelihood, whole.likelihood[jnp.array([0, 4, 8, 12])])
    np.testing.assert_array_equal(batch.views, whole.views)


def test_arms_see_the_same_augmentations(tiny_config):
    batches = []
    for arm in ("hybrid", "contrastive"):
        objective = train_step.Objective.from_config(tiny_config(**ARMS[arm]))
        batches.append(train_step.make_batch(objective, train_step.step_key(0, 3), DIGITS[:16], None))
    np.testing.assert_array_equal(batches[0].views, batches[1].views)
    np.testing.assert_array_equal(batches[0].keep, batches[1].keep)


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({}, 1e-4),
        pytest.param(ARMS["looped"], 1e-4, marks=pytest.mark.slow),
        pytest.param({"model__dtype": "bfloat16"}, 1e-2, marks=pytest.mark.slow),
    ],
)
def test_the_gradient_comparison_adds_up(tiny_config, mesh_of, settings, tolerance):
    config, mesh = tiny_config(**settings), mesh_of(1)
    state = train_state.init_state(config, mesh, None)
    images = sharding.global_batch(DIGITS[:16], mesh, 16)
    step = train_step.make_train_step(config, mesh)
    for _ in range(3):
        state, _ = step(state, images)
    found = {k: float(v) for k, v in train_step.make_gradient_comparison(config, mesh)(state, images).items()}
    objective = train_step.Objective.from_config(config)

    @jax.jit
    def gradient(params, images):
        batch = train_step.make_batch(objective, train_step.step_key(0, state.step), images, None)
        return jax.grad(train_step.loss_fn, has_aux=True)(params, objective, batch, None)[0]

    whole = gradient(state.params, images)["encoder"]
    one, two = found["encoder_gradient_norm_generative"], found["encoder_gradient_norm_contrastive"]
    cosine = found["encoder_gradient_cosine"]
    total = np.sqrt(one**2 + two**2 + 2 * one * two * cosine)
    assert {x.dtype for x in jax.tree.leaves(whole)} == {jnp.dtype(jnp.float32)}
    together = float(jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(whole))))
    assert total == pytest.approx(together, rel=tolerance)
    assert one > 0 and two > 0 and -1 <= cosine <= 1


@pytest.mark.parametrize(
    ("shape", "axis"),
    # A kernel, the same stacked, input features that do not divide, positions, a vector, too small, nothing divides.
    [
        ((64, 192), 0),
        ((2, 64, 192), 1),
        ((12, 256), 1),
        ((256, 64), 0),
        ((2048,), 0),
        ((8, 64), None),
        ((49, 99), None),
    ],
)
def test_which_axis_of_an_array_is_cut(mesh_of, shape, axis):
    where = sharding.state_sharding(jax.ShapeDtypeStruct(shape, jnp.float32), mesh_of(8, 8))
    want = [size // 8 if i == axis else size for i, size in enumerate(shape)]
    assert where.shard_shape(shape) == tuple(want)


def test_a_nonfinite_update_is_skipped_and_counted(tiny_config, mesh_of):
    config, mesh = tiny_config(train__skip_nonfinite=2), mesh_of(1)
    state = train_state.init_state(config, mesh, None)
    step = train_step.make_train_step(config, mesh)
    images = sharding.global_batch(DIGITS[:16], mesh, 16)
    state, metrics = step(state, images)
    assert metrics["skipped_updates"] == 0
    good = jax.device_get(state.params)
    poisoned = jax.tree.map(jnp.copy, state)
    poisoned.params["projection"]["layer_1"]["bias"] = jnp.full((16,), jnp.nan)
    after, metrics = step(poisoned, images)
    assert metrics["skipped_updates"] == 1 and np.isnan(metrics["loss"])
    np.testing.assert_array_equal(after.params["encoder"]["positions"], good["encoder"]["positions"])


@pytest.mark.parametrize(("size", "count"), [(16, 16), (16, 8), (24, 16), (512, 384), (48, 8)])
def test_images_for_the_likelihood_are_chosen_where_they_lie(mesh_of, size, count):
    mesh = mesh_of(8)
    where = sharding.batch_sharding(mesh)
    images = jax.ShapeDtypeStruct((size, 3), jnp.uint8, sharding=where)
    choose = (
        jax.jit(lambda images: train_step.evenly_spaced(images, count), out_shardings=where).lower(images).compile()
    )
    numbers = np.arange(3 * size, dtype=np.uint8).reshape(size, 3)
    found = np.asarray(choose(sharding.place(numbers, where)))
    np.testing.assert_array_equal(found, numbers[np.arange(count) * size // count])
    kinds = hlo.count(choose.as_text())["collectives"]
    assert not any(kind["count"] for kind in kinds.values())
