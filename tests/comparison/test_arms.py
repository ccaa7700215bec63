"""The arms: how they are asked for, what they train with."""

import pytest

from hybrid_jax.comparison import arms
from hybrid_jax.errors import UserError
from hybrid_jax.models import flops
from tests import tiny

FIVE = "generative,contrastive,hybrid,generative@flops,contrastive@flops"


def configs(text: str, seed: int = 0, **changed):
    base = tiny.get_config()
    arms.set_fields(base, changed)
    return {arm.name: arms.config_of(arm, base, {}, seed) for arm in arms.parse(text)}


def test_arms_differ_in_their_weights_and_steps_alone():
    found = configs(FIVE)
    weights = {name: (c.objective.generative_weight, c.objective.contrastive_weight) for name, c in found.items()}
    assert weights["generative"] == weights["generative@flops"] == (1.0, 0.0)
    assert weights["contrastive"] == weights["contrastive@flops"] == (0.0, 0.1)
    assert weights["hybrid"] == (1.0, 0.1)
    for config in found.values():
        for section in ("data", "model", "augment", "optimizer"):
            assert config[section].to_dict() == found["hybrid"][section].to_dict()


def test_equal_flops_arms_use_the_hybrids_computation():
    found = configs(FIVE, **{"train.total_steps": 1_000})
    cost = {name: flops.total(c) * c.train.total_steps for name, c in found.items()}
    for name in ("generative@flops", "contrastive@flops"):
        assert cost[name] == pytest.approx(cost["hybrid"], rel=1e-3)


def test_overrides_make_another_hybrid():
    found = configs("hybrid,causal:model.view_attention=causal;augment.view_keep=1;model.projection_dims=(8, 4)")
    config = found["causal"]
    assert (config.model.view_attention, config.augment.view_keep) == ("causal", 1.0)
    assert config.model.projection_dims == (8, 4)
    assert config.objective.to_dict() == found["hybrid"].objective.to_dict()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hybrid,foo", "--arms=foo: must be one of generative"),
        ("hybrid@flops", "--arms=hybrid@flops"),
        ("hybrid,hybrid", "'hybrid' is given 2 times"),
        ("x:objective.contrastive_wieght=1", "did you mean objective.contrastive_weight?"),
        ("x:objective.contrastive_weight=-1", "must be at least 0"),
        ("x:objective.contrastive_weight", "must be FIELD=VALUE"),
        ("../x:seed=1", "--arms=../x:seed=1"),
    ],
)
def test_a_wrong_arm_is_told_in_one_line(text, told):
    with pytest.raises(UserError, match=told.replace("?", r"\?")) as caught:
        arms.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "a", "0,0", "-1", "1.5", "0,1000"])
def test_wrong_seeds_are_told(text):
    with pytest.raises(UserError, match="--seeds="):
        arms.parse_seeds(text)


def test_a_pure_config_cannot_be_compared():
    base = tiny.get_config()
    base.objective.contrastive_weight = 0.0
    with pytest.raises(UserError, match=r"objective\.contrastive_weight=0"):
        arms.check(base, arms.parse("hybrid"))


def test_every_arm_is_tuned_by_the_same_number_of_tries():
    base = tiny.get_config()
    names = ("generative", "contrastive", "hybrid")
    tries = {name: arms.trials(arms.parse(name)[0], base, {}) for name in names}
    assert {len(found) for found in tries.values()} == {base.compare.trials}
    assert tries["hybrid"][0] == {"objective.contrastive_weight": base.objective.contrastive_weight}
    first = {"optimizer.learning_rate": base.optimizer.learning_rate, "optimizer.weight_decay": 0.05}
    assert tries["generative"][0] == tries["contrastive"][0] == first
    taken = arms.trials(arms.parse("hybrid")[0], base, {"optimizer.learning_rate": 0.1})
    assert {each["optimizer.learning_rate"] for each in taken} == {0.1}
    config = arms.trial_config(arms.parse("hybrid")[0], base, tries["hybrid"][1])
    assert (config.seed, config.train.total_steps) == (arms.TUNING_SEED, 2)
