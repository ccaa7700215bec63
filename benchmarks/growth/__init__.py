"""How the train step's time and memory grow: `python -m benchmarks.growth`."""
