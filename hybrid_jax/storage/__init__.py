"""What must survive a run that is killed: checkpoints, files written whole, the lock of a workdir."""
