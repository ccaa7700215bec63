"""Counts to a number, for the tests of what waits for a line."""

import sys

for number in range(int(sys.argv[1])):
    print(number, flush=True)
