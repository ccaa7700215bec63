"""What compilers make of the train step for accelerators that are not here: `python -m benchmarks.accelerators`."""
