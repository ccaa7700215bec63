"""The table of contests: who is held against whom, and what a contender that cannot run leaves."""

import math
import pickle
from functools import partial

import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers import contest as contest_lib
from benchmarks.peers import contests
from hybrid_jax.errors import UserError
from tests.benchmarks.counting import contender


def _contest(*labels: str) -> contest_lib.Contest:
    return contest_lib.Contest("a", "work", "step", 2.0, {label: partial(contender, label) for label in labels})


def test_a_contest_measures_who_can_run_and_says_why_others_cannot(capfd):
    contest = _contest("hybrid_jax", "peer", "absent", "broken")
    found = contest_lib.hold(contest, quick=True, rounds=2, least=0.0)
    assert [len(result.seconds) for result in found.values()] == [2, 2, 0, 0]
    assert found["peer"].facts == {"parameters": 1000} and found["peer"].median() >= 0.001
    assert 2**20 < found["peer"].rss < 2**40
    assert found["broken"].trouble == "failed: ValueError: two"
    assert "| absent | not installed: pip install kornia-of-nobody |" in peers.rows(contest, found)[2]
    assert "own words" not in capfd.readouterr().out, "stdout is the table's"


def test_rows_compare_with_ours():
    contest = _contest("hybrid_jax", "hybrid_jax, otherwise", "peer")
    seconds = [0.2, 0.1, 0.3], [0.4], [0.05, 0.6, 0.7]
    results = {k: contest_lib.Result(s, {}, 2.0**30) for k, s in zip(contest.contenders, seconds, strict=True)}
    assert peers.rows(contest, results) == [
        "| (a) work, 3 rounds | hybrid_jax | 200 ms a step | 100 ms to 300 ms | 1 |  | 1,024 MiB |",
        "|  | hybrid_jax, otherwise | 400 ms | 400 ms to 400 ms | 2.00 |  | 1,024 MiB |",
        "|  | peer | 600 ms | 50 ms to 700 ms | 3.00 | 2 | 1,024 MiB |",
    ]


def test_contenders_of_other_sizes_are_no_peers():
    contest = _contest("hybrid_jax", "peer")
    results = {k: contest_lib.Result([1.0], {"parameters": n}) for k, n in [("hybrid_jax", 1000), ("peer", 1040)]}
    with pytest.raises(RuntimeError, match="1,040 and 1,000 parameters"):
        peers.rows(contest, results)


def test_letters_choose_contests():
    every = [_contest("hybrid_jax"), _contest("hybrid_jax")]
    assert peers.choose(every, "a", quick=False) == every
    with pytest.raises(UserError, match="--only=a,x: must be letters of a"):
        peers.choose(every, "a,x", quick=False)


def test_ours_comes_first_and_every_contender_can_go_to_another_process():
    for contest in contests.contests():
        assert next(iter(contest.contenders)).startswith(contest_lib.OURS)
        assert pickle.loads(pickle.dumps(contest.contenders)).keys() == contest.contenders.keys()


def test_what_needs_too_much_memory_is_refused_unrun():
    with pytest.raises(MemoryError, match="more than 16 GiB: at least 40"):
        contests.torch_loss(1024, library=True, compiled=False, quick=True)


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.34, "12.3 s"), (0.0995, "99.5 ms"), (1.5e-5, "15 µs"), (math.pi * 100, "314 s")]
)
def test_durations_read_well(seconds, text):
    assert peers.duration(seconds) == text
