"""The joint anomaly score on data whose distribution is known."""

import math

import numpy as np
import pytest
import scipy.stats

from hybrid_jax.anomaly import joint_score
from hybrid_jax.anomaly.detection import auroc
from hybrid_jax.anomaly.joint_score import Gaussian, Measures, Tails

MIXING = np.random.default_rng(9).normal(size=(12, 12))


def drawn(n, seed, shared=0.0, far=0.0, likelihood=True):
    """Measures of n images; `shared` makes distance and residual depend on each other, `far` moves the features."""
    rng = np.random.default_rng(seed)
    scale = np.exp(0.7 * shared * rng.normal(size=(n, 1)))
    features = (rng.normal(size=(n, 12)) * scale + far) @ MIXING
    code = rng.gamma(20, 30, n)
    nll = 0.8 * code + 300 + 40 * rng.standard_t(5, n) * scale[:, 0]
    features = features.astype(np.float32)
    return Measures(features, features, nll if likelihood else None, code)


def test_the_distance_is_that_of_the_closed_form():
    rng = np.random.default_rng(0)
    mean, covariance = rng.normal(size=12), MIXING @ MIXING.T
    x = rng.multivariate_normal(mean, covariance, 200_000)
    queries = rng.multivariate_normal(mean, covariance, 100)
    expected = np.einsum("ni,ij,nj->n", queries - mean, np.linalg.inv(covariance), queries - mean)
    np.testing.assert_allclose(Gaussian.fit(x).distance(queries), expected, rtol=0.05)


def test_features_that_are_constant_or_fewer_than_dimensions_are_finite():
    rng = np.random.default_rng(0)
    flat = np.c_[rng.normal(size=(60, 3)), np.ones((60, 2))]
    assert np.isfinite(Gaussian.fit(flat).distance(flat)).all()
    assert np.isfinite(Gaussian.fit(np.ones((9, 4))).distance(np.ones((2, 4)))).all()
    assert np.isfinite(Gaussian.fit(rng.normal(size=(20, 50))).distance(rng.normal(size=(5, 50)))).all()


def test_distances_of_the_fitted_images_are_those_of_new_ones():
    scales = np.geomspace(1, 1000, 40)
    x, new = (np.random.default_rng(seed).normal(size=(n, 40)) * scales for seed, n in [(0, 300), (1, 3000)])
    seen, held_out = Gaussian.fit(x).distance(x).mean(), joint_score.held_out_distance(x).mean()
    assert held_out == pytest.approx(Gaussian.fit(x).distance(new).mean(), rel=0.05) and seen < 0.97 * held_out


def test_few_images_suffice_where_many_others_told_the_axes():
    # Variances over six decades, as features have: shrunk towards a sphere the small ones are lost.
    scales = np.geomspace(1, 1e-3, 40)
    few, many, new = (
        np.random.default_rng(seed).normal(size=(n, 40)) * scales for seed, n in enumerate((200, 4000, 500))
    )
    moved = new + 3 * scales * (np.arange(40) > 30)
    alone, axes = Gaussian.fit(few), joint_score.white_axes(many)
    told = Gaussian.fit(few, axes)
    np.testing.assert_allclose(np.cov((many @ axes).T), np.eye(40), atol=1e-8)
    assert (
        auroc(told.distance(new), told.distance(moved)) > 0.99 > 0.9 > auroc(alone.distance(new), alone.distance(moved))
    )
    held_out = joint_score.held_out_distance(few, axes)
    assert held_out.mean() == pytest.approx(told.distance(new).mean(), rel=0.05)


def test_axes_of_fewer_images_than_dimensions_and_of_constant_features_are_finite():
    rng = np.random.default_rng(0)
    for x in (rng.normal(size=(20, 50)), np.c_[rng.normal(size=(600, 3)), np.ones((600, 2))], rng.normal(size=(30, 1))):
        assert np.isfinite(Gaussian.fit(x[:15], joint_score.white_axes(x)).distance(x)).all()


