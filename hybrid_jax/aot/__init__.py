"""Ahead-of-time compilation of the train step for TPUs and GPUs that need not be present."""
