"""The contests over parts of the work: what they hold, and when a contender is refused."""

import pytest

from benchmarks import peer_parts


def test_contests_have_one_entry_of_ours_each():
    contests = peer_parts.contests()
    assert [contest.letter for contest in contests] == ["d"] * 4 + ["e"] * 2 + ["f"]
    assert [contest.goal for contest in contests] == [1, 1, 5, 1, 3, 3, 3]
    assert all(sum(label.startswith("hybrid_jax") for label in c.contenders) == 1 for c in contests)


def test_pairs_of_pairs_grow_with_the_cube_of_the_batch():
    # 2B anchors with a positive each, 2B - 2 negatives of each of 2B anchors, 1 + 4 bytes.
    assert peer_parts.metric_learning_bytes(2) == 4 * 4 * 2 * 5
    assert peer_parts.metric_learning_bytes(512) == pytest.approx(8 * peer_parts.metric_learning_bytes(256), rel=0.01)


def test_what_needs_too_much_memory_is_refused_unrun():
    with pytest.raises(MemoryError, match="more than 16 GiB: at least 40"):
        peer_parts.metric_learning_loss(1024, compiled=False)