def test_tails_are_the_distributions_own():
    tails = Tails.fit(np.random.default_rng(0).exponential(size=20_000))
    x = np.array([0.1, 1, 3, 6, 12])
    np.testing.assert_allclose(tails.log_above(x), -x, rtol=0.1, atol=0.02)
    far = np.array([-1e12, 1e12])
    assert np.isfinite([tails.log_above(far), tails.log_below(far)]).all()


def test_tails_fall_without_a_step_and_take_equal_values():
    values = np.r_[np.zeros(90), np.arange(10.0)]
    x = np.linspace(-3, 30, 500)
    assert (np.diff(Tails.fit(values).log_above(x)) <= 0).all()
    assert np.isfinite(Tails.fit(np.zeros(60)).log_two_sided(x)).all()


def test_a_code_length_grows_with_what_an_image_holds():
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        blank = np.zeros((1, 16, 12, channels), np.uint8)
        noise = rng.integers(0, 256, blank.shape, dtype=np.uint8)
        nothing, much = joint_score.code_length(np.concatenate([blank, noise]))
        assert nothing == 0 and much > 0.9 * noise.size * 8 * math.log(2)


def test_the_line_ignores_outliers():
    x = np.arange(200.0)
    y = 3 * x + 5
    y[::10] += 1e6
    np.testing.assert_allclose(joint_score.robust_line(x, y), [3, 5], rtol=1e-6)
    assert joint_score.robust_line(np.ones(9), np.arange(9.0)).tolist() == [0, 4]


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_p_values_are_uniform_on_new_images_of_the_data(shared):
    fitted = joint_score.fit(drawn(2000, 0, shared))
    p = fitted.p_value(drawn(2000, 1, shared))
    assert (fitted.arrays["brown"][0] > 1.1) == (shared > 0)
    assert scipy.stats.kstest(p, "uniform").statistic < 0.05


def test_without_browns_correction_correlated_p_values_are_not_uniform(monkeypatch):
    monkeypatch.setattr(joint_score, "CORRELATED", 2)
    fitted = joint_score.fit(drawn(2000, 0, 1.0))
    p, corrected = fitted.p_value(drawn(2000, 1, 1.0)), 0.05
    assert fitted.arrays["brown"].tolist() == [1, 4] and np.mean(p < corrected) > 0.065


def test_browns_scale_and_freedom_are_those_of_the_moments():
    rng = np.random.default_rng(0)
    z = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 100_000)
    log_ps = scipy.stats.norm.logsf(z)
    scale, freedom = joint_score._brown(log_ps)
    total = -2 * log_ps.sum(axis=1)
    assert scale * freedom == pytest.approx(total.mean(), rel=0.02)
    assert 2 * scale**2 * freedom == pytest.approx(total.var(), rel=0.05)


@pytest.mark.parametrize("likelihood", [True, False])
def test_outliers_score_higher_and_the_same_data_at_chance(likelihood):
    fitted = joint_score.fit(drawn(1500, 0, likelihood=likelihood))
    usual = fitted.score(drawn(1500, 1, likelihood=likelihood))
    assert usual.dtype == np.float32 and usual.shape == (1500,)
    assert auroc(usual, fitted.score(drawn(1500, 2, likelihood=likelihood))) == pytest.approx(0.5, abs=0.04)
    assert auroc(usual, fitted.score(drawn(500, 3, far=2.0, likelihood=likelihood))) > 0.9


def test_both_tails_of_the_residual_are_anomalous():
    fitted, usual = joint_score.fit(drawn(1500, 0)), drawn(400, 1)
    for shift in (-400, 400):
        moved = Measures(usual.default, usual.last, usual.nll + shift, usual.code_length)
        assert (fitted.score(moved) > fitted.score(usual)).mean() > 0.95


def test_arrays_of_another_shape_are_no_score():
    fitted = joint_score.fit(drawn(100, 0))
    fitted.check(True)
    for name in fitted.arrays:
        broken = joint_score.JointScore(fitted.arrays | {name: np.full((2, 7), 1.0)})
        with pytest.raises((ValueError, KeyError)):
            broken.check(True)
    with pytest.raises(KeyError):
        joint_score.fit(drawn(100, 0, likelihood=False)).check(True)
