"""The same work here and in what a user would pick instead: `python -m benchmarks.peers`."""
