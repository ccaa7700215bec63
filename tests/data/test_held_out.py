"""Classes that a run never sees: which images stay, and what is refused."""

import numpy as np
import pytest

from hybrid_jax.data import sources
from hybrid_jax.errors import UserError


def test_left_out_classes_are_in_no_split_and_their_test_images_are_kept_apart(tiny_config):
    whole, left = (sources.load(tiny_config(data__exclude_classes=classes)) for classes in ((), (2, 7)))
    for split in ("train", "validation", "test"):
        labels = getattr(whole, split).labels
        kept = ~np.isin(labels, (2, 7))
        assert sorted(getattr(left, split).labels) == sorted(labels[kept])
    assert set(left.held_out.labels.tolist()) == {2, 7} and whole.held_out is None
    assert len(left.held_out.images) + len(left.test.images) == len(whole.test.images)
    assert left.fingerprint != whole.fingerprint
    assert any("held out (data.exclude_classes)" in note for note in left.notes)


def test_evaluators_see_as_many_held_out_images_as_of_other_splits(tiny_config):
    seen = sources.load(tiny_config(data__exclude_classes=(2, 7))).for_evaluation(30).in_memory()
    assert len(seen.held_out.images) == len(seen.test.images) == 30


@pytest.mark.parametrize(
    ("classes", "message"),
    [((3, 11), "has 11; must be labels of training images: 0, 1, 2"), (tuple(range(10)), "must leave a class")],
)
def test_classes_that_cannot_be_left_out_are_refused(tiny_config, classes, message):
    with pytest.raises(UserError, match=f"data.exclude_classes.*{message}"):
        sources.load(tiny_config(data__exclude_classes=classes))
