"""Persistent state of a run: checkpoints, atomic file writes, the lock of a workdir."""
