"""Processes that stand in for others: one that counts to a number, and contenders of a contest."""

import sys
import time

from benchmarks.peers.contest import Work


def contender(kind: str, quick: bool) -> Work:
    """Returns work that takes a millisecond, unless the contender is absent or broken."""
    print("a library's own words")
    if kind == "absent":
        import kornia_of_nobody.augmentation  # noqa: F401
    if kind == "broken":
        raise ValueError("two\nlines")
    return Work(lambda: time.sleep(0.001), {"parameters": 1000})


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        print(number, flush=True)
