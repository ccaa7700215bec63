"""Several processes as one run: how they start, agree, and stop together."""
