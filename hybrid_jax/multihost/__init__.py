"""Runs with several processes: start, coordination, preemption."""
